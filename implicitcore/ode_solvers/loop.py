"""The loop of every stepwise ODE solver."""

from __future__ import annotations

from contextlib import closing
from typing import Any

import torch
from torch import Tensor

from implicitcore.ode_solvers.base import Stop
from implicitcore.ode_solvers.dense import Pieces
from implicitcore.ode_solvers.event import Events, as_events
from implicitcore.ode_solvers.events import Crossings
from implicitcore.ode_solvers.graphed_grid import GridChunks
from implicitcore.ode_solvers.graphed_steps import Chunks
from implicitcore.ode_solvers.integration import Integration
from implicitcore.ode_solvers.lockstep import Lockstep
from implicitcore.ode_solvers.recorder import TrajectoryRecorder
from implicitcore.ode_solvers.saved import Save, SavedOutputs
from implicitcore.ode_solvers.step_chooser import ControlledSteps, GridSteps, choose_steps
from implicitcore.ode_solvers.stepper import StepObserver, Stepper
from implicitcore.ode_solvers.stops import StepAt, Stops
from implicitcore.ode_solvers.times import check_times
from implicitcore.solution import Trajectory
from implicitcore.system.system import System


def integrate_loop(  # noqa: PLR0913 - keyword options
    solver: Stepper[Any],
    system: System,
    z0: Tensor,
    times: Tensor,
    stop: Stop | None = None,
    *,
    dense: bool = False,
    event: Events | None = None,
    hit_times: bool = False,
    step_at: StepAt | None = None,
    save: Save | None = None,
    observer: StepObserver | None = None,
) -> Trajectory:
    """Integrate from z0 over the output times, each sample at its own pace.

    Arguments:
        solver: makes the steps.
        system: the vector field.
        z0: ``[batch, n]``.
        times: output times ``[T]``, or ``[T, batch]``, those of each sample.
        stop: see :meth:`~implicitcore.ode_solvers.base.ODESolver.solve`.
        dense: keep the continuous extension.
        event: end each sample where this, or the first of these, happens.
        hit_times: end a step at each output time; else they are interpolated.
        step_at: times at which the field jumps: steps end before and begin behind them.
        save: what is kept at the output times, in place of the states.
        observer: called along the steps, which then end at each output time.
    """
    control = solver.step_size if stop is None else solver.step_size.steady_state()
    times = check_times(times, z0, bounded=stop is None, of_each=True)
    hits = hit_times or observer is not None
    stops = Stops.of(times, z0, hit_times=hits, step_at=step_at)
    free = ControlledSteps.between(control, stops) if stop is not None else None
    chooser = free or choose_steps(control, stops, solver.max_steps)
    run = Integration.at_start(solver, system, z0, stops, chooser)
    run.observer = observer
    if save is not None:
        run.outputs = SavedOutputs(save, system, times, z0)
    steps = StepsLeft(solver.max_steps)
    events, t = as_events(event), run.samples.t
    if dense or events:
        pieces = Pieces(t, z0) if dense else None
        run.record(TrajectoryRecorder(pieces, Crossings(events, system, t, z0) if events else None))
    elif isinstance(chooser, GridSteps):
        together = Lockstep.of(run, chooser)
        _take_together(together)
        steps.sure -= together.spent
    with closing(Chunks(run, stop)) as chunks:
        while steps.take(run):
            if not run.begin(stop):
                break
            run.step()
            if chunks.wanted:
                steps.sure -= chunks.go_on(steps.sure)
        else:
            if stop is not None:
                run.begin(stop)  # the state after the last step is looked at too
    return run.trajectory()


class StepsLeft:
    """How many steps the samples of an integration may still take: so many from stop to stop.

    Arguments:
        limit: most steps of a sample between two stops.

    Attributes:
        sure: in so many steps no sample is out of them: only then they are looked at.
    """

    def __init__(self, limit: int) -> None:
        self.limit = self.sure = limit

    def take(self, run: Integration) -> bool:
        """Whether another step may be taken; samples that are out of steps are not active then."""
        if not self.sure:
            self.sure = self._left(run)
        self.sure -= 1
        return self.sure >= 0

    @torch.no_grad()
    def _left(self, run: Integration) -> int:
        if len(run.stops.ends) == 1:
            return 0  # who still takes steps took all of them
        samples = run.samples
        spent = samples.steps - samples.ahead.mark
        going = samples.active & (spent < self.limit)
        most = int(torch.where(going, spent, -1).max())
        if most < 0:
            return 0
        samples.active = going
        run.rest.count(going)
        return self.limit - most


def _take_together(together: Lockstep) -> None:
    with closing(GridChunks(together)) as chunks:
        while together.step():
            if chunks.wanted:
                chunks.go_on()
    together.settle()
