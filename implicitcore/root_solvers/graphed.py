"""Iterations of a backend, f included, as CUDA graphs: recorded once, kept for later solves."""

from __future__ import annotations

import threading
import weakref
from collections.abc import Callable, Hashable
from functools import partial
from types import FunctionType
from typing import Any

import torch
from torch import Tensor, nn

from implicitcore.backends import capture
from implicitcore.backends.capture import Capture, Work
from implicitcore.backends.device_backend import DeviceBackend
from implicitcore.backends.device_iteration import DeviceIteration
from implicitcore.backends.root_iteration import StopRule, UpdateRule
from implicitcore.errors import InputWarning, describe_error
from implicitcore.system.recorded import (
    function_key,
    input_key,
    inputs_of,
    tensors_of,
    with_inputs,
)
from implicitcore.system.repeated import owner_of, warn_repeatedly
from implicitcore.system.system import System
from implicitcore.tensors.watched import (
    CaptureError,
    WatchedCapture,
    autocast_uncached,
    described,
    modes_watch,
)

MOST = 8
"""Sets of shapes for which one f has graphs: each keeps its memory."""

MET = 64
"""Sets of shapes that are remembered as met once."""


class GraphedSolve:
    """The memory of solves of one f and one set of shapes, and their iterations as graphs.

    Nothing of f is kept but what is recorded.

    Arguments:
        iteration: of the backend, whose state all these solves have in turn.
        z: a start, ``[batch, n]``.
        recorder: records graphs.
    """

    def __init__(self, iteration: DeviceIteration, z: Tensor, recorder: Capture) -> None:
        self.iteration, self.capture = iteration, recorder
        iteration.ring = tuple(
            torch.empty_like(z, memory_format=torch.contiguous_format)
            for _ in range(iteration.LOOK_EVERY)
        )
        self.inputs: list[Tensor] = []  # where the graphs read them
        self.layout: list[Any] = []  # of the inputs that they are copied from
        self.pieces: dict[tuple[int, int], Work] = {}
        self.refused, self.loaded = "", False
        self.lock = threading.Lock()

    def begin(self, z: Tensor, rule: StopRule) -> Tensor:
        """Begin a solve from z, whose rule has these tensors; the start, where it stays."""
        self.capture.begin()
        self.iteration.restart(rule)
        self.loaded = False
        return self.iteration.ring[0].copy_(z)

    def end(self) -> None:
        """The solve has ended: another may have the memory."""
        self.capture.end()
        self.lock.release()

    def run(self, system: System, z: Tensor, most: int) -> tuple[Tensor | None, int]:
        """Go on from z by graphs, for as long as samples are not known to have stopped.

        Arguments:
            system: what is solved, after its first evaluation in this solve or more.
            z: the iterate to go on from, in the ring.
            most: iterations that there may be.

        Returns:
            The next iterate, None where all have stopped; and how many iterations there were.
        """
        if not self.refused and not self.loaded:
            self._load(system)
        done, found = 0, z
        while not self.refused and found is not None:
            place = self.iteration.count % self.iteration.LOOK_EVERY
            length = self.iteration.stretch(place)
            if done + length > most:
                break
            self.pieces[place, length]()
            done, found = done + length, self.iteration.replayed(length)
        system.evaluations += done
        return found, done

    def _load(self, system: System) -> None:
        """Copy this solve's inputs to where the graphs read them; record these, where none are."""
        self.loaded = True
        try:
            given = inputs_of(system)
            layout = list(map(described, given))
            if not self.pieces:
                self.layout, self.inputs = layout, list(map(torch.empty_like, given))
            if layout != self.layout:
                raise CaptureError("what is drawn once a solve has other shapes in each")
            for kept, new in zip(self.inputs, given, strict=True):
                kept.copy_(new)
            if not self.pieces:
                self._record(system)
        except Exception as error:  # also one of f, which the loop then meets where it occurs
            self.refused = str(error) if isinstance(error, CaptureError) else describe_error(error)
            self.pieces.clear()

    def _record(self, system: System) -> None:
        ring, bound = self.iteration.ring, with_inputs(system, self.inputs)
        watch = WatchedCapture([*tensors_of(system), *self.inputs, *ring], ring[0].device)

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
        with autocast_uncached():
            self.capture.warm_up(lambda: (evaluated(ring[place]), None)[1])
            watch.made.clear()  # its memory is free again
            while (key := (place, self.iteration.stretch(place))) not in self.pieces:
                self.pieces[key] = self.capture.record(partial(iterations, *key))
                place = (place + key[1]) % count


