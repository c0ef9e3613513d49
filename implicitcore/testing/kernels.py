"""The kernels of a backend, each called with random arguments."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from implicitcore.backends.base import Backend
from implicitcore.tensors.norms import real_dtype
from implicitcore.testing.expect import NotApplicable, expect_close

# Around a block of 128 threads or lanes, and no entries.
SIZES = (0, 1, 127, 128, 129, 1000)
BATCHES = (0, 1, 3)
WEIGHTS = (0.5, 0.0, -1.25, 2.0)
# How far rounding may move a result, in units in the last place of its dtype.
ULPS = 8


class Draw:
    """Random arguments, the same in each instance.

    Arguments:
        dtype: of states.
        device: where they are.
        rounded: the dtype to which the values are rounded first, for the arguments of a
            reference in a wider dtype.
        requires_grad: of the arguments.

    Attributes:
        drawn: all arguments, in order.
    """

    def __init__(
        self,
        dtype: torch.dtype,
        device: str,
        *,
        rounded: torch.dtype | None = None,
        requires_grad: bool = False,
    ) -> None:
        self.dtype, self.device, self.rounded = dtype, device, rounded or dtype
        self.requires_grad = requires_grad
        self.generator = torch.Generator().manual_seed(0)
        self.drawn: list[Tensor] = []

    def __call__(self, *shape: int) -> Tensor:
        """A state or a history."""
        return self._next(shape, self.dtype, self.rounded)

    def dt(self, batch: int) -> Tensor:
        """Step sizes, in the dtype in which solvers keep them."""
        return self._next((batch,), _real(self.dtype), _real(self.rounded))

    def _next(self, shape: tuple[int, ...], dtype: torch.dtype, rounded: torch.dtype) -> Tensor:
        widest = torch.complex128 if rounded.is_complex else torch.float64
        value = (
            torch.randn(*shape, generator=self.generator, dtype=widest)
            .to(rounded)
            .to(self.device, dtype)
        )
        self.drawn.append(value.requires_grad_(self.requires_grad))
        return value


def _real(dtype: torch.dtype) -> torch.dtype:
    return real_dtype(torch.empty(0, dtype=dtype))


Kernel = Callable[[Backend, Draw, int, int], tuple[Tensor, ...]]


def residual(backend: Backend, draw: Draw, batch: int, n: int) -> tuple[Tensor, ...]:
    """Value and both norms."""
    return tuple(backend.residual(draw(batch, n), draw(batch, n)))


def inner_products(backend: Backend, draw: Draw, batch: int, n: int) -> tuple[Tensor, ...]:
    """A row with four others."""
    return (backend.inner_products(draw(batch, 4, n), draw(batch, 1, n)),)


def axpy_history(backend: Backend, draw: Draw, batch: int, n: int) -> tuple[Tensor, ...]:
    """With a row and without one, and with a scale."""
    row, weights, history = draw(batch, 1, n), draw(batch, 1, 4), draw(batch, 4, n)
    return (
        backend.axpy_history(row, weights, history),
        backend.axpy_history(row, weights, history, -0.75),
        backend.axpy_history(None, weights, history, 2.0),
    )


def stage_combination(backend: Backend, draw: Draw, batch: int, n: int) -> tuple[Tensor, ...]:
    """With a state and without one, with one dt for all; one of the weights is zero."""
    z, dt, stages = draw(batch, n), draw.dt(batch), [draw(batch, n) for _ in WEIGHTS]
    return (
        backend.stage_combination(z, dt, stages, WEIGHTS),
        backend.stage_combination(None, dt, stages, WEIGHTS),
        backend.stage_combination(z, dt, stages[:1], [-3.0]),
        backend.stage_combination(z, dt.new_tensor(0.25), stages, WEIGHTS),
    )


def error_norm(backend: Backend, draw: Draw, batch: int, n: int) -> tuple[Tensor, ...]:
    """At two pairs of tolerances."""
    error, z, z_next = draw(batch, n), draw(batch, n), draw(batch, n)
    return backend.error_norm(error, z, z_next, 0.1, 0.5), backend.error_norm(
        error, z, z_next, 0.5, 0.1
    )


KERNELS: tuple[Kernel, ...] = (
    residual,
    inner_products,
    axpy_history,
    stage_combination,
    error_norm,
)


def rounding(dtype: torch.dtype, terms: int = 0) -> float:
    """How far a result may be off, relative.

    It is rounded to the dtype; its sums, of so many terms, are rounded to the dtype of norms, and
    their errors add up as a random walk.
    """
    return ULPS * torch.finfo(dtype).eps + terms**0.5 * torch.finfo(_real(dtype)).eps


def expect_results(
    found: tuple[Tensor, ...], expected: tuple[Tensor, ...], did: str, bound: float
) -> None:
    """The results of a kernel, up to an error of ``bound`` in each."""
    for place, (a, b) in enumerate(zip(found, expected, strict=True)):
        expect_close(a.detach().to(b), b.detach(), f"{did}, result {place}", bound)


def device_of(backend: Backend) -> str:
    """A device of this machine that the backend runs on.

    Raises:
        NotApplicable: it cannot run here.
    """
    reason = backend.unavailable_reason()
    if reason is not None:
        raise NotApplicable(f"it cannot run here: {reason}")
    available = torch.accelerator.is_available()
    accelerator = torch.accelerator.current_accelerator() if available else None
    present = ["cpu", *([] if accelerator is None else [accelerator.type])]
    found = [device for device in present if device in backend.device_types]
    if not found:
        raise NotApplicable(
            f"it runs on {', '.join(backend.device_types)}, this machine has {', '.join(present)}"
        )
    return found[-1]


def widest(backend: Backend) -> torch.dtype:
    """The most exact real dtype that it takes."""
    for dtype in (torch.float64, torch.float32):
        if dtype in backend.dtypes:
            return dtype
    raise NotApplicable("it takes neither float64 nor float32")
