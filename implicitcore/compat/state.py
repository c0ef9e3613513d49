"""A state of torchdiffeq as one sample of ours."""

from __future__ import annotations

from collections.abc import Callable
from math import prod
from typing import Any

import torch
from torch import Tensor, nn

from implicitcore.errors import GradientError, InputError

State = Tensor | tuple[Tensor, ...]


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
        return torch.cat([part.reshape(-1) for part in parts]).unsqueeze(0)

    def unpack(self, z: Tensor) -> Any:
        """``[..., n]`` in the shapes of the state, with the leading dimensions in front of each."""
        parts = z.split([prod(shape) for shape in self.shapes], -1)
        shaped = tuple(
            part.reshape((*z.shape[:-1], *shape))
            for part, shape in zip(parts, self.shapes, strict=True)
        )
        return shaped[0] if self.single else shaped


class Field(nn.Module):
    """func(t, y) as a vector field of ours, on one row."""

    def __init__(self, func: Callable[[Tensor, Any], Any], layout: Layout) -> None:
        super().__init__()
        self.func, self.layout = func, layout

    def forward(self, t: Tensor, z: Tensor, x: None = None) -> Tensor:
        """dz/dt, ``[1, n]``, at the one time in t."""
        del x
        return self.layout.pack(self.func(t.reshape(()), self.layout.unpack(z[0])), "func")


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
                "the gradient with respect to times and events is a first derivative; a "
                "second one is not computed"
            )
        (slope,), v = ctx.saved_tensors, grad_outputs[0]
        return v, None, (v * slope.conj()).real.sum().to(ctx.like).reshape(ctx.like.shape)
