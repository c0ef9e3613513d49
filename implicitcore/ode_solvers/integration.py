"""An integration, step by step."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from implicitcore.backends.step_control import Look
from implicitcore.ode_solvers.at_rest import AtRest
from implicitcore.ode_solvers.base import Step, Stop
from implicitcore.ode_solvers.dense import StepStart
from implicitcore.ode_solvers.outputs import Outputs
from implicitcore.ode_solvers.recorder import TrajectoryRecorder, extended
from implicitcore.ode_solvers.samples import Samples, chosen
from implicitcore.ode_solvers.step_chooser import Attempt, Choice, StepChooser
from implicitcore.ode_solvers.stepper import StepObserver, Stepper
from implicitcore.ode_solvers.stops import Stops
from implicitcore.solution import Trajectory
from implicitcore.system.system import System
from implicitcore.tensors.like import check_like
from implicitcore.tensors.norms import all_finite, column, real_dtype


@dataclass(eq=False)
class Integration:
    """An integration on its way: what it is made of, and where its samples are.

    Attributes:
        solver: makes the steps.
        system: the vector field.
        stops: the output times, and where steps have to end.
        chooser: decides how long they are, and which samples accept them.
        samples: where each sample is.
        outputs: the states at the output times.
        recorder: keeps what is wanted of the trajectory between the output times.
        observer: called along the steps.
        started: the first step has a size.
        more: a sample needs a step.
        rest: the samples that need none while others do.
        own_points: the last step named the points of its stages.
    """

    solver: Stepper[Any]
    system: System
    stops: Stops
    chooser: StepChooser
    samples: Samples
    outputs: Outputs
    recorder: TrajectoryRecorder | None = None
    observer: StepObserver | None = None
    started: bool = False
    more: bool = True
    rest: AtRest = field(default_factory=AtRest)
    own_points: bool = False

    @classmethod
    def at_start(
        cls,
        solver: Stepper[Any],
        system: System,
        z0: Tensor,
        stops: Stops,
        chooser: StepChooser,
    ) -> Integration:
        """With all samples at the first of the output times.

        Raises:
            InputError: the field jumps, and the solver looks beyond the end of a step.
        """
        if solver.looks_ahead:
            stops.check_ahead(type(solver).__name__)
        samples, outputs = Samples.at_start(z0, stops), Outputs(z0)
        rest = AtRest(late=solver.velocity_beside)
        return cls(solver, system, stops, chooser, samples, outputs, more=len(z0) > 0, rest=rest)

    def record(self, recorder: TrajectoryRecorder) -> None:
        """Keep what is wanted of the trajectory between the output times."""
        samples, self.recorder, cutter = self.samples, recorder, recorder.cutter
        if cutter is not None:
            samples.finite = ~cutter.undefined
            samples.active, self.rest.late = samples.active & samples.finite, True

    def begin(self, stop: Stop | None = None) -> bool:
        """Make ready for a step; False where no sample needs one."""
        if not self.more:
            return False
        samples, velocity = self.samples, self.velocity()
        if stop is not None:
            samples.active = samples.active & stop(samples.t, samples.z, velocity)
            self.more = self.rest.count(samples.active)
        if self.more and not self.started:
            self._start(velocity)
        if self.more and stop is None:
            self.rest.note(velocity)
        return self.more

    def velocity(self) -> Tensor:
        """Where the samples are; the solver's state is made where there is none."""
        samples = self.samples
        if samples.state is None:
            samples.state = self.solver.init(self.system, samples.t, samples.z)
            if self.observer is not None:
                self.observer.after_init()
        return self.solver.velocity(samples.state)

    @torch.no_grad()
    def _start(self, velocity: Tensor) -> None:
        samples, self.started = self.samples, True
        samples.finite = samples.finite & all_finite(velocity)
        samples.active = samples.active & samples.finite
        self.more = self.rest.count(samples.active)
        if self.more:
            samples.size = self.chooser.first(self.system, samples, velocity)

    def step(self) -> None:
        """One step, accepted or rejected for each sample by itself."""
        samples = self.samples
        samples.whole = self.rest.going == len(samples.z)
        with torch.no_grad():
            attempt = self.chooser.choose(samples)
        if self.observer is not None:
            self.observer.before_step()
        step = self._try(attempt.dt)
        check_like(step.z, samples.z, self.solver, "step")
        with torch.no_grad():
            choice = self.chooser.decide(self.system, samples, step, attempt)
            samples.take()
            look = self.chooser.look(samples, self.stops, attempt, choice)
        if look.refused and (torch.is_grad_enabled() or self.observer is not None):
            step = self._without_refused(step, attempt, choice)
        if step is not None and (self.recorder is not None or look.passed is not None):
            step, attempt = self._follow(step, attempt, choice.accept, look)
        self._advance(step, attempt, choice, look)

    def _try(self, dt: Tensor) -> Step:
        """A step of each sample; t keeps the dtype of the clock, dt has that of the state."""
        samples = self.samples
        size = dt.to(real_dtype(samples.z))
        return self.solver.step(self.system, samples.t, size, samples.z, samples.state)

    def _without_refused(self, step: Step, attempt: Attempt, choice: Choice) -> Step | None:
        """The step as those that accepted it take it, or None where no sample did.

        What f gave beyond its domain is chosen away, and not multiplied by zero: but the zero of
        its cotangent would meet the infinite derivative there, in all parameters. So where a
        refused sample was not finite the step is taken again, in which those that refused it stay.
        """
        samples, accept = self.samples, choice.accept
        with torch.no_grad():
            with_nan = samples.active & ~(accept | choice.error.isfinite())
            accepted, again = torch.stack((accept.any(), with_nan.any())).tolist()
        if not (accepted and again):
            return step if accepted else None
        if self.observer is not None:
            self.observer.before_step()
        return self._try(torch.where(accept, attempt.dt, 0))

    def _follow(
        self, step: Step, attempt: Attempt, accept: Tensor, look: Look
    ) -> tuple[Step, Attempt]:
        """What is wanted of a step between its ends.

        It is cut off where an event happens in it; samples that end there are not active.
        """
        samples, recorder, (dt, _, end) = self.samples, self.recorder, attempt
        if not look.all_pass:
            # Who does not take the step stays in time too, where a solver evaluates its end.
            dt, end = torch.where(accept, dt, 0), torch.where(accept, end, samples.t)
        start = StepStart(samples.t, dt, samples.z, samples.state)
        found = start, step, end, accept
        step, piece = extended(self.solver, self.system, *found, last=look.arrived)
        if recorder is not None:
            step, end = recorder.record(start, step, piece, end, accept)
            attempt = attempt._replace(end=end)
            if recorder.cutter is not None:
                goes_on = recorder.cutter.goes_on
                samples.active = samples.active & goes_on
                samples.finite = samples.finite & ~recorder.cutter.undefined
                attempt = attempt._replace(arrives=attempt.arrives & goes_on)
        if look.passed is not None:
            self._pass(start, piece, end, look.passed, look.all_pass)
        return step, attempt

    def _pass(
        self, start: StepStart, piece: Sequence[Tensor], end: Tensor, passed: Tensor, every: bool
    ) -> None:
        """Samples ``passed`` output times on their way to the end of a step."""
        samples, first = self.samples, self.samples.ahead.next
        with torch.no_grad():
            reached = self.stops.passed(end)
            if not every:
                reached = torch.where(passed, reached, first)
            if self.recorder is not None:  # an event may have cut the step off before them
                reached = torch.maximum(reached, first)
            samples.ahead = samples.ahead.passed(reached, self.stops)
        self.outputs.passing(start, piece, None if every else passed, first, reached)

    def _advance(self, step: Step | None, attempt: Attempt, choice: Choice, look: Look) -> None:
        """Go to the end of a step where it was accepted."""
        samples, accept = self.samples, choice.accept
        with torch.no_grad():
            t = None if self.recorder is not None else choice.t
            samples.t = torch.where(accept, attempt.end, samples.t) if t is None else t
            samples.error = choice.memory
            before, samples.size = samples.size, choice.size
            if look.refused:
                refused = samples.active & ~accept
                self._give_up(self.chooser.lost(samples, attempt, choice, refused))
            if self.observer is not None and step is not None:
                self.observer.after_step(step, attempt.dt, None if look.alike else accept)
        self.rest.same = step is None
        if step is not None:
            self._keep(step, None if look.alike else look.follows)
        if look.arrived:
            self._arrive(accept & attempt.arrives, before)
        if look.arrived or look.refused or self.recorder is not None:
            self.more = self.rest.count(samples.active)

    def _give_up(self, found: tuple[Tensor, Tensor] | None) -> None:
        if found is None:
            return
        samples, (lost, undefined) = self.samples, found
        samples.finite = samples.finite & ~undefined
        samples.moving = samples.moving & ~lost
        samples.active = samples.active & ~lost

    def _arrive(self, arrived: Tensor, before: Tensor) -> None:
        """Samples ``arrived`` at their next stops; ``before`` are their last step sizes."""
        samples, stops = self.samples, self.stops
        came, last = samples.ahead, len(stops.ends) - 1
        samples.ahead = ahead = came.arrived(arrived, samples.steps, stops)
        samples.done = ahead.stop > last
        samples.active = samples.active & ~samples.done
        # A step that was shortened to arrive says little about the size that the error allows.
        samples.size = torch.where(arrived, torch.maximum(samples.size, before), samples.size)
        self.outputs.arrive(samples.z, arrived, came.next, ahead.next)
        if self.observer is not None:
            here = arrived & (ahead.next > came.next)
            samples.z = self.observer.arrive(samples.z, here, came.next)
            if self.own_points:
                self._restart(here)
            else:
                samples.state = None
        if stops.jumps:
            self._leap(arrived, stops.resumes[came.stop.clamp(max=last)])

    def _leap(self, arrived: Tensor, resumes: Tensor) -> None:
        """Samples ``arrived`` go on behind a jump of the field, with the velocity there."""
        samples = self.samples
        jumped = arrived & (samples.t != resumes)
        samples.t = torch.where(jumped, resumes, samples.t)
        self._restart(jumped)

    def _restart(self, which: Tensor) -> None:
        """The solver begins anew with the samples that were moved in time or state."""
        samples = self.samples
        if samples.state is not None and bool(which.any()):
            state = self.solver.init(self.system, samples.t, samples.z)
            samples.state = chosen(which, state, samples.state)

    def _keep(self, step: Step, which: Tensor | None) -> None:
        """The new state for the samples that accepted; None: for all, without a choice."""
        samples, rest = self.samples, self.rest.rows
        self.own_points = bool(step.points)
        if which is None:
            samples.z, samples.state = step.z, step.state
            return
        samples.z = torch.where(column(which), step.z, samples.z)
        which = which if rest is None else which | rest  # as it was evaluated beside the others
        if step.state is None or (self.observer is not None and not self.own_points):
            samples.state = None  # an observer needs each first stage at its own point
        else:
            samples.state = chosen(which, step.state, samples.state)

    def trajectory(self) -> Trajectory:
        """The states at the output times.

        A sample that failed keeps its last state in those it did not reach.
        """
        samples, outputs, recorder = self.samples, self.outputs, self.recorder
        times, cutter = self.stops.times, recorder and recorder.cutter
        z0, reached = outputs.start, samples.ahead.next
        asked = z0 if self.observer is None else None
        self.rest.check(self.system, self.solver.velocity, samples, times, asked)
        found = recorder.found(self.system, self.stops) if recorder else {}
        late = outputs.late(samples.now(found.get("event_times")), samples.z, reached)
        return Trajectory(
            z=outputs.assemble(outputs.rows, late, reached, times),
            start=z0,
            end=samples.z if outputs.saves else None,
            status=samples.status(cutter and cutter.ended),
            steps=samples.steps,
            evaluations=self.system.evaluations,
            times=times,
            **found,
        )
