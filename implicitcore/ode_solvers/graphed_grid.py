"""Chunks of equal steps, f included, as CUDA graphs."""

from __future__ import annotations

from collections.abc import Hashable

import torch

from implicitcore.backends.capture import Capture
from implicitcore.ode_solvers.grid import StageTimes
from implicitcore.ode_solvers.lockstep import Lockstep
from implicitcore.ode_solvers.watched_field import CHUNK, LENGTH, WatchedField, recording
from implicitcore.system.kept_graphs import SolveGraphs, lend
from implicitcore.system.system import System
from implicitcore.tensors.norms import real_dtype
from implicitcore.tensors.watched import CaptureError, described


class GraphedGrid(SolveGraphs):
    """The memory of integrations of one f and one set of shapes, and a chunk of steps as a graph.

    Arguments:
        together: the steps of one of these, before one that begins with a state as that in all.
        recorder: records graphs.

    Attributes:
        evaluations: of f in a chunk.
    """

    def __init__(self, together: Lockstep, recorder: Capture) -> None:
        super().__init__(recorder)
        run, grid = together.run, together.chooser.grid
        samples, self.solver = run.samples, run.solver
        self.z = torch.empty_like(samples.z.contiguous())
        self.times = grid.t.new_zeros(2, LENGTH)  # when its steps begin, and their dt
        self.first = None if samples.state is None else torch.empty_like(self.z)
        self.evaluations = 0

    def go_on(self, together: Lockstep) -> None:
        """Go on by chunks up to where the loop has more to do than steps."""
        run, grid, index = together.run, together.chooser.grid, together.chooser.index
        samples = run.samples
        steps = together.free() // LENGTH * LENGTH
        if not steps or (samples.state is None) != (self.first is None):
            return
        if not self.load(run.system):
            return
        self.z.copy_(samples.z)
        if self.first is not None:
            self.first.copy_(samples.state)
        for place in range(index, index + steps, LENGTH):
            self.times[0].copy_(grid.t[place : place + LENGTH])
            self.times[1].copy_(grid.size[place : place + LENGTH])
            self.pieces[CHUNK]()
        run.system.evaluations += steps // LENGTH * self.evaluations
        together.moved(steps, self.z.clone(), None if self.first is None else self.first.clone())

    def record(self, bound: System) -> None:
        """See :meth:`SolveGraphs.record`."""
        watch = self.watch(bound, [self.z])
        system = WatchedField(bound.problem, bound.context, watch)
        ready = self.solver.equal_step(system)
        if ready is None:
            raise CaptureError("its solver makes no equal steps for many")
        begins, sizes = self.times.unbind(0)
        times = StageTimes.of(ready.nodes, begins)

        def steps() -> None:
            z, first = self.z, self.first
            moments = times.of_steps(begins, sizes, len(z), ready.field)
            for place in range(LENGTH):
                dt = sizes[place].to(real_dtype(z))
                z, first, _ = ready.take(times.in_order(moments[place]), dt, z, first)
            self.z.copy_(z)
            if self.first is not None and first is not None:
                self.first.copy_(first)

        self.z.zero_()
        self.capture.warm_up(steps)
        watch.made.clear()  # its memory is free again
        before = system.evaluations
        self.pieces[CHUNK] = self.capture.record(steps)
        self.evaluations = system.evaluations - before


class GridChunks:
    """The chunks of an integration over a grid, where a backend records them.

    Arguments:
        together: the steps.
    """

    def __init__(self, together: Lockstep) -> None:
        self.together, grid = together, together.chooser.grid
        self.wanted = len(grid) > LENGTH and recording(together.run)
        self.graphs: GraphedGrid | None = None

    def go_on(self) -> None:
        """Go on after a step."""
        if not self.wanted or not self.together.going:
            return
        if self.graphs is None:
            self.graphs = self._borrow()
            self.wanted = self.graphs is not None
        if self.graphs is not None:
            self.graphs.go_on(self.together)

    def close(self) -> None:
        """The integration has ended."""
        if self.graphs is not None:
            self.graphs.end()

    def _borrow(self) -> GraphedGrid | None:
        together = self.together
        run, device = together.run, together.run.samples.z.device
        found = lend(run.system, device, self._key, lambda made: GraphedGrid(together, made))
        if found is not None:
            found.start()
        return found

    def _key(self) -> Hashable:
        run, grid = self.together.run, self.together.chooser.grid
        if not run.solver.recordable or run.solver.equal_step(run.system) is None:
            raise CaptureError(f"the steps of {type(run.solver).__name__} are not recorded")
        return "equal steps", run.solver, described(run.samples.z), grid.t.dtype
