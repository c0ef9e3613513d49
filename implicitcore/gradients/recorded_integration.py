"""An integration that is taken again, step by step."""

from __future__ import annotations

import copy
from typing import Any

from torch import Tensor

from implicitcore.gradients.base import Solve
from implicitcore.gradients.checkpoints import Checkpoints
from implicitcore.ode_solvers.events import Crossings
from implicitcore.ode_solvers.integration import Integration
from implicitcore.ode_solvers.lockstep import Lockstep
from implicitcore.ode_solvers.loop import StepsLeft
from implicitcore.ode_solvers.recorded_cuts import RecordedCuts, ReplayedCuts
from implicitcore.ode_solvers.recorded_steps import RecordedSteps, ReplayedSteps
from implicitcore.ode_solvers.recorder import TrajectoryRecorder
from implicitcore.ode_solvers.samples import Samples
from implicitcore.ode_solvers.saved import SavedOutputs
from implicitcore.ode_solvers.step_chooser import GridSteps, choose_steps
from implicitcore.ode_solvers.stepwise import StepwiseODESolver
from implicitcore.ode_solvers.stops import Stops
from implicitcore.ode_solvers.times import check_times
from implicitcore.system.system import System


class RecordedIntegration:
    """An integration whose choices are recorded, with the states that were kept of it.

    Arguments:
        solver: makes the steps.
        solve: has the output times.
        system: the vector field.
        z0: ``[batch, n]``.
        budget: most states kept beside the first.
    """

    def __init__(
        self,
        solver: StepwiseODESolver[Any],
        solve: Solve,
        system: System,
        z0: Tensor,
        budget: int | None,
    ) -> None:
        control, times = solver.step_size, check_times(solve.grid, z0, of_each=True)
        stops = Stops.of(times, z0, hit_times=solve.hit_times, step_at=solve.step_at)
        chooser = choose_steps(control, stops, solver.max_steps)
        self.chooser, self.z0 = RecordedSteps(chooser), z0
        self.kept = Checkpoints[Samples](budget)
        self.run = run = Integration.at_start(solver, system, z0, stops, self.chooser)
        if solve.save is not None:
            run.outputs = SavedOutputs(solve.save, system, times, z0)
        self.grid, self.together, left = None, 0, StepsLeft(solver.max_steps)
        self.cuts: RecordedCuts | None = None
        if solve.events:
            self.cuts = RecordedCuts(Crossings(solve.events, system, run.samples.t, z0))
            run.record(TrajectoryRecorder(cutter=self.cuts))
        elif isinstance(chooser, GridSteps):
            left.sure -= self._lockstep(chooser)
        while run.more and left.take(run):
            self.kept.offer(self.steps, copy.copy(run.samples))
            if run.begin():
                run.step()

    @property
    def steps(self) -> int:
        """How many were taken."""
        return self.together + len(self.chooser.record)

    def _lockstep(self, chooser: GridSteps) -> int:
        """The steps of all samples together; how many of them are behind the last stop."""
        together = Lockstep.of(self.run, chooser)
        while together.going:
            self.kept.offer(chooser.index, copy.copy(self.run.samples))
            together.step()
        together.settle()
        self.grid, self.together = chooser.grid, chooser.index
        self.kept.forget(self.together)
        return together.spent

    def replay(self, system: System, samples: Samples, index: int, steps: int) -> Integration:
        """An integration that goes on from the samples before a step as this one did.

        So many steps: those of all samples together first.
        """
        run, first = self.run, min(steps, max(self.together - index, 0))
        chooser = ReplayedSteps(self.chooser.record, index + first - self.together)
        cuts = self.cuts and TrajectoryRecorder(cutter=ReplayedCuts(self.cuts.record, chooser))
        again = Integration(
            run.solver,
            system,
            run.stops,
            chooser,
            copy.copy(samples),
            run.outputs.again(system),
            recorder=cuts,
            started=True,
        )
        if first and self.grid is not None:
            together = Lockstep(again, GridSteps(self.grid, index), every=None)
            for _ in range(first):
                together.step()
            if index + steps >= self.together:
                together.settle()
        for _ in range(steps - first):
            again.begin()
            again.step()
        return again
