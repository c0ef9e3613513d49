"""Chunks of adaptive steps, f included, as CUDA graphs."""

from __future__ import annotations

import copy
from collections import deque
from collections.abc import Callable, Hashable
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from implicitcore.backends.capture import Capture
from implicitcore.backends.pinned import values_later
from implicitcore.ode_solvers.base import Stop
from implicitcore.ode_solvers.integration import Integration
from implicitcore.ode_solvers.outputs import Outputs, Rows
from implicitcore.ode_solvers.recorded_chunk import (
    OutputMemory,
    RecordedChunk,
    leaves_of,
    with_leaves,
)
from implicitcore.ode_solvers.step_chooser import ControlledSteps
from implicitcore.ode_solvers.step_size import Adaptive, StepSize
from implicitcore.ode_solvers.watched_field import CHUNK, LENGTH, WatchedField, recording
from implicitcore.system.kept_graphs import SolveGraphs, lend
from implicitcore.system.system import System
from implicitcore.tensors.watched import CaptureError


class GraphedSteps(SolveGraphs):
    """The memory of integrations of one f and one set of shapes, and a chunk of steps as a graph.

    Arguments:
        run: one of these integrations, before a step.
        chooser: its choices.
        recorder: records graphs.

    Attributes:
        evaluations: of f in a chunk.
    """

    def __init__(self, run: Integration, chooser: ControlledSteps, recorder: Capture) -> None:
        super().__init__(recorder)
        leaves, spec = pytree.tree_flatten(_given(run, chooser))
        self.memory = [_room(leaf) if isinstance(leaf, Tensor) else leaf for leaf in leaves]
        kept, (span, coarse), stops = pytree.tree_unflatten(self.memory, spec)
        samples, stops = with_leaves(run.samples, kept), replace(run.stops, **stops)
        journey = chooser.journey and chooser.journey._replace(start=stops.start[0])
        chooser = ControlledSteps(chooser.control, span, coarse, stops, journey)
        self.outputs = OutputMemory(samples.z, samples.t, stops)
        self.chunk = RecordedChunk(run.solver, chooser, stops, samples, self.outputs)
        self.given: list[Any] = []
        self.evaluations = 0

    def go_on(self, run: Integration, chooser: ControlledSteps, most: int) -> int:
        """Go on by chunks for as long as samples are not known to be done.

        Arguments:
            run: the integration, whose field was evaluated in this solve.
            chooser: its choices.
            most: so many steps none of the samples is out of steps in.

        Returns:
            How many steps there were.
        """
        self.given = pytree.tree_leaves(_given(run, chooser))
        self._fill()
        recorded = self.load(run.system)
        self.given = []
        if not recorded:
            return 0
        came = run.samples.ahead.stop.clone()
        taken = self._replay(run.outputs, most)
        run.system.evaluations += taken // LENGTH * self.evaluations
        kept = leaves_of(self.chunk.samples)
        run.samples = with_leaves(run.samples, pytree.tree_map_only(Tensor, torch.clone, kept))
        self._arrived(run, came)
        run.more = run.rest.count(run.samples.active)
        return taken

    def _fill(self) -> None:
        """Copy what the integration has to where the graph reads it."""
        for kept, new in zip(self.memory, self.given, strict=True):
            if isinstance(kept, Tensor):
                kept.copy_(new)

    def _replay(self, outputs: Outputs, most: int) -> int:
        """Launch chunks; the host looks at each when the next is launched, near the end at once."""
        taken, going, late, waiting = 0, True, 1, deque[Callable[[], tuple[int, int]]]()
        while going and taken + LENGTH <= most:
            self.pieces[CHUNK]()
            taken += LENGTH
            waiting.append(self._look(outputs))
            while len(waiting) > late:
                active, far = waiting.popleft()()
                going, late = active > 0, int(far > 0)
        for look in waiting:
            look()
        return taken

    def _look(self, outputs: Outputs) -> Callable[[], tuple[int, int]]:
        """What the host is to know of a chunk: a call that waits for it, and not for the next.

        It gives how many samples are active, and far from the end, and hands on the pieces that
        hold outputs.
        """
        found, counts = self.outputs, values_later(self.outputs.counts)
        kept = None
        if found.pieces is not None:  # the next chunk is written in their place
            kept = found.pieces.clone(), found.clocks.clone(), found.passed.clone()

        def look() -> tuple[int, int]:
            active, far, *passing = counts()
            if kept is not None and any(passing):
                outputs.add(*_passing(*kept, sum(passing)))
            return active, far

        return look

    def _arrived(self, run: Integration, came: Tensor) -> None:
        """Hand on the states with which samples arrived at their stops, from the one they had."""
        stops = torch.arange(len(run.stops.ends), device=came.device).unsqueeze(1)
        which = (stops >= came) & (stops < run.samples.ahead.stop)
        stop, sample = which.nonzero().unbind(1)
        first, end = self.outputs.first[stop, sample], run.stops.reached[stop]
        run.outputs.add(self.outputs.states[stop, sample], Rows(sample, first, end))

    def record(self, bound: System) -> None:
        """See :meth:`SolveGraphs.record`."""
        watch = self.watch(bound, [leaf for leaf in self.memory if isinstance(leaf, Tensor)])
        system, kept = WatchedField(bound.problem, bound.context, watch), self.chunk.samples

        def steps() -> None:
            samples = copy.copy(kept)
            self.chunk.run(system, samples)
            found = pytree.tree_leaves(leaves_of(samples))
            for memory, new in zip(pytree.tree_leaves(leaves_of(kept)), found, strict=True):
                if isinstance(memory, Tensor):
                    memory.copy_(new)

        self.capture.warm_up(steps)
        watch.made.clear()  # its memory is free again
        before = system.evaluations
        self.pieces[CHUNK] = self.capture.record(steps)
        self.evaluations = system.evaluations - before
        self._fill()  # the steps were taken


