"""What every backend promises.

:class:`~implicitcore.TorchBackend` on float64 defines the meaning of its kernels.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from implicitcore.backends.base import Backend
from implicitcore.backends.torch import TorchBackend
from implicitcore.functional import fixed_point, integrate
from implicitcore.ode_solvers.runge_kutta import Tsit5
from implicitcore.root_solvers.anderson import Anderson
from implicitcore.root_solvers.broyden import Broyden
from implicitcore.tensors.norms import real_dtype
from implicitcore.testing import kernels
from implicitcore.testing.check import contract
from implicitcore.testing.expect import NotApplicable, expect, expect_close, expect_equal
from implicitcore.testing.kernels import BATCHES, KERNELS, SIZES, Draw, Kernel, device_of, widest
from implicitcore.testing.problems import Cell, Driven, inputs

REFERENCE = TorchBackend()
# The most that rounding may change, in units of the dtype's last place.
PLACES = 8


def _compare(
    found: tuple[Tensor, ...],
    expected: tuple[Tensor, ...],
    dtype: torch.dtype,
    did: str,
    added: int = 0,
) -> None:
    """Results are rounded to the dtype, and the sums of so many terms that they are made of in the dtype of norms, as a random walk."""
    rounding = (
        PLACES * torch.finfo(dtype).eps
        + added**0.5 * torch.finfo(real_dtype(torch.empty(0, dtype=dtype))).eps
    )
    for place, (a, b) in enumerate(zip(found, expected, strict=True)):
        expect_close(a.detach().to(b), b.detach(), f"{did}, result {place}", rounding)


def _is_right(backend: Backend, kernel: Kernel) -> None:
    device = device_of(backend)
    for dtype in backend.dtypes:
        exact = torch.complex128 if dtype.is_complex else torch.float64
        for n in SIZES:
            for batch in BATCHES:
                expected = kernel(REFERENCE, Draw(exact, device, rounded=dtype), batch, n)
                did = f"called {kernel.__name__} with batch={batch}, n={n} in {dtype}"
                _compare(
                    kernel(backend, Draw(dtype, device), batch, n), expected, dtype, did, added=n
                )


@contract("backend")
def declares_what_it_takes(backend: Backend) -> None:
    """Says on which devices and dtypes it runs, whether autograd may pass, and why it cannot run where it cannot."""
    types = backend.device_types
    expect(
        bool(types) and all(isinstance(name, str) for name in types),
        "asked for device_types",
        types,
        'a tuple as ("cpu", "cuda")',
    )
    dtypes = backend.dtypes
    expect(
        bool(dtypes) and all(isinstance(dtype, torch.dtype) for dtype in dtypes),
        "asked for dtypes",
        dtypes,
        "a tuple of torch.dtype",
    )
    expect(
        isinstance(backend.differentiable, bool),
        "asked whether it is differentiable",
        backend.differentiable,
        "True or False",
    )
    reason = backend.unavailable_reason()
    told = reason is None or (isinstance(reason, str) and bool(reason.strip()))
    expect(
        told,
        "asked for unavailable_reason()",
        repr(reason),
        "None, or a text that says what is missing",
    )


@contract("backend")
def residual_is_right(backend: Backend) -> None:
    """``residual`` is f(z) - z with the norms of both, for n around 128 and for nothing."""
    _is_right(backend, kernels.residual)


@contract("backend")
def inner_products_is_right(backend: Backend) -> None:
    """``inner_products`` is the inner products of a row with each of a history."""
    _is_right(backend, kernels.inner_products)


@contract("backend")
def axpy_history_is_right(backend: Backend) -> None:
    """``axpy_history`` is the row and scale times the weighted history, or the latter alone."""
    _is_right(backend, kernels.axpy_history)


@contract("backend")
def stage_combination_is_right(backend: Backend) -> None:
    """``stage_combination`` is z + dt times the weighted stages, with a dt for each sample, or the latter alone."""
    _is_right(backend, kernels.stage_combination)


@contract("backend")
def error_norm_is_right(backend: Backend) -> None:
    """``error_norm`` is the root mean square of the error in units of the tolerance."""
    _is_right(backend, kernels.error_norm)


@contract("backend")
def norms_are_in_float32_at_least(backend: Backend) -> None:
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
def takes_parts_of_larger_tensors(backend: Backend) -> None:
    """A history may be a part of a larger one and a row one of its rows.

    States and weights may have any strides.
    """
    device, dtype = device_of(backend), widest(backend)
    for n in (5, 129):
        for kernel in KERNELS:
            found = kernel(backend, _Strided(dtype, device), 3, n)
            _compare(
                found,
                kernel(backend, Draw(dtype, device), 3, n),
                dtype,
                f"called {kernel.__name__} on parts of larger tensors, n={n}",
            )


class _Strided(Draw):
    """The same values: histories and rows as parts of a larger history, states with the batch last in memory."""

    def __call__(self, *shape: int) -> Tensor:
        value = super().__call__(*shape)
        if len(shape) < 3:
            return value.T.contiguous().T
        larger = value.new_full((shape[0], shape[1] + 4, shape[2]), torch.nan)
        larger[:, 2:-2] = value
        return larger[:, 2:-2]


@contract("backend")
def writes_to_out(backend: Backend) -> None:
    """``out`` gets the result of ``residual`` and of ``axpy_history``, and is what they return.

    That of ``axpy_history`` may be the row itself.
    """
    device, dtype = device_of(backend), widest(backend)
    for n in (1, 129):
        draw = Draw(dtype, device)
        fz, z, out = draw(3, n), draw(3, n), draw(3, n)
        expected = backend.residual(fz, z).value
        _is_out(backend.residual(fz, z, out).value, out, expected, "residual", dtype)
        larger, weights, fresh = draw(3, 6, n), draw(3, 1, 4), draw(3, 1, n)
        row, history = larger[:, 5:], larger[:, :4]
        expected = backend.axpy_history(row, weights, history, 0.5)
        _is_out(
            backend.axpy_history(row, weights, history, 0.5, out=fresh),
            fresh,
            expected,
            "axpy_history",
            dtype,
        )
        _is_out(
            backend.axpy_history(row, weights, history, 0.5, out=row),
            row,
            expected,
            "mix (out is the row)",
            dtype,
        )


def _is_out(value: Tensor, out: Tensor, expected: Tensor, name: str, dtype: torch.dtype) -> None:
    did = f"called {name} with out"
    _compare((value, out), (expected, expected), dtype, f"{did}, compared with the call without")
    expect(value.data_ptr() == out.data_ptr(), did, "another tensor", "out itself")


@contract("backend")
def no_input_mutation(backend: Backend) -> None:
    """No kernel changes what it is given, ``out`` apart."""
    device, dtype = device_of(backend), widest(backend)
    for kernel in KERNELS:
        draw, before = Draw(dtype, device), Draw(dtype, device)
        kernel(backend, draw, 3, 129)
        kernel(REFERENCE, before, 3, 129)
        for place, (a, b) in enumerate(zip(draw.drawn, before.drawn, strict=True)):
            expect_equal(a, b, f"called {kernel.__name__}, looked at argument {place}")


@contract("backend")
def per_sample(backend: Backend) -> None:
    """A NaN in one sample leaves the others as they are."""
    device, dtype = device_of(backend), widest(backend)
    for kernel in KERNELS:
        clean = kernel(backend, Draw(dtype, device), 3, 129)
        spoiled = kernel(backend, _Spoiled(dtype, device), 3, 129)
        for a, b in zip(spoiled, clean, strict=True):
            expect_equal(
                a[[0, 2]],
                b[[0, 2]],
                f"called {kernel.__name__} with a NaN in sample 1, compared the others",
            )


class _Spoiled(Draw):
    def __call__(self, *shape: int) -> Tensor:
        value = super().__call__(*shape)
        value[1] = torch.nan
        return value


@contract("backend")
def differentiates_as_it_says(backend: Backend) -> None:
    """Where it is differentiable, first and second derivatives of each kernel are right.

    Else no result has a graph.
    """
    device, dtype = device_of(backend), widest(backend)
    for kernel in KERNELS:
        if backend.differentiable:
            for n in (3, 129):
                found, expected = (
                    _derivatives(each, kernel, dtype, device, n) for each in (backend, REFERENCE)
                )
                for order, (a, b) in enumerate(zip(found, expected, strict=True), 1):
                    did = f"took derivative {order} of {kernel.__name__} with n={n}"
                    expect_close(a, b, did, 1e5 * torch.finfo(dtype).eps)
        else:
            with_graph = any(
                value.requires_grad
                for value in kernel(backend, Draw(dtype, device, learns=True), 2, 3)
            )
            expect(
                not with_graph,
                f"called {kernel.__name__} of a backend that is not differentiable",
                "a graph",
                "none",
            )


def _derivatives(
    backend: Backend, kernel: Kernel, dtype: torch.dtype, device: str, n: int
) -> tuple[Tensor, Tensor]:
    """The first and the second derivative of a function of the results by all arguments, each as one vector."""
    draw = Draw(dtype, device, learns=True)
    total = torch.cat(
        [value.square().sin().flatten() for value in kernel(backend, draw, 2, n)]
    ).sum()
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


@contract("backend")
def takes_or_refuses_other_dtypes(backend: Backend) -> None:
    """A state of a dtype that it does not declare is an error, or right all the same."""
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
            _compare(
                found,
                expected,
                dtype,
                f"called {kernel.__name__} in {dtype}, which it does not declare",
            )


@contract("backend")
def solves_as_the_reference_does(backend: Backend) -> None:
    """Anderson, Broyden and Tsit5 find with it what they find with the torch backend, and so do their gradients."""
    device, dtype = device_of(backend), widest(backend)
    bound = 1e-6 if dtype == torch.float64 else 1e-3
    tol = 1e-9 if dtype == torch.float64 else 1e-5
    for solver in (Anderson(tol=tol), Broyden(tol=tol)):
        found, expected = (_root(solver, each, dtype, device) for each in (backend, REFERENCE))
        expect_close(
            found,
            expected,
            f"solved by {type(solver).__name__}, compared z and the gradients with the "
            "torch backend",
            bound,
        )
    found, expected = (_way(each, dtype, device) for each in (backend, REFERENCE))
    expect_close(found, expected, "integrated by Tsit5, compared with the torch backend", bound)


def _root(solver: Any, backend: Backend, dtype: torch.dtype, device: str) -> Tensor:
    cell, x = (
        Cell(n=129, dtype=dtype).to(device),
        inputs(3, 129, dtype=dtype).to(device).requires_grad_(),
    )
    z = (
        fixed_point(cell, torch.zeros_like(x), x, solver=solver, backend=backend)
        .raise_if_failed()
        .z
    )
    found = torch.autograd.grad(z.square().sum(), [x, *cell.parameters()])
    return torch.cat([z.detach().flatten(), *(g.flatten() for g in found)])


@torch.no_grad()
def _way(backend: Backend, dtype: torch.dtype, device: str) -> Tensor:
    field, x = Driven(n=129, dtype=dtype).to(device), inputs(3, 129, dtype=dtype).to(device)
    times = torch.tensor([0.0, 1.0], dtype=dtype, device=device)
    return (
        integrate(field, x, x, times=times, solver=Tsit5(rtol=1e-5, atol=1e-6), backend=backend)
        .raise_if_failed()
        .z
    )
