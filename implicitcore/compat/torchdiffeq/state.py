"""A state of torchdiffeq as one sample of ours."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from math import prod
from typing import Any

import torch
from torch import Tensor, nn

from implicitcore.errors import GradientError, InputError
from implicitcore.tensors.norms import real_dtype

State = Tensor | tuple[Tensor, ...]
Function = Callable[[Tensor, Any], Any]


class Layout:
    """The shape of a tensor, or those of a tuple of tensors, in one row.

    Arguments:
        y0: the state.

    Raises:
        InputError: it is neither.
    """

    def __init__(self, y0: Any) -> None:
        parts = (y0,) if isinstance(y0, Tensor) else y0
        if not (
            isinstance(parts, tuple) and parts and all(isinstance(part, Tensor) for part in parts)
        ):
            raise InputError(
                f"y0: expected a tensor or a tuple of tensors, received a {type(y0).__name__}"
            )
        self.single = isinstance(y0, Tensor)
        self.shapes = [tuple(part.shape) for part in parts]

    def pack(self, y: Any, what: str) -> Tensor:
        """``[1, n]``.

        Raises:
            InputError: the shapes are not those of y0.
        """
        parts = (y,) if isinstance(y, Tensor) else tuple(y)
        found = [tuple(part.shape) for part in parts]
        if found != self.shapes:
            raise InputError(
                f"{what}: received shapes {[*map(list, found)]}, expected those of y0, "
                f"{[*map(list, self.shapes)]}"
            )
        if self.single:
            return parts[0].reshape(1, -1)
        return torch.cat([part.reshape(-1) for part in parts]).unsqueeze(0)

    def unpack(self, z: Tensor) -> Any:
        """``[..., n]`` in the shapes of the state, with the leading dimensions in front of each."""
        lead = z.shape[:-1]
        if self.single:
            return z.reshape((*lead, *self.shapes[0]))
        parts, first = [], 0
        for shape in self.shapes:
            parts.append(z[..., first : first + prod(shape)].reshape((*lead, *shape)))
            first += prod(shape)
        return tuple(parts)


class Field(nn.Module):
    """func(t, y) as a vector field of ours, on one row.

    Arguments:
        func: torchdiffeq's.
        layout: of its y.
    """

    def __init__(self, func: Function, layout: Layout) -> None:
        super().__init__()
        self.func, self.layout = func, layout
        self.bounds: tuple[Tensor, Tensor] | None = None

    def forward(self, t: Tensor, z: Tensor, x: None = None) -> Tensor:
        """dz/dt, ``[1, n]``, at the one time in t."""
        del x
        t = t.reshape(())
        if self.bounds is not None:
            inner = t.detach().clamp(*self.bounds)
            t = t + (inner - t.detach()) if t.requires_grad else inner  # exact: they are close
        return self.layout.pack(self.func(t, self.layout.unpack(z[0])), "func")

    @contextmanager
    def between(self, z: Tensor, begin: Tensor | None, end: Tensor | None) -> Iterator[None]:
        """Evaluate at no time before ``begin`` or from ``end`` on, in the order of integration.

        Times there are moved inside by the least that their dtype can show: the field may jump at
        these two.

        Arguments:
            z: the state, in whose real dtype the field receives t.
            begin: the first time ``[1]``, or None where there is no bound.
            end: the last time ``[1]``, later or earlier than the first.
        """
        if begin is None and end is None:
            yield
            return
        self.bounds = _inside(real_dtype(z), begin, end)
        try:
            yield
        finally:
            self.bounds = None


@torch.no_grad()
def _inside(dtype: torch.dtype, begin: Tensor | None, end: Tensor | None) -> tuple[Tensor, Tensor]:
    """The least and the largest time strictly between the two (see :meth:`Field.between`)."""
    ends = [None if t is None else t.detach().reshape(()).to(dtype) for t in (begin, end)]
    device = next(t.device for t in ends if t is not None)
    low, high = (
        torch.tensor(sign * torch.inf, dtype=dtype, device=device) if t is None else t
        for t, sign in zip(ends, (-1, 1), strict=True)
    )
    if low > high:
        low, high = high, low
    return torch.nextafter(low, high), torch.nextafter(high, low)


def moved(value: Tensor, slope: Tensor, shift: Tensor) -> Tensor:
    """The value, whose derivative by the scalar ``shift`` is ``slope``.

    A point of a curve that is known at this one place.

    Raises:
        GradientError: from a second derivative.
    """
    return _Moved.apply(value, slope.detach(), shift)


class _Moved(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, value: Tensor, slope: Tensor, shift: Tensor) -> Tensor:
        ctx.save_for_backward(slope)
        ctx.like = shift
        return value.view_as(value)

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Any) -> Any:
        if torch.is_grad_enabled():
            raise GradientError(
                "the gradient with respect to an event is a first derivative; a second one is not "
                "computed"
            )
        (slope,), v = ctx.saved_tensors, grad_outputs[0]
        return v, None, (v * slope.conj()).real.sum().to(ctx.like).reshape(ctx.like.shape)
