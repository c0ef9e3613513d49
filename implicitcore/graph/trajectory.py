"""A trajectory and its gradient as two compiled functions: the steps are kept, and pulled back."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import Tensor
from torch._higher_order_ops.while_loop import while_loop
from torch.utils import _pytree as pytree

from implicitcore.graph.integration import (
    Moving,
    Taken,
    arrived,
    begins_anew,
    evaluations_of,
    started,
)
from implicitcore.graph.kept import Kept, stacked_loop
from implicitcore.graph.plan import Plan, compiled
from implicitcore.graph.stop import Found
from implicitcore.graph.system import GraphField
from implicitcore.graph.trace import Kind, Split, reached, split, traced
from implicitcore.ode_solvers.samples import chosen
from implicitcore.system.problem import rounding_of
from implicitcore.tensors.norms import column, real_dtype


@dataclass(frozen=True, eq=False)
class TrajectoryPlan(Plan):
    """The state of an ODE solver at the horizon, with the gradient of its steps.

    The way there keeps what each step began with, and the way back takes the same steps again, from
    the last to the first: the vector-Jacobian product of one at a time. That is the gradient of the
    discrete integration, as ``Checkpointed`` with every step kept gives it. The choice of the steps
    has no gradient.
    """

    @cached_property
    def recorded(self) -> Callable[..., list[Tensor]]:
        """z0 and the tensors -> the evaluations, [steps] of each iteration, and the kept steps.

        Before those the statuses and the counts of the samples, as a :class:`Found` of each
        iteration.
        """
        system, solver, horizon = self._as_field(), self.solver, self.horizon

        def recorded(z0: Tensor, *tensors: Tensor) -> list[Tensor]:
            steps, begin = started(solver, system(*tensors), z0, horizon)
            none = Taken(torch.zeros_like(begin.t), torch.zeros_like(begin.active))

            def step(now: Moving, last: Taken) -> tuple[Moving, Taken]:
                del last
                return steps.advance(now)

            def going(now: Moving, last: Taken) -> Tensor:
                del last
                return steps.going(now)

            now, taken = stacked_loop(going, step, (begin, none))
            states = pytree.tree_leaves(now.state)
            kept = Kept([], now.t, now.z, taken.dt, taken.accept, states)
            first = [leaf.clone() for leaf in pytree.tree_leaves(begin.state)]
            return [now.active, now.failure, now.steps, now.evaluations, *first, *kept.flat()]

        return compiled(recorded)

    def found(self, recorded: Sequence[Tensor]) -> tuple[Found, Kept]:
        """What the integration came to, and its steps."""
        kept = Kept.of(recorded[4:], len(self._state))
        active, failure, steps, evaluations = (stack[-1] for stack in recorded[:4])
        z, t = kept.z[-1].clone(), kept.t[-1]
        now = Moving(t, z, (), t, t, active, failure, steps.clone(), evaluations)
        return arrived(now), kept

    def cost(self, kept: Sequence[Tensor]) -> int:
        """The evaluations of the way back, and as many vector-Jacobian products."""
        steps = Kept.of(kept, len(self._state)).t.shape[0]
        return steps * (evaluations_of(self.solver) + self._anew) + (not self._anew)

    @property
    def _anew(self) -> bool:
        return begins_anew(self.solver)

    @cached_property
    def _moment(self) -> Kind:
        """Of the time of each sample."""
        z = self.kinds[0]
        dtype = real_dtype(z.example())
        return z._replace(shape=z.shape[:1], dtype=dtype, requires_grad=False)

    @cached_property
    def _state(self) -> list[Kind]:
        """Of the leaves of the solver's state that a step hands on; none where it hands on none."""
        if self._anew:
            return []
        t, z, field = *self._still, self._stillness
        leaves = pytree.tree_leaves(self.solver.init(field, t, z))
        return [Kind.of(leaf, self.kinds[0].has_batch) for leaf in leaves]

    @property
    def _still(self) -> tuple[Tensor, Tensor]:
        t, z = self._moment.example(), self.kinds[0].example()
        return torch.zeros_like(t), torch.zeros_like(z)

    @property
    def _stillness(self) -> GraphField:
        return self._field_of(lambda t, z: torch.zeros_like(z))

    def _field_of(self, velocity: Callable[[Tensor, Tensor], Tensor]) -> GraphField:
        rounding = rounding_of(self.dynamics.is_map(), self.kinds[0].dtype)
        return GraphField(velocity, self.dynamics.scale, rounding)

    @cached_property
    def _varied(self) -> list[int]:
        """The places, in what f makes of its tensors before a solve, that are to be pulled back."""
        return reached(self._field.before, self.differentiated)

    @cached_property
    def _carried(self) -> list[int]:
        """The places of the leaves of the solver's state that have a gradient."""
        return [i for i, kind in enumerate(self._state) if kind.dtype.is_floating_point]

    @cached_property
    def _structure(self) -> Any:
        t, z, field = *self._still, self._stillness
        state = self.solver.init(field, t, z)
        # Once with numbers, for what a solver computes at its first step and keeps is no fake.
        self.solver.step(field, t, t, z, state)
        return pytree.tree_structure(state)

    def _step_pulled(self, *given: Tensor) -> tuple[Tensor, ...]:
        """The vector-Jacobian product of one step.

        Of t, dt, accept, z, the solver's state, the cotangents of z and of that state after the
        step, and the tensors; to those of z, of the state before, and of what f made of the
        tensors.
        """
        count, carried = len(self._state), self._carried
        t, dt, accept, z, *rest = given
        state, rest = rest[:count], rest[count:]
        v, tensors = rest[: 1 + len(carried)], rest[1 + len(carried) :]
        known = [*self._field.before(*tensors)]

        def after(z: Tensor, *wanted: Tensor) -> tuple[Tensor, ...]:
            before = _with(state, carried, wanted[: len(carried)])
            field = self._known(_with(known, self._varied, wanted[len(carried) :]))
            old: Any = self.solver.init(field, t, z) if self._anew else None
            if not self._anew:
                old = pytree.tree_unflatten(before, self._structure)
            step = self.solver.step(field, t, dt, z, old)
            z_next = torch.where(column(accept), step.z, z)
            if self._anew:
                return (z_next,)
            leaves = pytree.tree_leaves(chosen(accept, step.state, old))
            return z_next, *(leaves[i] for i in carried)

        wanted = [*(state[i] for i in carried), *(known[i] for i in self._varied)]
        return torch.func.vjp(after, z, *wanted)[1](tuple(v))

    def _start_pulled(self, *given: Tensor) -> tuple[Tensor, ...]:
        """The same of the solver's state before the first step.

        Of t, z, the cotangents of that state, and the tensors.
        """
        t, z, *rest = given
        v, tensors = rest[: len(self._carried)], rest[len(self._carried) :]
        known = [*self._field.before(*tensors)]

        def start(z: Tensor, *wanted: Tensor) -> tuple[Tensor, ...]:
            field = self._known(_with(known, self._varied, wanted))
            leaves = pytree.tree_leaves(self.solver.init(field, t, z))
            return tuple(leaves[i] for i in self._carried)

        return torch.func.vjp(start, z, *(known[i] for i in self._varied))[1](tuple(v))

    def _known_pulled(self, *given: Tensor) -> tuple[Tensor, ...]:
        """The cotangents of the tensors, of those and the cotangents of what f made of them."""
        count, places = len(self.kinds) - 1, self.differentiated
        tensors, v = given[:count], given[count:]

        def known(*wanted: Tensor) -> tuple[Tensor, ...]:
            found = self._field.before(*_with(tensors, places, wanted))
            return tuple(found[i].clone() for i in self._varied)

        return torch.func.vjp(known, *(tensors[i] for i in places))[1](tuple(v))

    def _known(self, known: Sequence[Tensor]) -> GraphField:
        return self._field_of(lambda t, z: self._field.inside(t, z, *known)[0].clone())

    def _varied_of(self, *tensors: Tensor) -> list[Tensor]:
        known = self._field.before(*tensors)
        return [known[i] for i in self._varied]

    @cached_property
    def _pulled_steps(self) -> tuple[Split, Split | None]:
        t, z, structure = self._moment, self.kinds[0], self._structure
        del structure  # made here, with numbers
        z = z._replace(requires_grad=False)
        state, carried = self._state, [self._state[i] for i in self._carried]
        accept = t._replace(dtype=torch.bool)
        changing = [t, t, accept, z, *state, z, *carried]
        outputs = range(1 + len(carried) + len(self._varied))
        step = split(
            traced(self._step_pulled, [*changing, *self.kinds[1:]]), len(changing), outputs
        )
        if self._anew:
            return step, None
        changing = [t, z, *carried]
        graph = traced(self._start_pulled, [*changing, *self.kinds[1:]])
        return step, split(graph, len(changing), range(1 + len(self._varied)))

    @cached_property
    def _settled(self) -> Callable[..., Sequence[Tensor]]:
        """See :meth:`_known_pulled`."""
        if self._varied:
            return traced(self._known_pulled, self.kinds[1:], also=self._varied_of)
        return lambda *tensors: [torch.zeros_like(tensors[i]) for i in self.differentiated]

    @cached_property
    def pulled(self) -> Callable[..., tuple[Tensor, ...]]:
        """v, z0, the kept steps and the tensors -> the cotangents of z0 and of the tensors."""
        count, many = len(self._state), len(self._carried)
        pulled, start = self._pulled_steps
        settled = self._settled

        def backward(v: Tensor, z0: Tensor, *given: Tensor) -> tuple[Tensor, ...]:
            kept = Kept.of(given[: 2 * count + 4], count)
            tensors = given[2 * count + 4 :]
            known = pulled.before(*tensors)
            t0 = torch.zeros_like(kept.t[0])

            def going(index: Tensor, *cotangents: Tensor) -> Tensor:
                del cotangents
                return index >= 0

            def step(index: Tensor, *cotangents: Tensor) -> tuple[Tensor, ...]:
                begins = index == 0

                def before(first: Tensor, after: Tensor) -> Tensor:
                    return torch.where(begins, first, _at(after, (index - 1).clamp(min=0)))

                state = [before(*pair) for pair in zip(kept.first, kept.states, strict=True)]
                found = pulled.inside(
                    before(t0, kept.t),
                    _at(kept.dt, index),
                    _at(kept.accept, index),
                    before(z0, kept.z),
                    *state,
                    *cotangents[: 1 + many],
                    *known,
                )
                shares = zip(cotangents[1 + many :], found[1 + many :], strict=True)
                return index - 1, *found[: 1 + many], *(a + b for a, b in shares)

            last = torch.full((), kept.t.shape[0] - 1, dtype=torch.int64, device=v.device)
            none = [torch.zeros_like(kept.first[i]) for i in self._carried]
            sums = [torch.zeros_like(tensor) for tensor in self._varied_of(*tensors)]
            _, v, *rest = while_loop(going, step, (last, v.clone(), *none, *sums))
            sums = rest[many:]
            if start is not None:
                more, *shares = start.inside(t0, z0, *rest[:many], *start.before(*tensors))
                v, sums = v + more, [a + b for a, b in zip(sums, shares, strict=True)]
            return v, *settled(*tensors, *sums)

        return compiled(backward)


def _with(
    tensors: Sequence[Tensor], places: Sequence[int], values: Sequence[Tensor]
) -> list[Tensor]:
    """The tensors with others in some places."""
    given = [*tensors]
    for place, value in zip(places, values, strict=True):
        given[place] = value
    return given


def _at(stack: Tensor, index: Tensor) -> Tensor:
    return stack.index_select(0, index.view(1)).squeeze(0)
