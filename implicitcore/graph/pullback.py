"""The vector-Jacobian products that take a trajectory back, each as a graph."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from implicitcore.graph.stepped import SteppedPlan
from implicitcore.graph.trace import Split, reached, split, traced
from implicitcore.ode_solvers.dense import StepStart
from implicitcore.ode_solvers.samples import chosen
from implicitcore.tensors.norms import column, real_dtype


@dataclass(frozen=True, eq=False)
class Pullback:
    """What takes cotangents back over one step, over the start, and over what f made of tensors.

    Attributes:
        plan: what was compiled.
    """

    plan: SteppedPlan

    @cached_property
    def places(self) -> list[int]:
        """The places, in what f makes of its tensors before a solve, that are to be pulled back."""
        return reached(self.plan.field.before, self.plan.differentiated)

    def varied(self, *tensors: Tensor) -> list[Tensor]:
        """What f makes of its tensors before a solve, as far as it is to be pulled back."""
        known = self.plan.field.before(*tensors)
        return [known[i] for i in self.places]

    def _step(self, *given: Tensor) -> tuple[Tensor, ...]:
        """The vector-Jacobian product of one step, with its continuous extension.

        Of t, dt, accept and the time after it, of z and the solver's state; of the cotangents of z
        and of that state after the step, and of the coefficients of its extension; of the tensors.
        To those of z, of the state before, and of what f made of the tensors.
        """
        plan = self.plan
        count, carried = len(plan.state), plan.carried
        t, dt, accept, end, z, *rest = given
        state, rest = rest[:count], rest[count:]
        many = 1 + len(carried) + plan.coefficients
        v, tensors = rest[:many], rest[many:]
        known = [*plan.field.before(*tensors)]
        size = dt.to(real_dtype(z))

        def after(z: Tensor, *wanted: Tensor) -> tuple[Tensor, ...]:
            before = placed(state, carried, wanted[: len(carried)])
            field = plan.field_known(placed(known, self.places, wanted[len(carried) :]))
            old: Any = plan.solver.init(field, t, z) if plan.anew else None
            if not plan.anew:
                old = pytree.tree_unflatten(before, plan.structure)
            step, piece = plan.stepped(field, StepStart(t, size, z, old), end, accept)
            z_next = torch.where(column(accept), step.z, z)
            if plan.anew:
                return (z_next,)
            leaves = pytree.tree_leaves(chosen(accept, step.state, old))
            return z_next, *(leaves[i] for i in carried), *(each.clone() for each in piece)

        wanted = [*(state[i] for i in carried), *(known[i] for i in self.places)]
        return torch.func.vjp(after, z, *wanted)[1](tuple(v))

    def _start(self, *given: Tensor) -> tuple[Tensor, ...]:
        """The same of the solver's state before the first step.

        Of t, z, the cotangents of that state, and the tensors.
        """
        plan, carried = self.plan, self.plan.carried
        t, z, *rest = given
        v, tensors = rest[: len(carried)], rest[len(carried) :]
        known = [*plan.field.before(*tensors)]

        def start(z: Tensor, *wanted: Tensor) -> tuple[Tensor, ...]:
            field = plan.field_known(placed(known, self.places, wanted))
            leaves = pytree.tree_leaves(plan.solver.init(field, t, z))
            return tuple(leaves[i] for i in carried)

        return torch.func.vjp(start, z, *(known[i] for i in self.places))[1](tuple(v))

    def _known(self, *given: Tensor) -> tuple[Tensor, ...]:
        """The cotangents of the tensors, of those and the cotangents of what f made of them."""
        plan, places = self.plan, self.plan.differentiated
        count = len(plan.kinds) - 1
        tensors, v = given[:count], given[count:]

        def known(*wanted: Tensor) -> tuple[Tensor, ...]:
            found = plan.field.before(*placed(tensors, places, wanted))
            return tuple(found[i].clone() for i in self.places)

        return torch.func.vjp(known, *(tensors[i] for i in places))[1](tuple(v))

    @cached_property
    def step(self) -> Split:
        """That of a step."""
        plan, t = self.plan, self.plan.clock_time
        coefficients = plan.coefficients  # made here, with numbers
        z = plan.kinds[0]._replace(requires_grad=False)
        carried = [plan.state[i] for i in plan.carried]
        accept = t._replace(dtype=torch.bool)
        changing = [t, t, accept, t, z, *plan.state, z, *carried, *[z] * coefficients]
        graph = traced(self._step, [*changing, *plan.kinds[1:]])
        return split(graph, len(changing), range(1 + len(carried) + len(self.places)))

    @cached_property
    def start(self) -> Split | None:
        """That of the solver's state before the first step, where it hands one on."""
        plan, t = self.plan, self.plan.clock_time
        if plan.anew:
            return None
        z = plan.kinds[0]._replace(requires_grad=False)
        changing = [t, z, *(plan.state[i] for i in plan.carried)]
        graph = traced(self._start, [*changing, *plan.kinds[1:]])
        return split(graph, len(changing), range(1 + len(self.places)))

    @cached_property
    def settled(self) -> Callable[..., Sequence[Tensor]]:
        """The tensors and the cotangents of :meth:`varied` -> those of the tensors."""
        plan = self.plan
        if self.places:
            return traced(self._known, plan.kinds[1:], also=self.varied)
        return lambda *tensors: [torch.zeros_like(tensors[i]) for i in plan.differentiated]


def placed(
    tensors: Sequence[Tensor], places: Sequence[int], values: Sequence[Tensor]
) -> list[Tensor]:
    """The tensors with others in some places."""
    given = [*tensors]
    for place, value in zip(places, values, strict=True):
        given[place] = value
    return given