class Kept:
    """What is kept of one f; it is forgotten where a tensor that f reads is another.

    Attributes:
        tensors: those that f reads, as their key.
        solves: by what is fixed in them; None where such a solve was met once, and the reason where
            it has no graphs.
        moved: how often the tensors were others, with no solve met twice between.
    """

    def __init__(self) -> None:
        self.tensors: Hashable = None
        self.moved = 0
        self.solves: dict[Hashable, GraphedSolve | str | None] = {}

    def meet(self, tensors: Hashable, key: Hashable) -> bool:
        """Whether such a solve is met for the first time.

        Raises:
            CaptureError: hardly any is met twice.
        """
        if tensors != self.tensors:
            self.tensors, self.solves, self.moved = tensors, {}, self.moved + 1
        if self.moved > MOST:
            raise CaptureError(
                "the tensors that it reads, or keeps as attributes, are always others"
            )
        if key in self.solves:
            self.moved = 0
            return False
        if len(self.solves) >= MET:
            self.solves = {key: kept for key, kept in self.solves.items() if kept is not None}
            raise CaptureError("its shapes, or numbers among f's attributes, are always others")
        self.solves[key] = None
        return True

    def graphs(self) -> int:
        """How many have graphs."""
        return sum(isinstance(kept, GraphedSolve) for kept in self.solves.values())


_kept: weakref.WeakKeyDictionary[Any, Kept] = weakref.WeakKeyDictionary()
_lock = threading.Lock()


def borrow(system: System, update: UpdateRule, rule: StopRule, z: Tensor) -> GraphedSolve | None:
    """The graphs for a solve from z; None where there are none, and the loop is to be run.

    They are recorded in the second solve of the same shapes: in the first, kernels are loaded, and
    a solve that stays alone needs none. One solve has them at a time, until it calls ``end``;
    another meanwhile runs the loop.
    """
    backend = system.backend
    if not (isinstance(backend, DeviceBackend) and backend.cuda_graphs):
        return None
    if not system.is_field or system.context.recorder is not None or modes_watch():
        return None
    try:
        function = function_key(system)
        key = (input_key(system), function.constants, backend, update, _numbers(rule), described(z))
        with _lock:
            kept = _kept.setdefault(_owner(system), Kept())
            if kept.meet(function.tensors, key):
                return None
            found = _settled(kept, key, lambda: _made(system, update, rule, z, kept.graphs()))
    except CaptureError as error:
        found = str(error)
    if isinstance(found, GraphedSolve):
        return found if found.lock.acquire(blocking=False) else None
    _tell(system, found)
    return None


def _settled(kept: Kept, key: Hashable, make: Callable[[], GraphedSolve]) -> GraphedSolve | str:
    """The graphs of a solve, made where there are none yet, or why it has none."""
    found = kept.solves[key]
    if found is None:
        try:
            found = make()
        except CaptureError as error:
            found = str(error)
    elif isinstance(found, GraphedSolve) and found.refused:
        found = found.refused
    kept.solves[key] = found
    return found


def _made(
    system: System, update: UpdateRule, rule: StopRule, z: Tensor, others: int
) -> GraphedSolve:
    recorder = capture.capture_on(z.device)
    if recorder is None:
        raise CaptureError(f"there are no CUDA graphs on {z.device}")
    if others >= MOST:
        raise CaptureError(f"it has graphs for {MOST} sets of shapes already")
    iteration = system.backend.root_iteration(update, _own(rule), z)
    if not isinstance(iteration, DeviceIteration):
        raise CaptureError("the backend does no whole iterations of this solver and state")
    return GraphedSolve(iteration, z, recorder)


def _own(rule: StopRule) -> StopRule:
    """The rule with tensors of its own, into which those of other solves are copied."""
    floor, scale = (v.clone() if isinstance(v, Tensor) else v for v in (rule.floor, rule.scale))
    return rule._replace(floor=floor, scale=scale)


def _numbers(rule: StopRule) -> Hashable:
    """What of a rule is fixed in a record."""
    origin = rule.origin is None or tuple(map(described, rule.origin))
    rule = rule._replace(origin=None)
    return origin, *(described(value) if isinstance(value, Tensor) else value for value in rule)


def _owner(system: System) -> Any:
    """What lives as long as the user's f."""
    dynamics = system.dynamics
    found = getattr(dynamics, "cell", getattr(dynamics, "field", dynamics))
    return found if isinstance(found, nn.Module | FunctionType) else dynamics


def _tell(system: System, reason: str) -> None:
    def message() -> str:
        return f"cuda_graphs: {type(system.dynamics).__name__} is solved without: {reason}"

    warn_repeatedly(owner_of(system.dynamics), ("cuda_graphs", reason), message, InputWarning)