def _passing(pieces: Tensor, clocks: Tensor, passed: Tensor, many: int) -> tuple[Tensor, Rows]:
    """The pieces by which so many samples passed output times, in all steps of a chunk."""
    (steps, batch), device = passed.shape[1:], passed.device
    parts = pieces.flatten(0, 1), *passed.flatten(1), *clocks.flatten(1)
    sample = torch.arange(batch, device=device).repeat(steps)
    if many < len(sample):  # how many is known: the host need not wait for which
        here = (passed[1] > passed[0]).flatten().to(torch.uint8)
        index = here.sort(descending=True, stable=True).indices[:many]
        sample, *parts = (part.index_select(0, index) for part in (sample, *parts))
    rows, *which = parts
    return rows, Rows(sample, *which)


def _room(like: Tensor) -> Tensor:
    return torch.empty(like.shape, dtype=like.dtype, device=like.device)


def _shape(tensor: Tensor) -> tuple[Any, ...]:
    return tensor.shape, tensor.dtype, tensor.device


def _given(run: Integration, chooser: ControlledSteps) -> tuple[Any, Any, Any]:
    """All that a step reads beside f: what samples have, and the tensors of a solve."""
    stops = {name: value for name, value in vars(run.stops).items() if isinstance(value, Tensor)}
    return leaves_of(run.samples), (chooser.span, chooser.coarse), stops


class Chunks:
    """The chunks of an integration, where a backend records them.

    Arguments:
        run: the integration.
        stop: as :meth:`~implicitcore.ode_solvers.base.ODESolver.solve` has it.
    """

    def __init__(self, run: Integration, stop: Stop | None) -> None:
        self.run, self.stop = run, stop
        self.chooser = run.chooser if isinstance(run.chooser, ControlledSteps) else None
        self.wanted = self.chooser is not None and recording(run)
        self.graphs: GraphedSteps | None = None

    def go_on(self, most: int) -> int:
        """Go on after a step; how many steps there were, at most so many."""
        run, chooser = self.run, self.chooser
        if chooser is None or not self.wanted or most < LENGTH or not run.more:
            return 0
        if self.graphs is None:
            self.graphs = self._borrow(chooser)
            self.wanted = self.graphs is not None
        if self.graphs is None or not run.begin():
            return 0
        return self.graphs.go_on(run, chooser, most)

    def close(self) -> None:
        """The integration has ended."""
        if self.graphs is not None:
            self.graphs.end()

    def _borrow(self, chooser: ControlledSteps) -> GraphedSteps | None:
        run = self.run
        found = lend(
            run.system,
            run.samples.z.device,
            lambda: self._key(chooser),
            lambda recorder: GraphedSteps(run, chooser, recorder),
        )
        if found is not None:
            found.start()
        return found

    def _key(self, chooser: ControlledSteps) -> Hashable:
        run, stops = self.run, self.run.stops
        for reason, holds in self._reasons(chooser.control).items():
            if holds:
                raise CaptureError(reason)
        run.velocity()  # of which the solver's state is made
        leaves, spec = pytree.tree_flatten(_given(run, chooser))
        shapes = [_shape(leaf) if isinstance(leaf, Tensor) else leaf for leaf in leaves]
        forward = stops.forward if isinstance(stops.forward, bool) else None
        return "steps", run.solver, forward, stops.between, spec, tuple(shapes)

    def _reasons(self, control: StepSize) -> dict[str, bool]:
        """Why steps are not recorded, and whether it is so."""
        run = self.run
        own = isinstance(control, Adaptive) and control.rule is None
        return {
            f"the steps of {type(run.solver).__name__} are not recorded": not run.solver.recordable,
            "whether it is to stop is asked before each step": self.stop is not None,
            "dense output and events look at each step": run.recorder is not None,
            "the field jumps (step_at)": run.stops.jumps,
            "the error of a step has a norm of its own, or atol of each number": own,
        }
