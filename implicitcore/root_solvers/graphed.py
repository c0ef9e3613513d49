"""Iterations of a backend, f included, as CUDA graphs."""

from __future__ import annotations

from collections.abc import Hashable
from functools import partial

import torch
from torch import Tensor

from implicitcore.backends.capture import Capture
from implicitcore.backends.device_backend import DeviceBackend
from implicitcore.backends.device_iteration import DeviceIteration
from implicitcore.backends.root_iteration import StopRule, UpdateRule
from implicitcore.system.kept_graphs import SolveGraphs, lend
from implicitcore.system.system import System
from implicitcore.tensors.watched import CaptureError, described, modes_watch


class GraphedSolve(SolveGraphs):
    """The memory of root solves of one f and one set of shapes, and their iterations as graphs.

    Arguments:
        iteration: of the backend, whose state all these solves have in turn.
        z: a start, ``[batch, n]``.
        recorder: records graphs.
    """

    def __init__(self, iteration: DeviceIteration, z: Tensor, recorder: Capture) -> None:
        super().__init__(recorder)
        self.iteration = iteration
        iteration.ring = tuple(
            torch.empty_like(z, memory_format=torch.contiguous_format)
            for _ in range(iteration.LOOK_EVERY)
        )

    def begin(self, z: Tensor, rule: StopRule) -> Tensor:
        """Begin a solve from z, whose rule has these tensors; the start, where it stays."""
        self.start()
        self.iteration.restart(rule)
        return self.iteration.ring[0].copy_(z)

    def run(self, system: System, z: Tensor, most: int) -> tuple[Tensor | None, int]:
        """Go on from z by graphs, for as long as samples are not known to have stopped.

        Arguments:
            system: what is solved, after its first evaluation in this solve or more.
            z: the iterate to go on from, in the ring.
            most: iterations that there may be.

        Returns:
            The next iterate, None where all have stopped; and how many iterations there were.
        """
        done, found = 0, z
        while self.load(system) and found is not None:
            place = self.iteration.count % self.iteration.LOOK_EVERY
            length = self.iteration.stretch(place)
            if done + length > most:
                break
            self.pieces[place, length]()
            done, found = done + length, self.iteration.replayed(length)
        system.evaluations += done
        return found, done

    def record(self, bound: System) -> None:
        """See :meth:`SolveGraphs.record`."""
        ring = self.iteration.ring
        watch = self.watch(bound, ring)

        def evaluated(z: Tensor) -> tuple[Tensor, Tensor | None]:
            with watch:
                fz, g = bound.map(z)
                found = fz.contiguous(), None if g is None else g.contiguous()
            watch.check()
            return found

        def iterations(first: int, length: int) -> None:
            for place in range(first, first + length):
                before, z, z_next = (ring[(place + k) % len(ring)] for k in (-1, 0, 1))
                self.iteration.launch(z, *evaluated(z), before, z_next)

        place, count = 1 % len(ring), self.iteration.LOOK_EVERY
        self.capture.warm_up(lambda: (evaluated(ring[place]), None)[1])
        watch.made.clear()  # its memory is free again
        while (key := (place, self.iteration.stretch(place))) not in self.pieces:
            self.pieces[key] = self.capture.record(partial(iterations, *key))
            place = (place + key[1]) % count


def borrow(system: System, update: UpdateRule, rule: StopRule, z: Tensor) -> GraphedSolve | None:
    """The graphs for a solve from z; None where there are none, and the loop is to be run."""
    backend = system.backend
    if not (isinstance(backend, DeviceBackend) and backend.cuda_graphs):
        return None
    if not system.is_field or system.context.recorder is not None or modes_watch():
        return None

    def make(recorder: Capture) -> GraphedSolve:
        iteration = backend.root_iteration(update, _own(rule), z)
        if not isinstance(iteration, DeviceIteration):
            raise CaptureError("the backend does no whole iterations of this solver and state")
        return GraphedSolve(iteration, z, recorder)

    return lend(system, z.device, lambda: (update, _numbers(rule), described(z)), make)


def _own(rule: StopRule) -> StopRule:
    """The rule with tensors of its own, into which those of other solves are copied."""
    floor, scale = (v.clone() if isinstance(v, Tensor) else v for v in (rule.floor, rule.scale))
    return rule._replace(floor=floor, scale=scale)


def _numbers(rule: StopRule) -> Hashable:
    """What of a rule is fixed in a record."""
    origin = rule.origin is None or tuple(map(described, rule.origin))
    rule = rule._replace(origin=None)
    return origin, *(described(value) if isinstance(value, Tensor) else value for value in rule)
