"""What the kernels of every backend promise.

:class:`~implicitcore.TorchBackend` in float64 defines what is right.
"""

from __future__ import annotations

import torch
from torch import Tensor

from implicitcore.backends.base import Backend
from implicitcore.backends.torch import TorchBackend
from implicitcore.tensors.norms import real_dtype
from implicitcore.testing import kernels
from implicitcore.testing.check import contract
from implicitcore.testing.expect import NotApplicable, expect, expect_close
from implicitcore.testing.kernels import (
    BATCHES,
    KERNELS,
    SIZES,
    Draw,
    Kernel,
    device_of,
    expect_results,
    rounding,
    widest,
)

REFERENCE = TorchBackend()
# From here on a backend may differentiate its products with a history by itself.
LARGE = 2**13


def _is_right(backend: Backend, kernel: Kernel) -> None:
    device = device_of(backend)
    for dtype in backend.dtypes:
        exact = torch.complex128 if dtype.is_complex else torch.float64
        for n in SIZES:
            for batch in BATCHES:
                expected = kernel(REFERENCE, Draw(exact, device, rounded=dtype), batch, n)
                did = f"called {kernel.__name__} with batch={batch}, n={n} in {dtype}"
                found = kernel(backend, Draw(dtype, device), batch, n)
                expect_results(found, expected, did, rounding(dtype, n))


@contract("backend")
def residual_is_right(backend: Backend) -> None:
    """``residual`` is f(z) - z, with the norms of it and of f(z)."""
    _is_right(backend, kernels.residual)


@contract("backend")
def inner_products_is_right(backend: Backend) -> None:
    """``inner_products`` are those of a row with each row of a history."""
    _is_right(backend, kernels.inner_products)


@contract("backend")
def axpy_history_is_right(backend: Backend) -> None:
    """``axpy_history`` is row + scale * (weighted history), or the second term alone."""
    _is_right(backend, kernels.axpy_history)


@contract("backend")
def stage_combination_is_right(backend: Backend) -> None:
    """``stage_combination`` is z + dt * (weighted stages), dt per sample, or no z."""
    _is_right(backend, kernels.stage_combination)


@contract("backend")
def error_norm_is_right(backend: Backend) -> None:
    """``error_norm`` is the root mean square of the error in units of the tolerance."""
    _is_right(backend, kernels.error_norm)


@contract("backend")
def norms_are_at_least_float32(backend: Backend) -> None:
    """Norms of half-precision states are float32, and large entries do not overflow them."""
    device = device_of(backend)
    for dtype in backend.dtypes:
        z = torch.full((2, 1000), 3e4, dtype=dtype, device=device)
        found = backend.residual(z, torch.zeros_like(z))
        for name, norm in (
            ("norm", found.norm),
            ("update_norm", found.update_norm),
            ("error_norm", backend.error_norm(z, z, z, 0.0, 1.0)),
        ):
            expect(
                norm.dtype == real_dtype(z),
                f"asked for {name} in {dtype}",
                norm.dtype,
                real_dtype(z),
            )
            expect(
                bool(norm.isfinite().all()),
                f"asked for {name} of 1000 entries of 3e4 in {dtype}",
                norm.tolist(),
                "finite norms",
            )


@contract("backend")
def takes_strided_views(backend: Backend) -> None:
    """Histories and rows may be views into larger ones, states and weights have any strides."""
    device, dtype = device_of(backend), widest(backend)
    for n in (5, 129):
        for kernel in KERNELS:
            found = kernel(backend, _Strided(dtype, device), 3, n)
            expected = kernel(backend, Draw(dtype, device), 3, n)
            did = f"called {kernel.__name__} with strided views, n={n}"
            expect_results(found, expected, did, rounding(dtype))


class _Strided(Draw):
    """The same values, as views into a larger history, and states with the batch last in memory."""

    def __call__(self, *shape: int) -> Tensor:
        value = super().__call__(*shape)
        if len(shape) < 3:
            return value.T.contiguous().T
        larger = value.new_full((shape[0], shape[1] + 4, shape[2]), torch.nan)
        larger[:, 2:-2] = value
        return larger[:, 2:-2]


@contract("backend")
def takes_or_refuses_other_dtypes(backend: Backend) -> None:
    """A state of a dtype that it does not declare is an error, or its results are right."""
    device, known = device_of(backend), widest(backend)
    others = [
        dtype
        for dtype in (torch.bfloat16, torch.float32, torch.float64)
        if dtype not in backend.dtypes
    ]
    if not others:
        raise NotApplicable("it takes bfloat16, float32 and float64")
    for dtype in others:
        for kernel in KERNELS:
            expected = kernel(backend, Draw(known, device, rounded=dtype), 3, 129)
            try:
                found = kernel(backend, Draw(dtype, device), 3, 129)
            except (TypeError, ValueError, RuntimeError):
                continue
            did = f"called {kernel.__name__} in {dtype}, which it does not declare"
            expect_results(found, expected, did, rounding(dtype))


@contract("backend")
def derivatives_are_right_or_absent(backend: Backend) -> None:
    """Differentiable: first and second derivatives of each kernel are right; else no graph."""
    device, dtype = device_of(backend), widest(backend)
    for kernel in KERNELS:
        if backend.differentiable:
            products = kernel in (kernels.inner_products, kernels.axpy_history)
            for n in (3, 129, LARGE) if products else (3, 129):
                found, expected = (
                    _derivatives(each, kernel, dtype, device, n) for each in (backend, REFERENCE)
                )
                for order, (a, b) in enumerate(zip(found, expected, strict=True), 1):
                    did = f"took derivative {order} of {kernel.__name__} with n={n}"
                    expect_close(a, b, did, 1e5 * torch.finfo(dtype).eps)
        else:
            results = kernel(backend, Draw(dtype, device, requires_grad=True), 2, 3)
            expect(
                not any(value.requires_grad for value in results),
                f"called {kernel.__name__} of a backend that is not differentiable",
                "a graph",
                "none",
            )


def _derivatives(
    backend: Backend, kernel: Kernel, dtype: torch.dtype, device: str, n: int
) -> tuple[Tensor, Tensor]:
    """The first and second derivatives of a scalar of the results by all arguments, as vectors."""
    draw = Draw(dtype, device, requires_grad=True)
    unit = 1.0 if n < LARGE else n**-0.5  # the sine of the square of a large sum is no number
    results = [value * unit for value in kernel(backend, draw, 2, n)]
    total = torch.cat([value.square().sin().flatten() for value in results]).sum()
    expect(
        total.requires_grad,
        f"called {kernel.__name__} of a differentiable backend",
        "a result without a graph",
        "one with a graph",
    )
    first = torch.autograd.grad(total, draw.drawn, create_graph=True, materialize_grads=True)
    joined = torch.cat([g.flatten() for g in first])
    expect(
        joined.requires_grad,
        f"differentiated {kernel.__name__}",
        "a derivative without a graph",
        "one that can be differentiated again",
    )
    second = torch.autograd.grad(joined.square().sum(), draw.drawn, materialize_grads=True)
    return joined.detach(), torch.cat([g.flatten() for g in second])
