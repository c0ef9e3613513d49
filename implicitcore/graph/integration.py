"""The loop of the ODE solvers as one operation of a graph: the steps and choices are their own."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch._higher_order_ops.while_loop import while_loop
from torch.utils import _pytree as pytree

from implicitcore.graph.stop import Found, GraphStop, Samples
from implicitcore.graph.system import GraphField
from implicitcore.ode_solvers.adams import Adams
from implicitcore.ode_solvers.runge_kutta import RungeKutta
from implicitcore.ode_solvers.samples import Ahead, StepCount, chosen
from implicitcore.ode_solvers.samples import Samples as Travellers
from implicitcore.ode_solvers.step_chooser import ControlledSteps
from implicitcore.ode_solvers.step_size import Adaptive, Fixed, StepSize
from implicitcore.root_solvers.steady_state import FALL, RISE, SteadyState
from implicitcore.solution import Status
from implicitcore.system.evaluation import Evaluation
from implicitcore.tensors.norms import all_finite, column, real_dtype

STEPPERS: dict[type, Callable[[Any], int]] = {
    RungeKutta: lambda solver: len(solver.tableau.a),
    Adams: lambda solver: 1,
}
"""The ODE solvers whose loop a graph can take, with the evaluations of a step beside the first."""


def evaluations_of(solver: Any) -> int:
    """Evaluations of a step beside the first of one that begins anew."""
    return next(count(solver) for kind, count in STEPPERS.items() if isinstance(solver, kind))


def begins_anew(solver: Any) -> bool:
    """Whether a step leaves no velocity to the next."""
    return isinstance(solver, RungeKutta) and not solver.tableau.fsal


class Moving(NamedTuple):
    """Where each sample of an integration is, as tensors that a loop carries."""

    t: Tensor  # [batch]
    z: Tensor  # [batch, n]
    state: Any  # the solver's
    size: Tensor  # [batch], of the next step
    error: Tensor  # [..., batch], what the control of the step size remembers
    active: Tensor  # [batch] bool, who takes steps
    failure: Tensor  # [batch] int8, a Status, 0 where a sample did not fail
    steps: Tensor  # [batch] int64
    evaluations: Tensor  # int64


class Taken(NamedTuple):
    """What has to be known of a step to take it again."""

    dt: Tensor  # [batch], with its sign; 0 for a sample that did not accept it
    accept: Tensor  # [batch] bool


@dataclass(frozen=True, eq=False)
class Steps:
    """The steps of a solver towards a time.

    Attributes:
        solver: makes them.
        field: the dynamics.
        chooser: decides how long they are, and which samples accept them.
        target: ``[batch]``, where they end; may be infinite.
    """

    solver: Any
    field: Any
    chooser: ControlledSteps
    target: Tensor

    @classmethod
    def towards(
        cls, solver: Any, control: StepSize, field: GraphField, z: Tensor, horizon: float
    ) -> Steps:
        """From time 0 to the horizon."""
        target = torch.full((z.shape[0],), horizon, dtype=real_dtype(z), device=z.device)
        span = torch.full((), min(horizon, 1.0), dtype=target.dtype, device=z.device)
        return cls(solver, field, ControlledSteps(control, span), target)

    @property
    def control(self) -> StepSize:
        """Chooses the sizes of the steps."""
        return self.chooser.control

    def start(self, z: Tensor) -> Moving:
        """Before the first step, whose size is not chosen yet, with no state of the solver."""
        t, z = torch.zeros_like(self.target), z.clone()
        whole, one = torch.zeros_like(t, dtype=torch.int64), torch.ones_like(t)
        yes = torch.ones_like(t, dtype=torch.bool)
        count = torch.zeros((), dtype=torch.int64, device=z.device)
        error = self.chooser.control.remember(yes, one, one).clone()
        failure = torch.zeros_like(whole, dtype=torch.int8)
        return Moving(t, z, (), one, error, yes, failure, whole, count)

    def sized(self, now: Moving, velocity: Tensor) -> Moving:
        """With the size of the first step; an infinite velocity is none to go on with."""
        now = undefined(now, ~all_finite(velocity))
        size, control = self.chooser.first(self.field, self._samples(now), velocity), self.control
        spent = int(isinstance(control, Adaptive) and control.first_step is None)
        return now._replace(size=size, evaluations=now.evaluations + spent)

    def going(self, now: Moving) -> Tensor:
        """Whether another step is to be taken."""
        return now.active.any() & (now.steps.amax(0) < self.solver.max_steps)

    def advance(self, now: Moving) -> tuple[Moving, Taken]:
        """One step, from a velocity that is evaluated where the last one leaves none."""
        if not begins_anew(self.solver):
            return self.step(now)
        now = self.renewed(now)
        # A sample that cannot begin takes no step.
        now = undefined(now, now.active & (now.steps == 0) & ~all_finite(now.state))
        now, taken = self.step(now)
        return now._replace(state=()), taken

    def step(self, now: Moving) -> tuple[Moving, Taken]:
        """One step, accepted or refused for each sample by itself; see :class:`Integration`."""
        samples, cost = self._samples(now), evaluations_of(self.solver)
        attempt = self.chooser.choose(samples)
        step = self.solver.step(self.field, now.t, attempt.dt, now.z, now.state)
        choice = self.chooser.judge(self.field, samples, step, attempt)
        accept = choice.accept
        refused = now.active & ~accept
        lost, wild = self.chooser.lost(samples, attempt, choice, refused)
        kind = torch.where(wild, int(Status.NON_FINITE), int(Status.DIVERGED))
        state = now.state if step.state is None else chosen(accept, step.state, now.state)
        moved = Moving(
            torch.where(accept, attempt.end, now.t),
            torch.where(column(accept), step.z, now.z),
            state,
            choice.size.clone(),
            choice.memory.clone(),
            now.active & ~lost & ~(accept & attempt.arrives),
            torch.where(lost, kind.to(torch.int8), now.failure),
            now.steps + now.active,
            now.evaluations + cost,
        )
        return moved, Taken(torch.where(accept, attempt.dt, 0), accept.clone())

    def renewed(self, now: Moving) -> Moving:
        """With the velocity where the samples are."""
        # Tensors of their own, as the loop requires.
        state = pytree.tree_map(
            lambda leaf: leaf.clone(memory_format=torch.contiguous_format),
            self.solver.init(self.field, now.t, now.z),
        )
        return now._replace(state=state, evaluations=now.evaluations + 1)

    def _samples(self, now: Moving) -> Travellers:
        ahead = Ahead(now.steps, self.target, now.steps, self.target, now.steps)
        done = ~now.active
        return Travellers(
            t=now.t,
            z=now.z,
            state=now.state,
            size=now.size,
            error=now.error,
            ahead=ahead,
            active=now.active,
            done=done,
            finite=now.active,
            moving=now.active,
            count=StepCount(now.steps),
        )


def undefined(now: Moving, which: Tensor) -> Moving:
    """Samples ``which`` have a velocity that is not finite."""
    failure = torch.where(which, int(Status.NON_FINITE), now.failure).to(torch.int8)
    return now._replace(failure=failure, active=now.active & ~which)


def started(solver: Any, field: GraphField, z0: Tensor, horizon: float) -> tuple[Steps, Moving]:
    """The steps from z0 at time 0 to the horizon, and where they begin.

    A method that leaves no velocity to the next step evaluates the first one once more, where that
    estimates the size of a step.
    """
    steps = Steps.towards(solver, solver.step_size, field, z0, horizon)
    begin, anew = steps.start(z0), begins_anew(solver)
    if anew and isinstance(steps.control, Fixed):
        begin = steps.sized(begin, z0)
    else:
        begin = steps.renewed(begin)
        begin = steps.sized(begin, solver.velocity(begin.state))
    return steps, begin._replace(state=()) if anew else begin


def arrived(now: Moving) -> Found:
    """What an integration has come to."""
    status = torch.where(now.active, int(Status.MAX_STEPS), now.failure).to(torch.int8)
    return Found(now.z, torch.zeros_like(now.t), status, now.steps, now.evaluations)


def integrate(solver: Any, field: GraphField, z0: Tensor, horizon: float) -> Found:
    """The state at the horizon from z0 at time 0, ``[batch, n]``.

    Every sample takes steps of its own and stops by itself, and the loop where all have.
    """
    steps, begin = started(solver, field, z0, horizon)
    (now,) = while_loop(steps.going, lambda now: (steps.advance(now)[0],), (begin,))
    return arrived(now)


class Watch(NamedTuple):
    """What tells whether the residual of a sample still falls; see ``SteadyStateTest``."""

    least: Tensor  # [batch]
    before: Tensor  # [batch]


def steady_state(options: SteadyState, field: GraphField, z0: Tensor) -> Found:
    """The state at which the velocity vanishes; see :class:`SteadyState`."""
    solver: Any = options.ode_solver
    steps = Steps.towards(solver, solver.step_size.steady_state(), field, z0, torch.inf)
    moving = steps.renewed(steps.start(z0))
    first = field.evaluation(moving.z, solver.velocity(moving.state))
    by_norm = options.measure == "norm"
    test = options if by_norm else replace(options, tol=0.0, atol=0.0)
    stop = GraphStop.at(field, test, first)
    far = torch.full_like(first.residual.norm, torch.inf)

    def judged(samples: Samples, watch: Watch, now: Evaluation) -> tuple[Samples, Watch]:
        samples = samples if by_norm else _compare_entries(options, samples, now)
        return _watched(options, samples, watch, now)

    def going(moving: Moving, samples: Samples, watch: Watch) -> Tensor:
        del watch
        some = (moving.active & samples.active).any()
        return some & (samples.evaluations < options.max_steps)

    def step(moving: Moving, samples: Samples, watch: Watch) -> tuple[Moving, Samples, Watch]:
        moving, _ = steps.step(moving._replace(active=moving.active & samples.active))
        if begins_anew(solver):
            moving = steps.renewed(moving)
        now = field.evaluation(moving.z, solver.velocity(moving.state))
        return moving, *judged(stop.judge(samples, now), watch, now)

    samples, watch = judged(stop.first(first), Watch(far, far.clone()), first)
    moving = steps.sized(moving, solver.velocity(moving.state))
    moving, samples, _ = while_loop(going, step, (moving, samples, watch))
    # No step was short enough, or f had no value anywhere near.
    lost = samples.active & (moving.failure != 0)
    stalled = lost & (moving.failure == int(Status.DIVERGED))
    samples = _fail(samples, stalled, Status.STALLED)
    samples = _fail(samples, lost & ~stalled, Status.NON_FINITE)
    return stop.ended(samples)._replace(evaluations=moving.evaluations)


def _compare_entries(options: SteadyState, samples: Samples, now: Evaluation) -> Samples:
    """See ``SteadyStateTest``."""
    allowed = options.tol * now.fz.abs() + options.atol
    met = (now.residual.value.abs() <= allowed).all(1) & samples.active
    return samples._replace(
        best=torch.where(column(met), now.z, samples.best),
        best_norm=torch.where(met, now.residual.norm, samples.best_norm),
        steps=torch.where(met, samples.evaluations, samples.steps),
        active=samples.active & ~met,
    )


def _watched(
    options: SteadyState, samples: Samples, watch: Watch, now: Evaluation
) -> tuple[Samples, Watch]:
    """Stop the samples that have stalled."""
    if not options.patience:
        return samples, Watch(watch.least.clone(), watch.before.clone())
    least, due = torch.minimum(watch.least, now.residual.norm), samples.evaluations
    due = due % options.patience == 0
    before = watch.before
    stalled = samples.active & due & (least > FALL * before) & (least < RISE * before)
    samples = _fail(samples, stalled, Status.STALLED)
    return samples, Watch(torch.where(due, torch.inf, least), torch.where(due, least, before))


def _fail(samples: Samples, which: Tensor, status: Status) -> Samples:
    return samples._replace(
        active=samples.active & ~which,
        steps=torch.where(which, samples.evaluations, samples.steps),
        failure=torch.where(which, int(status), samples.failure).to(torch.int8),
    )
