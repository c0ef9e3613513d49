"""What a compiled trajectory is made of beside its loop: times, states of the solver, one step."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from implicitcore.graph.integration import begins_anew
from implicitcore.graph.plan import Plan
from implicitcore.graph.system import GraphField
from implicitcore.graph.trace import Kind
from implicitcore.ode_solvers.base import Step
from implicitcore.ode_solvers.dense import StepStart
from implicitcore.ode_solvers.recorder import extended
from implicitcore.system.problem import rounding_of
from implicitcore.tensors.norms import real_dtype


class Clock(NamedTuple):
    """The output times of a call, as far as a graph depends on them.

    Attributes:
        dtype: that of t and dt.
        between: there are more of them than the first and the last.
    """

    dtype: torch.dtype
    between: bool


@dataclass(frozen=True, eq=False)
class SteppedPlan(Plan):
    """A plan whose solver takes steps.

    Attributes:
        clock: of a call with output times; None: from 0 to the horizon.
    """

    clock: Clock | None = None

    @property
    def between(self) -> bool:
        """Whether states between the ends of the steps are wanted."""
        return self.clock is not None and self.clock.between

    @property
    def anew(self) -> bool:
        """Whether a step leaves nothing to the next but z."""
        return begins_anew(self.solver, between=self.between)

    @cached_property
    def clock_time(self) -> Kind:
        """Of the time of each sample, as the steps keep it."""
        z = self.kinds[0]
        dtype = real_dtype(z.example()) if self.clock is None else self.clock.dtype
        return z._replace(shape=z.shape[:1], dtype=dtype, requires_grad=False)

    @cached_property
    def moment(self) -> Kind:
        """See :attr:`Plan.moment`."""
        return self.clock_time if self.dynamics.exact_time else super().moment

    @cached_property
    def state(self) -> list[Kind]:
        """Of the leaves of the solver's state that a step hands on; none where it hands on none."""
        return [] if self.anew else self.start_state

    @cached_property
    def start_state(self) -> list[Kind]:
        """Of the leaves of the solver's state that a step begins with."""
        t, z, field = *self.still, self.stillness
        leaves = pytree.tree_leaves(self.solver.init(field, t, z))
        return [Kind.of(leaf, self.kinds[0].has_batch) for leaf in leaves]

    @cached_property
    def carried(self) -> list[int]:
        """The places of the leaves of the solver's state that have a gradient."""
        return differentiable(self.state)

    @cached_property
    def _tried(self) -> tuple[Any, int]:
        """The structure of the solver's state, and how many coefficients a piece has.

        By a step with numbers, for what a solver computes at its first one and keeps is no fake.
        """
        t, z, field = *self.still, self.stillness
        state, dt = self.solver.init(field, t, z), t.to(real_dtype(z))
        start, accept = StepStart(t, dt, z, state), torch.ones_like(t, dtype=torch.bool)
        _, piece = self.stepped(field, start, t, accept)
        return pytree.tree_structure(state), len(piece)

    @property
    def structure(self) -> Any:
        """That of the solver's state."""
        return self._tried[0]

    @property
    def coefficients(self) -> int:
        """Of the continuous extension of a step; none where it is not wanted."""
        return self._tried[1]

    def stepped(
        self, field: GraphField, start: StepStart, end: Tensor, accept: Tensor | None
    ) -> tuple[Step, list[Tensor]]:
        """A step, with its continuous extension where that is wanted."""
        step = self.solver.step(field, *start)
        if not self.between:
            return step, []
        return extended(self.solver, field, start, step, end, accept)  # pyright: ignore[reportArgumentType] - all that it asks of a system

    def field_of(self, velocity: Callable[[Tensor, Tensor], Tensor]) -> GraphField:
        """The vector field whose velocity that is."""
        rounding = rounding_of(self.dynamics.is_map(), self.kinds[0].dtype)
        return GraphField(velocity, self.dynamics.scale, rounding)

    def field_known(self, known: Sequence[Tensor]) -> GraphField:
        """The vector field, of what f makes of its tensors before a solve."""
        value, dtype = self.field, self.moment.dtype
        return self.field_of(lambda t, z: value.inside(t.to(dtype), z, *known)[0].clone())

    @property
    def still(self) -> tuple[Tensor, Tensor]:
        t, z = self.clock_time.example(), self.kinds[0].example()
        return torch.zeros_like(t), torch.zeros_like(z)

    @property
    def stillness(self) -> GraphField:
        return self.field_of(lambda t, z: torch.zeros_like(z))


def differentiable(kinds: Sequence[Kind]) -> list[int]:
    """The places of those of floating point numbers."""
    return [i for i, kind in enumerate(kinds) if kind.dtype.is_floating_point]
