"""The kernels of a backend, each called with drawn arguments."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from implicitcore.backends.base import Backend
from implicitcore.tensors.norms import real_dtype
from implicitcore.testing.expect import NotApplicable

# Around the block of 128 threads or lanes that kernels like; and nothing at all.
SIZES = (0, 1, 127, 128, 129, 1000)
BATCHES = (0, 1, 3)
WEIGHTS = (0.5, 0.0, -1.25, 2.0)


class Draw:
    """Random arguments: the same ones for each of the same seed.

    Arguments:
        dtype: of states.
        device: where they are.
        rounded: the dtype to which the values are rounded first, for a reference without rounding
            of its own.
        learns: they require a gradient.

    Attributes:
        drawn: all of them, in order.
    """

    def __init__(
        self,
        dtype: torch.dtype,
        device: str,
        *,
        rounded: torch.dtype | None = None,
        learns: bool = False,
    ) -> None:
        self.dtype, self.device, self.rounded, self.learns = dtype, device, rounded or dtype, learns
        self.generator = torch.Generator().manual_seed(0)
        self.drawn: list[Tensor] = []

    def __call__(self, *shape: int) -> Tensor:
        """A state or a history."""
        return self._give(shape, self.dtype, self.rounded)

    def dt(self, batch: int) -> Tensor:
        """Step sizes, in the dtype in which solvers keep them."""
        return self._give((batch,), _real(self.dtype), _real(self.rounded))

    def _give(self, shape: tuple[int, ...], dtype: torch.dtype, rounded: torch.dtype) -> Tensor:
        widest = torch.complex128 if rounded.is_complex else torch.float64
        value = (
            torch.randn(*shape, generator=self.generator, dtype=widest)
            .to(rounded)
            .to(self.device, dtype)
        )
        self.drawn.append(value.requires_grad_(self.learns))
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
    """With a state and without one; one of the weights is zero."""
    z, dt, stages = draw(batch, n), draw.dt(batch), [draw(batch, n) for _ in WEIGHTS]
    return (
        backend.stage_combination(z, dt, stages, WEIGHTS),
        backend.stage_combination(None, dt, stages, WEIGHTS),
        backend.stage_combination(z, dt, stages[:1], [-3.0]),
    )


def error_norm(backend: Backend, draw: Draw, batch: int, n: int) -> tuple[Tensor, ...]:
    """At unlike tolerances."""
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


def device_of(backend: Backend) -> str:
    """A device that is here and that it runs on.

    Raises:
        NotApplicable: it cannot run here.
    """
    reason = backend.unavailable_reason()
    if reason is not None:
        raise NotApplicable(f"it cannot run here: {reason}")
    available = torch.accelerator.is_available()
    accelerator = torch.accelerator.current_accelerator() if available else None
    here = ["cpu"] if accelerator is None else ["cpu", accelerator.type]
    found = [device for device in here if device in backend.device_types]
    if not found:
        raise NotApplicable(
            f"it runs on {', '.join(backend.device_types)}, and here is {', '.join(here)}"
        )
    return found[-1]


def widest(backend: Backend) -> torch.dtype:
    """The most exact real dtype that it takes."""
    for dtype in (torch.float64, torch.float32):
        if dtype in backend.dtypes:
            return dtype
    raise NotApplicable("it takes neither float64 nor float32")
