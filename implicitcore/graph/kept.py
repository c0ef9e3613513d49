"""The steps of an integration in a graph, as a loop keeps them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

from torch import Tensor
from torch._higher_order_ops.while_loop import while_loop_stack_output_op
from torch.utils import _pytree as pytree


class Kept(NamedTuple):
    """The steps of an integration."""

    first: list[Tensor]  # the leaves of the solver's state before the first
    t: Tensor  # [steps, batch], after each
    z: Tensor  # [steps, batch, n], after each
    dt: Tensor  # [steps, batch], see Taken
    accept: Tensor  # [steps, batch] bool
    states: list[Tensor]  # [steps, batch, ...], the leaves of the solver's state after each

    def flat(self) -> list[Tensor]:
        """All of them."""
        return [*self.first, self.t, self.z, self.dt, self.accept, *self.states]

    @classmethod
    def of(cls, tensors: Sequence[Tensor], count: int) -> Kept:
        """From :meth:`flat`, of a state with so many leaves."""
        first, rest = tensors[:count], tensors[count:]
        t, z, dt, accept, *states = rest
        return cls([*first], t, z, dt, accept, states)

    def of_samples(self, rows: Tensor) -> Kept:
        """The same with other samples ``[batch]`` in the places of some."""
        first = [leaf.index_select(0, rows) for leaf in self.first]
        rest = (leaf.index_select(1, rows) for leaf in self.flat()[len(first) :])
        return Kept.of([*first, *rest], len(first))


def stacked_loop(
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
