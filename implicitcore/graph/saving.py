"""The steps of a solver as graphs that save what their vector-Jacobian products need."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import Tensor
from torch.fx import GraphModule
from torch.utils import _pytree as pytree

from implicitcore.graph.both_ways import BothWays
from implicitcore.graph.pullback import Pullback, placed
from implicitcore.graph.stepped import SteppedPlan, differentiable
from implicitcore.graph.trace import Kind, traced
from implicitcore.ode_solvers.base import Step
from implicitcore.ode_solvers.dense import StepStart
from implicitcore.tensors.norms import real_dtype

_OPTIONAL = ("error", "order", "scaled")


@dataclass(frozen=True, eq=False)
class SavingSteps:
    """One step of a plan, and the velocity before it where the step begins anew, as graphs.

    Attributes:
        pullback: of the same plan.
    """

    pullback: Pullback

    @property
    def plan(self) -> SteppedPlan:
        """What was compiled."""
        return self.pullback.plan

    @cached_property
    def carried(self) -> list[int]:
        """The places of the leaves that have a gradient, in the state that a step begins with."""
        return differentiable(self.plan.start_state)

    @cached_property
    def optional(self) -> list[str]:
        """What a step says of its error, by one with numbers."""
        plan = self.plan
        t, z, field = *plan.still, plan.stillness
        start = StepStart(t, t.to(real_dtype(z)), z, plan.solver.init(field, t, z))
        step, _ = plan.stepped(field, start, t, None)
        return [name for name in _OPTIONAL if getattr(step, name) is not None]

    @property
    def passed_on(self) -> list[int]:
        """The places of the leaves that a step hands on with a gradient."""
        return [] if self.plan.anew else self.carried

    def _wanted(
        self, given: Sequence[Tensor], after: Any, point: Sequence[Tensor], v: Sequence[Tensor]
    ) -> tuple[Tensor, ...]:
        """The values and others that ``after`` gives at a point, and the cotangents there.

        And of what f makes of the tensors ``given`` before a solve.
        """
        known = [*self.plan.field.before(*given)]
        places, count = self.pullback.places, len(point)

        def function(*wanted: Tensor) -> tuple[tuple[Tensor, ...], tuple[Tensor, ...]]:
            field = self.plan.field_known(placed(known, places, wanted[count:]))
            return after(field, *wanted[:count])

        wanted = [*point, *(known[i] for i in places)]
        found: Any = torch.func.vjp(function, *wanted, has_aux=True)
        values, pull, others = found
        return *values, *others, *pull(tuple(v))

    def _traced(self, function: Any, kinds: Sequence[Kind]) -> GraphModule:
        """Of arguments of these kinds and the tensors."""
        # Made of numbers, and so before the trace.
        _ = self.plan.structure, self.optional, self.pullback.places
        return traced(function, [*kinds, *self.plan.kinds[1:]])

    def _begin(self, *given: Tensor) -> tuple[Tensor, ...]:
        """Of z, t, the cotangents of the state there, and the tensors."""
        z, t, *rest = given
        many, plan = len(self.carried), self.plan

        def after(field: Any, z: Tensor) -> tuple[tuple[Tensor, ...], tuple[Tensor, ...]]:
            return _apart(pytree.tree_leaves(plan.solver.init(field, t, z)), self.carried)

        return self._wanted(rest[many:], after, [z], rest[:many])

    def _step(self, *given: Tensor) -> tuple[Tensor, ...]:
        """Of z, t, dt and the state; of the cotangents of the results; of the tensors.

        The results are z, the state and the coefficients of the extension.
        """
        plan, carried, count = self.plan, self.carried, len(self.plan.start_state)
        z, t, dt, *rest = given
        state, rest = rest[:count], rest[count:]
        many = 1 + len(self.passed_on) + self.plan.coefficients

        def after(
            field: Any, z: Tensor, *wanted: Tensor
        ) -> tuple[tuple[Tensor, ...], tuple[Tensor, ...]]:
            old: Any = pytree.tree_unflatten(placed(state, carried, wanted), self.plan.structure)
            # As if all samples accepted it: what becomes of the others is no concern of a step.
            step, piece = plan.stepped(field, StepStart(t, dt, z, old), t + dt.to(t.dtype), None)
            leaves = [] if plan.anew else pytree.tree_leaves(step.state)
            values, others = _apart(leaves, self.passed_on)
            told = tuple(getattr(step, name).clone() for name in self.optional)
            return (step.z, *values, *(each.clone() for each in piece)), (*others, *told)

        return self._wanted(rest[many:], after, [z, *(state[i] for i in carried)], rest[:many])

    @cached_property
    def begin(self) -> BothWays:
        """The state that a step begins with, where the step before passes none on."""
        plan, t = self.plan, self.plan.clock_time
        z = plan.kinds[0]._replace(requires_grad=False)
        v = [plan.start_state[i] for i in self.carried]
        graph = self._traced(self._begin, [z, t, *v])
        return BothWays.of(graph, 2, len(v), len(plan.start_state))

    @cached_property
    def step(self) -> BothWays:
        """A step."""
        plan, t = self.plan, self.plan.clock_time
        z = plan.kinds[0]._replace(requires_grad=False)
        dt = t._replace(dtype=real_dtype(z.example()))
        early = [z, t, dt, *plan.start_state]
        late = [z, *(plan.start_state[i] for i in self.passed_on), *[z] * self.plan.coefficients]
        values = (
            1
            + (0 if plan.anew else len(plan.start_state))
            + self.plan.coefficients
            + len(self.optional)
        )
        graph = self._traced(self._step, [*early, *late])
        return BothWays.of(graph, len(early), len(late), values)

    @property
    def pairs(self) -> list[BothWays]:
        """All that a step is made of."""
        return [self.begin, self.step] if self.plan.anew else [self.step]

    def known(self, tensors: Sequence[Tensor]) -> list[Tensor]:
        """What they need of the tensors, computed once a solve."""
        return [each for pair in self.pairs for each in pair.before(*tensors)]

    def apart(self, known: Sequence[Tensor]) -> tuple[Sequence[Tensor], Sequence[Tensor]]:
        """Those of the state that a step begins with, and those of the step."""
        many = self.begin.knows if self.plan.anew else 0
        return known[:many], known[many:]

    def state_of(
        self, values: Sequence[Tensor], others: Sequence[Tensor], among: Sequence[int]
    ) -> Any:
        """The state of leaves with a gradient and without one."""
        rest = [i for i in range(len(self.plan.start_state)) if i not in among]
        leaves = placed(placed([*values, *others], among, values), rest, others)
        return pytree.tree_unflatten(leaves, self.plan.structure)


class Saving:
    """Takes one step in the place of the solver, and holds what it saves.

    Arguments:
        steps: the graphs.
        known: what these need of f.
    """

    piece_needs_state = False

    def __init__(self, steps: SavingSteps, known: Sequence[Tensor]) -> None:
        self.steps = steps
        self.of_begin, self.of_step = steps.apart(known)
        self.saved: list[Tensor] = []  # of the state that it begins with, then of the step
        self.extension: list[Tensor] = []

    def init(self, field: Any, t: Tensor, z: Tensor) -> Any:
        """The state that a step begins with."""
        steps, pair = self.steps, self.steps.begin
        many = len(steps.carried)
        found = [*pair.there(z, t, *self.of_begin)]
        self.saved += found[pair.values :]
        return steps.state_of(found[:many], found[many : pair.values], steps.carried)

    def step(self, field: Any, t: Tensor, dt: Tensor, z: Tensor, state: Any) -> Step:
        """The step."""
        steps = self.steps
        pair, many = steps.step, 1 + len(steps.passed_on)
        found = [*pair.there(z, t, dt, *pytree.tree_leaves(state), *self.of_step)]
        self.saved += found[pair.values :]
        self.extension = found[many : many + steps.plan.coefficients]
        rest = found[many + steps.plan.coefficients : pair.values]
        told = len(rest) - len(steps.optional)
        after: Any = None
        if not steps.plan.anew:
            after = steps.state_of(found[1:many], rest[:told], steps.passed_on)
        return Step(found[0], state=after, **dict(zip(steps.optional, rest[told:], strict=True)))

    def piece(self, *step: Any) -> list[Tensor]:
        """The coefficients of the extension."""
        return self.extension


def _apart(
    leaves: Sequence[Tensor], places: Sequence[int]
) -> tuple[tuple[Tensor, ...], tuple[Tensor, ...]]:
    """Those in some places, and the others, each of its own."""
    some = tuple(leaves[i].clone() for i in places)
    return some, tuple(leaf.clone() for i, leaf in enumerate(leaves) if i not in places)
