"""Steps that all samples take together."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor

from implicitcore.ode_solvers.base import Step
from implicitcore.ode_solvers.dense import StepStart
from implicitcore.ode_solvers.grid import Visit
from implicitcore.ode_solvers.integration import Integration
from implicitcore.ode_solvers.recorder import extended
from implicitcore.ode_solvers.samples import Ahead
from implicitcore.ode_solvers.step_chooser import GridSteps
from implicitcore.tensors.like import check_like
from implicitcore.tensors.norms import real_dtype, whole_finite

# Nothing is ahead.
NEVER = Visit(-1, 0, arrives=True)

# After so many steps a look at the device tells whether all samples are finite.
EVERY = 32


class _Place(NamedTuple):
    """Where all samples were known to be finite."""

    step: int
    visit: int
    rows: int  # of the outputs
    z: Tensor
    state: Any
    look: int  # after how many steps they are looked at again; -1: never


class _Ahead(NamedTuple):
    """What comes next: a visit, after how many steps, and how many output times are reached."""

    visit: Visit
    due: int
    reached: int


class Lockstep:
    """The steps of an integration over a grid for as long as all samples take them.

    Nothing is chosen for a sample by itself, and nothing is read of the device: a step is the
    solver's own, and which output times it passes is known beforehand. Where a sample turns out not
    to be finite, the steps since the last look are forgotten: from there on the integration goes on
    by :meth:`Integration.step`, over the same grid.

    Arguments:
        run: the integration; what its samples have beside z and the solver's state counts only
            after :meth:`settle`.
        chooser: the grid, and where on it the samples are.
        every: how many steps are taken before a look; None takes them without one.
    """

    def __init__(self, run: Integration, chooser: GridSteps, every: int | None = EVERY) -> None:
        self.run, self.chooser, self.every = run, chooser, every
        self.going, self.visit = run.more, chooser.grid.visits_before(chooser.index)
        self._ready = run.solver.equal_step(run.system) if run.observer is None else None
        self._times = self._times_from(chooser.index)
        self._start: Tensor | None = None  # the first velocity
        self._expect()
        self._enter()
        self._mark()

    @classmethod
    def of(cls, run: Integration, chooser: GridSteps) -> Lockstep:
        """The steps of an integration that begins.

        Each is looked at where what an observer adds up cannot be taken back, and where a step may
        hide a NaN.
        """
        each = run.observer is not None or not run.solver.lockstep
        return cls(run, chooser, every=1 if each else EVERY)

    @property
    def spent(self) -> int:
        """How many steps were taken since the last stop."""
        index, stops = self.chooser.index, self.chooser.grid.stops
        before = self.chooser.grid.stops_before(index)
        return index - stops[before - 1] if before else index

    def step(self) -> bool:
        """One step of all samples; False where there is none left that they take together."""
        if not self.going:
            return False
        index = self.chooser.index + 1
        passes = index == self._ahead.due and not self._ahead.visit.arrives
        start, step = self._followed() if passes else (None, self._take())
        self.chooser.index = index
        if index == self._known.look and not self._finite():
            self._back()
            return False
        if start is not None and step is not None:
            self._pass(start, step)
        if index in (self._ahead.due, self._known.look):
            self._end(step)
        return True

    def free(self) -> int:
        """How many steps are ahead that are nothing but steps, but for the end of the last."""
        place, visit, look = self.chooser.index, self._ahead.visit, self._known.look
        due = (
            self._ahead.due - (not visit.arrives) if visit is not NEVER else len(self.chooser.grid)
        )
        return (due if look < 0 else min(due, look)) - place

    def moved(self, steps: int, z: Tensor, state: Any) -> None:
        """So many steps, no more than are :meth:`free`, were taken to a state ``[batch, n]``."""
        samples, index = self.run.samples, self.chooser.index + steps
        samples.z, samples.state, self.chooser.index = z, state, index
        self._times = self._times_from(index)
        if index == self._known.look and not self._finite():
            self._back()
        elif index in (self._ahead.due, self._known.look):
            self._end(None)

    def _times_from(self, index: int) -> Iterator[Any]:
        """The times of the steps from this one on, or of all their stages."""
        grid, batch, ready = self.chooser.grid, len(self.run.samples.z), self._ready
        if ready is None:
            return grid.begins(index, batch)
        return grid.moments(index, batch, ready.nodes, ready.field)

    def _take(self) -> Step | None:
        """The next step; its parts are for an observer."""
        run, samples, ready = self.run, self.run.samples, self._ready
        if ready is None:
            return self._whole(next(self._times))
        if not run.started:
            self._init(self._now())
        samples.z, samples.state, _ = ready.take(
            next(self._times), self._dt, samples.z, samples.state
        )
        return None

    def _whole(self, t: Tensor) -> Step:
        """The solver's own step, with all its parts."""
        run, samples = self.run, self.run.samples
        if samples.state is None:
            self._init(t)
        if run.observer is not None:
            run.observer.before_step()
        step = run.solver.step(run.system, t, self._dt, samples.z, samples.state)
        check_like(step.z, samples.z, run.solver, "step")
        samples.z, samples.state = step.z, step.state
        return step

    def _followed(self) -> tuple[StepStart, Step]:
        """The next step with its start, for its continuous extension."""
        samples, ready, t = self.run.samples, self._ready, self._now()
        z, times = samples.z, next(self._times)
        if samples.state is None and (ready is None or not self.run.started):
            self._init(t)
        state = samples.state
        if ready is None:
            return StepStart(t, self._size, z, state), self._whole(times)
        end, following, stages = ready.take(times, self._dt, z, state)
        samples.z, samples.state = end, following
        step = Step(end, None, following, stages, ready.weights)
        return StepStart(t, self._size, z, stages[0]), step

    def _pass(self, start: StepStart, step: Step) -> None:
        """All samples passed output times in a step."""
        run, samples, grid, index = (
            self.run,
            self.run.samples,
            self.chooser.grid,
            self.chooser.index,
        )
        end, last = grid.end[index - 1].expand(len(samples.z)), index == len(grid)
        step, piece = extended(run.solver, run.system, start, step, end, last=last)
        samples.state = step.state  # what the next step begins with is not evaluated twice
        run.outputs.pass_together(start, piece, self._ahead.reached, self._ahead.visit.reached)
        self._go_on()

    def _now(self) -> Tensor:
        return self.chooser.grid.t[self.chooser.index].expand(len(self.run.samples.z))

    def settle(self) -> None:
        """Let the samples know where they are."""
        run, samples, stops = self.run, self.run.samples, self.run.stops
        none, every = torch.zeros_like(samples.count.each), torch.ones_like(samples.done)
        samples.count = samples.count._replace(each=none + self.chooser.index, together=0)
        grid, index = self.chooser.grid, self.chooser.index
        stop = grid.stops_before(index)
        run.more = run.more and stop < len(stops.ends)
        if not run.more:
            samples.done, samples.active = every, ~every
            samples.ahead = samples.ahead._replace(next=none + len(stops.times))
            return
        if self._start is not None:
            run.rest.note(self._start)
        t = grid.end[-1] if index == len(grid) else grid.t[index]
        samples.t, samples.size = t.expand(len(none)), self._size.abs()
        samples.ahead = Ahead.at_start(none, stops)
        if stop:
            before = samples.ahead._replace(stop=none + (stop - 1))
            samples.ahead = before.arrived(every, samples.steps - self.spent, stops)
        samples.ahead = samples.ahead.passed(none + self._ahead.reached, stops)

    def _init(self, t: Tensor) -> None:
        """The state of the solver, where a step did not leave it."""
        run, samples = self.run, self.run.samples
        samples.state = run.solver.init(run.system, t, samples.z)
        if run.observer is not None:
            run.observer.after_init()
        if not run.started:
            run.started, self._start = True, run.solver.velocity(samples.state)

    def _finite(self) -> bool:
        """Whether all samples are: one look at the device, and one more at the first velocity."""
        z = self.run.samples.z
        check_like(z, self._known.z, self.run.solver, "step")
        start = self._start if self._known.step == 0 else None
        return whole_finite(z) and (start is None or whole_finite(start))

    def _end(self, step: Step | None) -> None:
        """What follows a step that arrives somewhere, or after which there was a look."""
        run, index = self.run, self.chooser.index
        self.going = index < len(self.chooser.grid)
        if run.observer is not None and step is not None:
            with torch.no_grad():
                run.observer.after_step(step, self._size, None)
        if index == self._ahead.due:
            self._arrive()
        if index == self._known.look:
            self._mark()

    def _arrive(self) -> None:
        """All samples are at a stop or an output time."""
        run, samples, (came, _, first) = self.run, self.run.samples, self._ahead
        run.outputs.arrive_together(samples.z, first, came.reached)
        if run.observer is not None:
            which = torch.full_like(samples.count.each, first)
            here = torch.full_like(samples.done, came.reached > first)
            samples.z, samples.state = run.observer.arrive(samples.z, here, which), None
        if came.jumps:
            samples.state = None
        self._go_on()
        if self.going and came.stops:
            self._enter()

    def _go_on(self) -> None:
        """To the next visit."""
        self.visit += 1
        self._expect()

    def _expect(self) -> None:
        """What is ahead."""
        visits = self.chooser.grid.visits
        reached = visits[self.visit - 1].reached if self.visit else 1
        visit = visits[self.visit] if self.visit < len(visits) else NEVER
        self._ahead = _Ahead(visit, visit.step, reached)

    def _enter(self) -> None:
        """Samples are at the start of a span between two stops."""
        run, grid = self.run, self.chooser.grid
        size = grid.size[min(self.chooser.index, len(grid) - 1)]
        dt, batch = size.to(real_dtype(run.samples.z)), len(run.samples.z)
        self._size = size.expand(batch)
        self._dt = dt if run.solver.lockstep else dt.expand(batch)

    def _mark(self) -> None:
        """All samples are finite here."""
        samples, index, steps = self.run.samples, self.chooser.index, len(self.chooser.grid)
        rows = len(self.run.outputs.rows)
        look = -1 if self.every is None else min(index + self.every, steps)
        self._known = _Place(index, self.visit, rows, samples.z, samples.state, look)

    def _back(self) -> None:
        """Forget the steps since the last look."""
        run, known, self.going = self.run, self._known, False
        self.chooser.index, self.visit, _, run.samples.z, run.samples.state, _ = known
        run.started = known.step > 0
        run.outputs.forget(known.rows)
        self._expect()
        self._enter()
