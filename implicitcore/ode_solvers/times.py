"""The output times of an integration."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from implicitcore.errors import InputError
from implicitcore.tensors.like import described
from implicitcore.tensors.norms import clock_dtype

Times = Tensor | Sequence[float] | None
"""Output times as they are given."""


def as_times(times: Any) -> Any:
    """Numbers as a tensor, in float64; what is none is left to :func:`check_times`."""
    if not isinstance(times, Sequence) or isinstance(times, str):
        return times
    try:
        return torch.tensor(times, dtype=torch.float64, device="cpu")
    except (TypeError, ValueError, RuntimeError):
        return times


def span(horizon: float, z0: Any) -> Tensor:
    """From 0 to a horizon, for a state."""
    like = next(iter(pytree.tree_leaves(z0)), None)
    if not isinstance(like, Tensor):  # no state, as packing it will say
        return torch.tensor([0.0, horizon])
    dtype = torch.float64 if like.dtype == torch.float64 else torch.float32
    return torch.tensor([0.0, horizon], dtype=dtype, device=like.device)


def check_times(times: Tensor, z0: Tensor, *, bounded: bool = True) -> Tensor:
    """The output times, ready for an integration: on the device of ``z0``, in a real dtype.

    They keep their dtype where it is finer than that of ``z0``: far from zero t has few digits left
    for dt.

    Raises:
        InputError: says what was received and what was expected.
    """
    if not isinstance(times, Tensor) or times.ndim != 1 or len(times) < 2:
        found = (
            f"a tensor of shape {list(times.shape)}"
            if isinstance(times, Tensor)
            else f"a {type(times).__name__}"
        )
        raise InputError(f"times: expected a tensor of shape [T] with T >= 2, received {found}")
    if times.requires_grad:
        raise InputError(
            "times: received a tensor that requires a gradient; the gradient with respect "
            "to times is not computed"
        )
    strided = not times.is_meta and times.layout is torch.strided
    if times.is_complex() or times.dtype == torch.bool or not strided:
        raise InputError(f"times: expected real numbers, received {described(times)}")
    grid = times.to(z0.device, clock_dtype(times, z0))
    steps = grid.diff()
    if not bool((steps > 0).all() | (steps < 0).all()):
        hint = (
            "; a span of length zero has no direction: z there is z0"
            if bool((steps == 0).all())
            else ""
        )
        raise InputError(
            f"times: expected strictly increasing or decreasing values in {grid.dtype}, "
            f"received {times.tolist()}{hint}"
        )
    if not bool(grid[: None if bounded else -1].isfinite().all()):
        raise InputError(f"times: expected finite values, received {times.tolist()}")
    return grid


def signed(size: Tensor, like: Tensor) -> Tensor:
    """A positive size with the sign of the other; by a choice in a graph, for ONNX has no sign."""
    if torch.compiler.is_compiling():
        return torch.where(like < 0, -size, size)
    return torch.copysign(size, like)
