"""The loop of the ODE solvers as one operation of a graph: the steps and choices are their own."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch._higher_order_ops.while_loop import while_loop
from torch.utils import _pytree as pytree

from implicitcore.graph.stop import Found
from implicitcore.graph.system import GraphField
from implicitcore.ode_solvers.adams import Adams
from implicitcore.ode_solvers.dense import StepStart
from implicitcore.ode_solvers.recorder import extended
from implicitcore.ode_solvers.runge_kutta import RungeKutta
from implicitcore.ode_solvers.samples import Ahead, StepCount, chosen
from implicitcore.ode_solvers.samples import Samples as Travellers
from implicitcore.ode_solvers.step_chooser import COARSE, ControlledSteps, Journey
from implicitcore.ode_solvers.step_size import Adaptive, Fixed, StepSize
from implicitcore.solution import Status
from implicitcore.tensors.norms import all_finite, column, real_dtype

STEPPERS: dict[type, Callable[[Any], tuple[int, int]]] = {
    RungeKutta: lambda solver: (
        len(solver.tableau.a),
        len(solver.tableau.more_a) + (not solver.tableau.fsal),
    ),
    Adams: lambda solver: (1, 0),
}
"""The ODE solvers whose loop a graph can take.

With the evaluations of a step beside the first, and those of its continuous extension.
"""


def evaluations_of(solver: Any, *, between: bool = False) -> int:
    """Evaluations of a step beside the first of one that begins anew.

    Those of its continuous extension too where states ``between`` its ends are wanted: these need
    the velocity at its end.
    """
    found = (count(solver) for kind, count in STEPPERS.items() if isinstance(solver, kind))
    step, extension = next(found)
    return step + extension * between


def begins_anew(solver: Any, *, between: bool = False) -> bool:
    """Whether a step leaves no velocity to the next."""
    return isinstance(solver, RungeKutta) and not (solver.tableau.fsal or between)


class Span(NamedTuple):
    """From where to where each sample is integrated."""

    start: Tensor  # [batch]
    end: Tensor  # [batch]; may be infinite
    coarse: Tensor | None = None  # [batch] bool, see ControlledSteps; None: nobody

    @classmethod
    def of(cls, z: Tensor, horizon: float) -> Span:
        """From time 0 to the horizon."""
        end = torch.full((z.shape[0],), horizon, dtype=real_dtype(z), device=z.device)
        return cls(torch.zeros_like(end), end)

    @classmethod
    def between(cls, start: Tensor, end: Tensor) -> Span:
        """From time to time, where t may have few digits left for dt."""
        far = torch.maximum(start.abs(), end.abs()) * torch.finfo(end.dtype).eps
        return cls(start, end, far > COARSE * (end - start).abs())

    @property
    def length(self) -> Tensor:
        """``[batch]``, of which the shortest step is a part; at most one."""
        return (self.end - self.start).abs().clamp(max=1)


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
    undefined: Tensor  # [batch] int64, of these, those that were not finite
    evaluations: Tensor  # int64


class Taken(NamedTuple):
    """What has to be known of a step to take it again."""

    dt: Tensor  # [batch], with its sign; 0 for a sample that did not accept it
    accept: Tensor  # [batch] bool
    # Of its continuous extension where that is wanted, each [batch, n]: the coefficients after the
    # first, which is the state before the step.
    piece: list[Tensor]


@dataclass(frozen=True, eq=False)
class Steps:
    """The steps of a solver towards a time.

    Attributes:
        solver: makes them.
        field: the dynamics.
        chooser: decides how long they are, and which samples accept them.
        span: where they begin and end.
        between: states between the ends of steps are wanted.
        stepper: takes the steps in the place of the solver.
    """

    solver: Any
    field: Any
    chooser: ControlledSteps
    span: Span
    between: bool = False
    stepper: Any = None

    @classmethod
    def towards(
        cls,
        solver: Any,
        control: StepSize,
        field: GraphField,
        span: Span,
        *,
        between: bool = False,
        limit: int | None = None,
    ) -> Steps:
        """Those that the control of their size chooses, at most so many to a finite end."""
        journey = None if limit is None else Journey(span.start.clone(), limit)
        chooser = ControlledSteps(control, span.length, span.coarse, journey=journey)
        return cls(solver, field, chooser, span, between)

    @property
    def control(self) -> StepSize:
        """Chooses the sizes of the steps."""
        return self.chooser.control

    @property
    def _stepper(self) -> Any:
        return self.solver if self.stepper is None else self.stepper

    def start(self, z: Tensor) -> Moving:
        """Before the first step, whose size is not chosen yet, with no state of the solver."""
        t, z = self.span.start.clone(), z.clone()
        whole, one = torch.zeros_like(t, dtype=torch.int64), torch.ones_like(t)
        yes = torch.ones_like(t, dtype=torch.bool)
        count = torch.zeros((), dtype=torch.int64, device=z.device)
        error = self.chooser.control.remember(yes, one, one).clone()
        failure = torch.zeros_like(whole, dtype=torch.int8)
        return Moving(t, z, (), one, error, yes, failure, whole, whole.clone(), count)

    def sized(self, now: Moving, velocity: Tensor) -> Moving:
        """With the size of the first step; an infinite velocity is none to go on with."""
        now = undefined(now, ~all_finite(velocity))
        size, control = self.chooser.first(self.field, self._samples(now), velocity), self.control
        spent = int(isinstance(control, Adaptive) and control.first_step is None)
        return now._replace(size=size, evaluations=now.evaluations + spent)

    def going(self, now: Moving) -> Tensor:
        """Whether another step is to be taken."""
        return now.active.any() & (now.steps < self.solver.max_steps).all()

    def advance(self, now: Moving) -> tuple[Moving, Taken]:
        """One step, from a velocity that is evaluated where the last one leaves none."""
        if not begins_anew(self.solver, between=self.between):
            return self.step(now)
        now = self.renewed(now)
        # A sample that cannot begin takes no step.
        now = undefined(now, now.active & (now.steps == 0) & ~all_finite(now.state))
        now, taken = self.step(now)
        return now._replace(state=()), taken

    def step(self, now: Moving) -> tuple[Moving, Taken]:
        """One step, accepted or refused for each sample by itself; see :class:`Integration`."""
        samples, cost = self._samples(now), evaluations_of(self.solver, between=self.between)
        attempt = self.chooser.choose(samples)
        dt = attempt.dt.to(real_dtype(now.z))
        step = self._stepper.step(self.field, now.t, dt, now.z, now.state)
        choice = self.chooser.judge(self.field, samples, step, attempt)
        accept, piece = choice.accept, []
        end = torch.where(accept, attempt.end, now.t)
        if self.between:
            start = StepStart(now.t, dt, now.z, now.state)
            step, (_, *piece) = extended(self._stepper, self.field, start, step, end, accept)
        refused = now.active & ~accept
        samples.take()
        lost, wild = self.chooser.lost(samples, attempt, choice, refused)
        kind = torch.where(wild, int(Status.NON_FINITE), int(Status.DIVERGED))
        state = now.state if step.state is None else chosen(accept, step.state, now.state)
        moved = Moving(
            end,
            torch.where(column(accept), step.z, now.z),
            state,
            choice.size.clone(),
            choice.memory.clone(),
            now.active & ~lost & ~(accept & attempt.arrives),
            torch.where(lost, kind.to(torch.int8), now.failure),
            samples.steps,
            samples.count.undefined.clone(),
            now.evaluations + cost,
        )
        # Tensors of their own, as the loop requires.
        own = [part.clone(memory_format=torch.contiguous_format) for part in piece]
        return moved, Taken(torch.where(accept, attempt.dt, 0), accept.clone(), own)

    def renewed(self, now: Moving) -> Moving:
        """With the velocity where the samples are."""
        # Tensors of their own, as the loop requires.
        state = pytree.tree_map(
            lambda leaf: leaf.clone(memory_format=torch.contiguous_format),
            self._stepper.init(self.field, now.t, now.z),
        )
        return now._replace(state=state, evaluations=now.evaluations + 1)

    def _samples(self, now: Moving) -> Travellers:
        end = self.span.end
        ahead = Ahead(now.steps, end, now.steps, end, now.steps)
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
            count=StepCount(now.steps, now.undefined),
        )


def undefined(now: Moving, which: Tensor) -> Moving:
    """Samples ``which`` have a velocity that is not finite."""
    failure = torch.where(which, int(Status.NON_FINITE), now.failure).to(torch.int8)
    return now._replace(failure=failure, active=now.active & ~which)


def started(
    solver: Any, field: GraphField, z0: Tensor, span: Span, *, between: bool = False
) -> tuple[Steps, Moving]:
    """The steps from z0 over a span, and where they begin.

    A method that leaves no velocity to the next step evaluates the first one once more, where that
    estimates the size of a step.
    """
    steps = Steps.towards(
        solver, solver.step_size, field, span, between=between, limit=solver.max_steps
    )
    begin, anew = steps.start(z0), begins_anew(solver, between=between)
    if anew and isinstance(steps.control, Fixed):
        begin = steps.sized(begin, z0)
    else:
        begin = steps.renewed(begin)
        begin = steps.sized(begin, solver.velocity(begin.state))
    return steps, begin._replace(state=()) if anew else begin


def arrived(now: Moving) -> Found:
    """What an integration has come to."""
    status = torch.where(now.active, int(Status.MAX_STEPS), now.failure).to(torch.int8)
    residual = torch.zeros_like(now.t, dtype=real_dtype(now.z))
    return Found(now.z, residual, status, now.steps, now.evaluations)


def integrate(solver: Any, field: GraphField, z0: Tensor, horizon: float) -> Found:
    """The state at the horizon from z0 at time 0, ``[batch, n]``.

    Every sample takes steps of its own and stops by itself, and the loop where all have.
    """
    steps, begin = started(solver, field, z0, Span.of(z0, horizon))
    (now,) = while_loop(steps.going, lambda now: (steps.advance(now)[0],), (begin,))
    return arrived(now)
