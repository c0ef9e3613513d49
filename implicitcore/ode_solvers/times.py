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

Times = Tensor | Sequence[float] | Sequence[Sequence[float]] | None
"""Output times as they are given."""


class RepeatedTimesError(InputError):
    """The output times do not go back, and some are the same: before anything was evaluated."""


def distinct(times: Tensor, least: int = 2) -> tuple[Tensor, Tensor]:
    """Output times of which none is the same as the one before, for :class:`RepeatedTimesError`.

    A sample with fewer of them than another has further ones in its last span, which nobody asked
    for, and one with a single time a span that is as short as it may be.

    Arguments:
        times: ``[T]``, or ``[T, batch]`` those of each sample; in order.
        least: so many are given, whatever they are.

    Returns:
        The times, ``[K]`` or ``[K, batch]``, and of each of the T the index of its own among them,
        ``[T]`` or ``[T, batch]``.
    """
    given = times if times.ndim > 1 else times.unsqueeze(1)
    first = torch.nn.functional.pad(given.diff(dim=0) != 0, (0, 0, 1, 0), value=True)
    index = first.cumsum(0) - 1
    most = index[-1:]
    size = max(int(most.max()) + 1, least)
    apart = torch.zeros_like(given[:1]).repeat(size, 1).scatter(0, index, given)
    place = torch.arange(size, device=given.device).unsqueeze(1)
    last, before = apart.gather(0, most), apart.gather(0, (most - 1).clamp(min=0))
    share = (place - most + 1) / (size - most)
    within = torch.where(place == size - 1, last, before + (last - before) * share)
    apart = torch.where(place < most, apart, within)
    short = SHORTEST * torch.finfo(given.dtype).eps * given[:1].abs().clamp(min=1)
    apart = torch.where(most == 0, given[:1] + place * short, apart)
    index = torch.where((index == most) & (most > 0), size - 1, index)
    return (apart, index) if times.ndim > 1 else (apart[:, 0], index[:, 0])


SHORTEST = 64
"""Units of rounding: the span of a sample that stays where it begins."""


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


def packed_times(times: Any, batch: int, *, coupled: bool = False) -> Any:
    """The output times as a solver takes them: those of each sample ``[batch, T]`` as [T, batch].

    Raises:
        InputError: they are not those of this batch.
    """
    if not isinstance(times, Tensor) or times.ndim != 2:
        return times
    found = f"received a tensor of shape {list(times.shape)}"
    if coupled:
        raise InputError(f"times: a coupled batch has one clock; expected shape [T], {found}")
    if len(times) != batch:
        raise InputError(
            f"times: expected a tensor of shape [T], or [{batch}, T] for those of each sample, "
            f"{found}"
        )
    return times.T


def check_times(
    times: Tensor, z0: Tensor, *, bounded: bool = True, of_each: bool = False
) -> Tensor:
    """The output times, ready for an integration: on the device of ``z0``, in a real dtype.

    They keep their dtype where it is finer than that of ``z0``: far from zero t has few digits left
    for dt.

    Arguments:
        times: ``[T]``, or ``[T, batch]``, those of each sample.
        z0: the state.
        bounded: the last may not be infinite.
        of_each: samples may have times of their own.

    Raises:
        InputError: says what was received and what was expected.
    """
    most = 2 if of_each else 1
    if not isinstance(times, Tensor) or not 1 <= times.ndim <= most or len(times) < 2:
        found = (
            f"a tensor of shape {list(times.shape)}"
            if isinstance(times, Tensor)
            else f"a {type(times).__name__}"
        )
        raise InputError(f"times: expected a tensor of shape [T] with T >= 2, received {found}")
    if times.requires_grad:
        raise InputError(
            "times: received a tensor that requires a gradient; a solver itself computes none with "
            "respect to times: integrate and layers do"
        )
    strided = not times.is_meta and times.layout is torch.strided
    if times.is_complex() or times.dtype == torch.bool or not strided:
        raise InputError(f"times: expected real numbers, received {described(times)}")
    grid = times.to(z0.device, clock_dtype(times, z0))
    steps = grid.diff(dim=0)
    strict = (steps > 0).all(0) | (steps < 0).all(0)
    if not bool(strict.all()):  # one look at a device
        in_order = (steps >= 0).all(0) | (steps <= 0).all(0)
        if not bool(in_order.all()):
            found, of_sample = _first(~in_order, times)
            raise InputError(
                f"times: expected increasing or decreasing values in {grid.dtype} (some may be the "
                f"same), received {found}{of_sample}"
            )
        found, of_sample = _first(~strict, times)
        raise RepeatedTimesError(
            "times: a solver itself takes strictly increasing or decreasing values in "
            f"{grid.dtype}, received {found}{of_sample}: integrate and layers take the same twice"
        )
    finite = grid[: None if bounded else -1].isfinite().all(0)
    if not bool(finite.all()):
        found = _first(~finite, times)
        raise InputError(f"times: expected finite values, received {found[0]}{found[1]}")
    return grid


def _first(wrong: Tensor, values: Tensor) -> tuple[list[Any], str]:
    """The values ``[T]`` of the first sample that is ``wrong``; its name where each has its own."""
    if values.ndim == 1:
        return values.tolist(), ""
    index = int(wrong.nonzero()[0])
    return values[:, index].tolist(), f" for sample {index}"


def signed(size: Tensor, like: Tensor) -> Tensor:
    """A positive size with the sign of the other; by a choice in a graph, for ONNX has no sign."""
    if torch.compiler.is_compiling():
        return torch.where(like < 0, -size, size)
    return torch.copysign(size, like)
