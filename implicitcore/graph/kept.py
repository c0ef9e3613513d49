"""The steps of an integration in a graph, as a loop keeps them."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch._higher_order_ops.while_loop import (
    while_loop,
    while_loop_op,
    while_loop_stack_output_op,
)
from torch.utils import _pytree as pytree


class Kept(NamedTuple):
    """The steps of an integration, where there may be room for more of them.

    A graph is made for the room, which changes less often than the number of steps.
    """

    steps: Tensor  # int64, how many
    first: list[Tensor]  # the leaves of the solver's state before the first
    t: Tensor  # [room, batch], after each
    z: Tensor  # [room, batch, n], after each
    dt: Tensor  # [room, batch], see Taken
    accept: Tensor  # [room, batch] bool
    states: list[Tensor]  # [room, batch, ...], the leaves of the solver's state after each

    def flat(self) -> list[Tensor]:
        """All of them."""
        return [self.steps, *self.first, self.t, self.z, self.dt, self.accept, *self.states]

    @classmethod
    def of(cls, tensors: Sequence[Tensor], count: int) -> Kept:
        """From :meth:`flat`, of a state with so many leaves."""
        (steps, *first), rest = tensors[: 1 + count], tensors[1 + count :]
        t, z, dt, accept, *states = rest
        return cls(steps, first, t, z, dt, accept, states)

    def of_samples(self, rows: Tensor) -> Kept:
        """The same with other samples ``[batch]`` in the places of some."""
        first = [leaf.index_select(0, rows) for leaf in self.first]
        rest = (leaf.index_select(1, rows) for leaf in self.flat()[1 + len(first) :])
        return Kept.of([self.steps, *first, *rest], len(first))


class Room:
    """For how many steps there is room before they are counted: as many as there were, or more.

    Arguments:
        size: bytes of a step; zero where the batch is empty.
    """

    def __init__(self, size: int) -> None:
        self.steps = max(_LEAST, min(_MOST, _MEMORY // max(size, 1)))

    @classmethod
    def of_steps(cls, size: int, device: torch.device, *, cuda_graphs: bool) -> Room | None:
        """For steps of so many bytes; None where a loop of Python keeps them."""
        loops = cuda_graphs or device.type == "cpu"
        largest = LARGEST_IN_GRAPHS if cuda_graphs else LARGEST
        return cls(size) if loops and size <= largest else None

    def grow(self, steps: int) -> None:
        """After room for so many was not enough; another thread may have seen it, too."""
        self.steps = max(self.steps, 4 * steps)

    def used(self, count: int) -> None:
        """After so many steps."""
        if count * 8 < self.steps > _LEAST:
            self.steps //= 2


_LEAST, _MOST, _MEMORY = 16, 512, 2**20
_WRITES = "mutated_arg_indices" in inspect.signature(type(while_loop_op).__call__).parameters
LARGEST = 2**16 if _WRITES else -1
"""The bytes of a step above which a loop of Python keeps it: its evaluations are the cost there,
and the room for steps that are not taken. Before torch 2.13 a loop writes to nothing but what it
carries, and all are kept so."""

LARGEST_IN_GRAPHS = 2**20 if _WRITES else -1
"""The same where steps are CUDA graphs: a launch takes the time of more arithmetic there, but what
they write is copied from their memory and to it."""


def one_room(stacks: Sequence[Tensor]) -> int:
    """That of all of them: a graph that knows is given it once. The last row is none of it."""
    room = stacks[0].shape[0]
    for stack in stacks[1:]:
        torch._check(stack.shape[0] == room)
    return room - 1


def stacking_loop(
    going: Callable[..., Tensor], step: Callable[..., Any], carried: tuple[Any, ...]
) -> tuple[Any, ...]:
    """As ``while_loop``, with what each iteration gave in a new first dimension.

    Where it takes none, what it began with is there alone.
    """
    leaves, spec = pytree.tree_flatten(carried)

    def flat_going(*leaves: Tensor) -> Tensor:
        return going(*pytree.tree_unflatten(leaves, spec))

    def flat_step(*leaves: Tensor) -> tuple[Tensor, ...]:
        return tuple(pytree.tree_leaves(step(*pytree.tree_unflatten(leaves, spec))))

    found = while_loop_stack_output_op(flat_going, flat_step, tuple(leaves), ())
    return pytree.tree_unflatten(found, spec)


def writing_loop(
    going: Callable[..., Tensor],
    step: Callable[..., Any],
    carried: tuple[Any, ...],
    kept: Callable[..., Sequence[Tensor]],
    stacks: Sequence[Tensor],
) -> tuple[tuple[Any, ...], Tensor, Tensor]:
    """As ``while_loop``, with what is ``kept`` after each iteration in a row of the stacks.

    They are written where they are: a loop copies what it carries. An iteration behind the last
    changes nothing but the row after those that were written, for which there is one that is no
    room. Where the loop takes none, what is kept of what it began with is there, as one.

    Returns:
        What the loop ended with, the rows that were written, and whether there was no room for the
        next.
    """
    room = one_room(stacks)

    def write(index: Tensor, carried: Any) -> None:
        for stack, row in zip(stacks, kept(*carried), strict=True):
            stack.index_copy_(0, index.view(1), row.unsqueeze(0))

    def goes_on(index: Tensor, *carried: Any) -> Tensor:
        return going(*carried) & (index < room)

    def writing(index: Tensor, *carried: Any) -> tuple[Any, ...]:
        carried = step(*carried)
        write(index, carried)
        return index + 1, *carried

    index = torch.zeros((), dtype=torch.int64, device=stacks[0].device)
    begin = [row.clone() for row in kept(*carried)]
    index, *ended = while_loop(goes_on, writing, (index, *carried))
    for stack, row in zip(stacks, begin, strict=True):
        stack[0].copy_(torch.where(index == 0, row, stack[0]))
    return tuple(ended), index.clamp(min=1), going(*ended)
