"""Output times as a graph takes them."""

from __future__ import annotations

from typing import Any, overload

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from implicitcore.errors import GradientError, InputError
from implicitcore.graph.stepped import Clock
from implicitcore.layers.call import times_of
from implicitcore.ode_solvers.times import Times, check_times, packed_times
from implicitcore.tensors.norms import clock_dtype


def checked_times(solver: Any, times: Times, flat: Tensor, *, coupled: bool) -> Tensor | None:
    """The output times of a call, ``[T]`` or ``[T, batch]``, as the layer reads them; None: none.

    Arguments:
        solver: of the layer.
        times: as they were given.
        flat: where the integration begins, packed.
        coupled: the batch is one sample.

    Raises:
        InputError: the solver has none, or they cannot be used.
        GradientError: they require a gradient.
    """
    if times is None:
        return None
    found = _read(solver, times, flat)
    found = found.detach() if isinstance(found, Tensor) else found
    return check_times(packed_times(found, len(flat), coupled=coupled), flat, of_each=True)


def times_in_graph(solver: Any, times: Times, state: Any, *, coupled: bool) -> Tensor | None:
    """The same while a graph is traced, where their shape is known and not their values.

    Raises:
        InputError: the solver has none, or they have another shape.
        GradientError: they require a gradient.
    """
    if times is None:
        return None
    found = _read(solver, times, state)
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
    """What a graph is made for, of the times that :func:`checked_times` gave."""
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


def _read(solver: Any, times: Times, state: Any) -> Any:
    """What the layer makes of them, none of which requires a gradient."""
    if isinstance(times, Tensor) and times.requires_grad and torch.is_grad_enabled():
        raise GradientError(
            "times: a compiled layer has no gradient with respect to them; give times.detach(), "
            "or call the layer as it is"
        )
    return times_of(solver, state, times, 1.0)
