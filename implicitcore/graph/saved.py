"""A trajectory whose steps save what their gradient needs, in a loop of Python."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from implicitcore.graph.integration import Moving, Span, Steps, arrived, started
from implicitcore.graph.kept import Kept
from implicitcore.graph.pullback import Pullback
from implicitcore.graph.saving import Saving, SavingSteps
from implicitcore.graph.stop import Found
from implicitcore.tensors.norms import real_dtype

_EARLY = 3  # of z, t and dt, the arguments of a step before the solver's state
_GOES_ON, _MOVES, _REFUSED = 1, 2, 4


class SavedStep(NamedTuple):
    """What is saved of a step that some sample accepted."""

    accept: Tensor  # [batch] bool
    begin: list[Tensor]  # for the state that it begins with, where it begins anew
    step: list[Tensor]


class Saved(NamedTuple):
    """The steps of an integration, with what is saved of them."""

    steps: list[SavedStep | None]  # None: no sample accepted it
    times: Kept | None  # where states between their ends are wanted

    def of_samples(self, rows: Tensor) -> Saved:
        """The same with other samples ``[batch]`` in the places of some."""
        times = None if self.times is None else self.times.of_samples(rows)
        return Saved(of_samples(self.steps, rows), times)


@dataclass(frozen=True, eq=False)
class SavedLoop:
    """The way there and the way back of a plan, a compiled function a step each.

    Attributes:
        pullback: of the plan.
        coarse: times may be so far from zero that t has few digits left for dt.
    """

    pullback: Pullback
    coarse: bool

    @functools.cached_property
    def graphs(self) -> SavingSteps:
        """Of a step."""
        return SavingSteps(self.pullback)

    @property
    def serves(self) -> bool:
        """Whether all that is saved has a row for each sample: others may stand for these."""
        graphs, plan = self.graphs, self.pullback.plan
        if plan.anew and max(graphs.step.taken, default=0) >= _EARLY:
            return False  # of the state that it begins with, which nobody holds
        return not plan.kinds[0].has_batch or all(pair.has_rows for pair in graphs.pairs)

    def _span(self, start: Tensor, end: Tensor) -> Span:
        return Span.between(start, end) if self.coarse else Span(start, end)

    @functools.cached_property
    def _begin(self) -> Callable[..., list[Tensor]]:
        plan = self.pullback.plan
        system, solver, between = plan.as_field(), plan.solver, plan.between

        def begin(start: Tensor, end: Tensor, z0: Tensor, *tensors: Tensor) -> list[Tensor]:
            span = self._span(start, end)
            steps, now = started(solver, system(*tensors), z0, span, between=between)
            return [steps.going(now).to(torch.int64), *_flat(now)]

        return plan.compiled(begin)

    @functools.cached_property
    def _step(self) -> Callable[..., list[Tensor]]:
        plan, graphs = self.pullback.plan, self.graphs
        solver, between, structure = plan.solver, plan.between, plan.structure
        field, many = plan.stillness, _MANY + len(plan.state)

        def step(start: Tensor, end: Tensor, *given: Tensor) -> list[Tensor]:
            state = () if plan.anew else pytree.tree_unflatten(given[_MANY:many], structure)
            now = _moving(given[:_MANY], state)
            saving = Saving(graphs, given[many:])
            steps = Steps.towards(
                solver,
                solver.step_size,
                field,
                self._span(start, end),
                between=between,
                limit=solver.max_steps,
            )
            moved, taken = replace(steps, stepper=saving).advance(now)
            refused = (now.active & ~taken.accept).any()
            told = steps.going(moved) * _GOES_ON + taken.accept.any() * _MOVES + refused * _REFUSED
            return [told, *_flat(moved), taken.dt, taken.accept, *taken.piece, *saving.saved]

        return plan.compiled(step)

    def integrated(
        self, ends: tuple[Tensor, Tensor], z0: Tensor, tensors: Sequence[Tensor]
    ) -> tuple[Found, Saved, list[Tensor]]:
        """What was found, what is saved, and the coefficients of the extensions of the steps.

        These ``[steps, batch, n]``, where states between the ends of steps are wanted.
        """
        plan, graphs = self.pullback.plan, self.graphs
        known = graphs.known(tensors)
        told, *now = self._begin(*ends, z0, *tensors)
        count, extra = len(now), max(graphs.plan.coefficients - 1, 0)
        going, steps, times, pieces = bool(told), [], [], []
        if plan.between and not going:  # there is a step, which nobody takes
            t, z = now[:2]
            steps.append(None)
            times.append((t, z, torch.zeros_like(t), torch.zeros_like(t, dtype=torch.bool)))
            pieces.append([torch.zeros_like(z)] * extra)
        while going:
            told, *found = self._step(*ends, *now, *known)
            before, now, (dt, accept, *rest) = now, found[:count], found[count:]
            what = int(told)
            going = bool(what & _GOES_ON)
            if plan.between:
                pieces.append(rest[:extra])
                times.append((now[0], now[1], dt, accept))
                rest = rest[extra:]
            steps.append(self._saved(before, dt, accept, rest, what))
        kept = None
        if plan.between:
            number = torch.full((), len(steps), dtype=torch.int64, device=z0.device)
            t, z, dt, accept = (torch.stack(each) for each in zip(*times, strict=True))
            kept = Kept(number, [], t, z, dt, accept, [])
        found = arrived(_moving(now[:_MANY], ()))
        return found, Saved(steps, kept), [*map(torch.stack, zip(*pieces, strict=True))]

    def _saved(
        self,
        before: Sequence[Tensor],
        dt: Tensor,
        accept: Tensor,
        rest: Sequence[Tensor],
        what: int,
    ) -> SavedStep | None:
        """What is saved of a step.

        Of a sample that refused it, that of one that accepted it: it gets no gradient, and what
        it has itself may be not finite, which a factor of zero does not stop.
        """
        if not what & _MOVES:
            return None
        graphs, (t, z), state = self.graphs, before[:2], before[_MANY:]
        many, begin = 0, []
        if self.pullback.plan.anew:
            many, begin = graphs.begin.saves, [(z, t)[i] for i in graphs.begin.taken]
        early = z, t, dt.to(real_dtype(z)), *state
        step = [early[i] for i in graphs.step.taken]
        saved = [*begin, *rest[:many]], [*step, *rest[many:]]
        if what & _REFUSED:
            places = torch.arange(len(accept), device=accept.device)
            saved = of_samples(saved, torch.where(accept, places, accept.int().argmax()))
        return SavedStep(accept, *saved)

    def _apart(
        self, tensors: Sequence[Tensor]
    ) -> tuple[tuple[Sequence[Tensor], Sequence[Tensor]], Sequence[Tensor]]:
        """What is saved of a step, as :class:`SavedStep` has it, and what is beside it."""
        sizes = [len(pair.taken) + pair.saves for pair in self.graphs.pairs]
        first, end = sum(sizes[:-1]), sum(sizes)
        return (tensors[:first], tensors[first:end]), tensors[end:]

    @functools.cached_property
    def _pulled(self) -> Callable[..., tuple[Tensor, ...]]:
        """The cotangents at the end of a step, and the sums of those of f -> those before it."""
        graphs, plan = self.graphs, self.pullback.plan
        many = 1 + len(graphs.carried)
        step, values = graphs.step, 1 + len(graphs.passed_on)
        ends = values + graphs.plan.coefficients
        sums = ends + len(self.pullback.places)

        def pulled(accept: Tensor, *given: Tensor) -> tuple[Tensor, ...]:
            moved = [torch.where(_rows(accept, v), v, 0) for v in given[:ends]]
            stood = [torch.where(_rows(accept, v), 0, v) for v in given[:values]]
            (of_begin, of_step), known = self._apart(given[sums:])
            begin_known, step_known = graphs.apart(known)
            found = step.back(*moved, *of_step, *step_known)
            v, states, shares = found[0], found[1:many], [found[many:]]
            if plan.anew:
                more, *others = graphs.begin.back(*states, *of_begin, *begin_known)
                v, states = v + more, []
                shares.append(others)
            v = [a + b for a, b in zip((v, *states), stood, strict=True)]
            return *v, *map(_total, zip(given[ends:sums], *shares, strict=True))

        return plan.compiled(pulled)

    def pulled_back(
        self,
        v: Tensor,
        between: Sequence[Tensor],
        t0: Tensor,
        z0: Tensor,
        saved: Saved,
        tensors: Sequence[Tensor],
    ) -> tuple[Tensor, ...]:
        """The cotangents of z0 and of the tensors, of those of the last state.

        And of those ``between``, of the coefficients of the extensions, ``[steps, batch, n]``.
        """
        graphs, pullback = self.graphs, self.pullback
        known = graphs.known(tensors)
        many = 1 + len(graphs.passed_on)
        states = [pullback.plan.start_state[i].zeros(len(z0)) for i in graphs.passed_on]
        found = [v, *states, *map(torch.zeros_like, pullback.varied(*tensors))]
        for index in reversed(range(len(saved.steps))):
            if (step := saved.steps[index]) is None:
                continue
            at = [each[index] for each in between]
            given = *found[:many], *at, *found[many:], *step.begin, *step.step, *known
            found = [*self._pulled(step.accept, *given)]
        v, states, sums = found[0], found[1:many], found[many:]
        if (start := pullback.start) is not None:
            more, *shares = start.inside(t0, z0, *states, *start.before(*tensors))
            v, sums = v + more, [a + b for a, b in zip(sums, shares, strict=True)]
        return v, *pullback.settled(*tensors, *sums)


def of_samples(tree: Any, rows: Tensor) -> Any:
    """The tensors with other samples ``[batch]`` in the places of some."""
    return pytree.tree_map_only(Tensor, lambda t: t.index_select(0, rows), tree)


_MANY = len(Moving._fields) - 1


def _flat(now: Moving) -> list[Tensor]:
    """The tensors, those of the solver's state the last."""
    return [*now[:2], *now[3:], *pytree.tree_leaves(now.state)]


def _moving(tensors: Sequence[Tensor], state: Any) -> Moving:
    t, z, *rest = tensors
    return Moving(t, z, state, *rest)


def _total(shares: Sequence[Tensor]) -> Tensor:
    return functools.reduce(torch.add, shares)


def _rows(which: Tensor, like: Tensor) -> Tensor:
    return which.view(-1, *(1,) * (like.ndim - 1))
