"""Output times as a graph takes them."""

from __future__ import annotations

from typing import Any, NamedTuple, overload

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from implicitcore.errors import GradientError, InputError
from implicitcore.gradients.output_times import Moves, differentiated, repeated
from implicitcore.graph.stepped import Clock
from implicitcore.layers.call import times_of
from implicitcore.ode_solvers.times import (
    RepeatedTimesError,
    Times,
    check_times,
    distinct,
    packed_times,
)
from implicitcore.tensors.norms import clock_dtype


class OutputTimes(NamedTuple):
    """The output times of a call.

    Attributes:
        all: as the result has them, ``[T]`` or ``[T, batch]``.
        distinct: of which none is the same as the one before, ``[K]`` or ``[K, batch]``.
        row: of each its own among the distinct ones, shaped like ``all``; None where all are.
        moves: with respect to which a gradient is wanted, where one is.
    """

    all: Tensor
    distinct: Tensor
    row: Tensor | None
    moves: Moves | None

    def states(self, z: Tensor) -> Tensor:
        """Those at all times, of those at the distinct ones ``[K, batch, n]``."""
        return z if self.row is None else repeated(z, self.row)


def checked_times(solver: Any, times: Times, flat: Tensor, *, coupled: bool) -> OutputTimes | None:
    """The output times of a call as the layer reads them; None: there are none.

    Arguments:
        solver: of the layer.
        times: as they were given.
        flat: where the integration begins, packed.
        coupled: the batch is one sample.

    Raises:
        InputError: the solver has none, or they cannot be used.
        GradientError: they have a tangent of forward mode.
    """
    if times is None:
        return None
    found = times_of(solver, flat, times, 1.0)
    found, moves = packed_times(found, len(flat), coupled=coupled), None
    if differentiated(found):
        moves = Moves.of(found, flat) if torch.is_grad_enabled() else None
        found = found.detach()
    try:
        grid = check_times(found, flat, of_each=True)
    except RepeatedTimesError:
        grid = found.to(flat.device, clock_dtype(found, flat))
        apart, index = distinct(grid)
        return OutputTimes(grid, check_times(apart, flat, of_each=True), index, moves)
    return OutputTimes(grid, grid, None, moves)


def refuse_gradient(times: Times) -> None:
    """Refuse times with a gradient, which the operations of a loop in a graph do not have.

    Raises:
        GradientError: they require one.
    """
    if isinstance(times, Tensor) and times.requires_grad and torch.is_grad_enabled():
        raise GradientError(
            "times: in a graph a layer has no gradient with respect to them; give times.detach(), "
            "or compile the layer: ic.compile(layer)"
        )


def times_in_graph(solver: Any, times: Times, state: Any, *, coupled: bool) -> Tensor | None:
    """The same while a graph is traced, where their shape is known and not their values.

    Raises:
        InputError: the solver has none, or they have another shape.
    """
    if times is None:
        return None
    found = times_of(solver, state, times, 1.0)
    like = pytree.tree_leaves(state)[0]
    if not isinstance(found, Tensor) or found.ndim not in (1, 2) or found.shape[-1] < 2:
        shape = f"shape {list(found.shape)}" if isinstance(found, Tensor) else f"{type(found)}"
        raise InputError(
            "times: expected a tensor of shape [T] with T >= 2, or [batch, T] for those of each "
            f"sample, received {shape}"
        )
    found = packed_times(found, like.shape[0], coupled=coupled)
    return found.to(like.device, clock_dtype(found, like))


def clock_of(times: Tensor | None) -> Clock | None:
    """What a graph is made for, of the times as they are integrated over."""
    return None if times is None else Clock(times.dtype, between=len(times) > 2)


@overload
def of_samples(times: Tensor, flat: Tensor) -> Tensor: ...
@overload
def of_samples(times: None, flat: Tensor) -> None: ...
def of_samples(times: Tensor | None, flat: Tensor) -> Tensor | None:
    """Those of each sample, ``[T, batch]``, of ``[T]`` or these."""
    if times is None:
        return None
    if times.ndim > 1:
        return times.contiguous()
    return times.unsqueeze(1).expand(-1, flat.shape[0]).contiguous()


@torch.library.custom_op("implicitcore::distinct_times", mutates_args=())
def distinct_times(times: Tensor) -> tuple[Tensor, Tensor]:
    """As many times of which none is the same as the one before, and the index of each among them.

    See :func:`~implicitcore.ode_solvers.times.distinct`. Times that are no output times at all are
    given back, for the solve to refuse them.

    Arguments:
        times: ``[T]`` or ``[T, batch]``.
    """
    steps = times.diff(dim=0)
    in_order = ((steps >= 0).all(0) | (steps <= 0).all(0)).all() & times.isfinite().all()
    if bool(in_order) and not bool(steps.all()):
        apart, index = distinct(times, len(times))
        return apart.clone(), index.clone()
    place = torch.arange(len(times), device=times.device)
    return times.clone(), place.reshape(-1, *(1,) * (times.ndim - 1)).expand_as(times).clone()


@distinct_times.register_fake
def _(times: Tensor) -> tuple[Tensor, Tensor]:
    return torch.empty_like(times), torch.empty_like(times, dtype=torch.int64)
