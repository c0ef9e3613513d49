"""Work with f in it as CUDA graphs: recorded once, kept for later solves."""

from __future__ import annotations

import threading
import weakref
from abc import ABC, abstractmethod
from collections.abc import Callable, Hashable, Iterator, Sequence
from contextlib import contextmanager
from types import FunctionType
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from implicitcore.backends import capture
from implicitcore.backends.capture import Capture, Work
from implicitcore.errors import InputWarning, describe_error
from implicitcore.system.recorded import function_key, input_key, inputs_of, tensors_of, with_inputs
from implicitcore.system.repeated import owner_of, warn_repeatedly
from implicitcore.system.system import System
from implicitcore.tensors.watched import CaptureError, WatchedCapture, autocast_uncached, described

MOST = 8
"""Sets of shapes for which one f has graphs: each keeps its memory."""

MET = 64
"""Sets of shapes that are remembered as met once."""


class Graphs:
    """The memory of work on one set of shapes, and this work as graphs.

    Arguments:
        recorder: records graphs.

    Attributes:
        pieces: the graphs; none where they are still to be recorded.
        refused: why there are none, where that is known.
    """

    def __init__(self, recorder: Capture) -> None:
        self.capture = recorder
        self.pieces: dict[Hashable, Work] = {}
        self.refused = ""
        self.lock = threading.Lock()

    def start(self) -> None:
        """Begin a solve: the memory is its own until :meth:`end`."""
        self.capture.begin()

    def end(self) -> None:
        """The solve has ended: another may have the memory."""
        self.capture.end()
        self.lock.release()

    @contextmanager
    def recording(self) -> Iterator[None]:
        """Have no graphs, now and later, where something is raised inside."""
        try:
            yield
        except Exception as error:  # also one of f, which the loop then meets where it occurs
            self.refused = str(error) if isinstance(error, CaptureError) else describe_error(error)
            self.pieces.clear()


class SolveGraphs(Graphs, ABC):
    """Those of solves of one f; nothing of it is kept but what is recorded.

    Attributes:
        inputs: what differs from solve to solve, where the graphs read it.
    """

    def __init__(self, recorder: Capture) -> None:
        super().__init__(recorder)
        self.inputs: list[Tensor] = []
        self.layout: list[Any] = []  # of the inputs that they are copied from
        self.loaded = False

    def start(self) -> None:
        """See :meth:`Graphs.start`."""
        super().start()
        self.loaded = False

    def load(self, system: System) -> bool:
        """Copy this solve's inputs to where the graphs read them; record these, where none are.

        Returns:
            Whether there are graphs.
        """
        if self.loaded or self.refused:
            return not self.refused
        self.loaded = True
        with self.recording():
            given = inputs_of(system)
            layout = list(map(described, given))
            if not self.pieces:
                self.layout, self.inputs = layout, list(map(torch.empty_like, given))
            if layout != self.layout:
                raise CaptureError("what is drawn once a solve has other shapes in each")
            for kept, new in zip(self.inputs, given, strict=True):
                kept.copy_(new)
            if not self.pieces:
                with autocast_uncached():
                    self.record(with_inputs(system, self.inputs))
        return not self.refused

    def watch(self, system: System, memory: Sequence[Tensor]) -> WatchedCapture:
        """What watches f while it is recorded: it may read this memory beside its own tensors."""
        return WatchedCapture([*tensors_of(system), *self.inputs, *memory], memory[0].device)

    @abstractmethod
    def record(self, bound: System) -> None:
        """Record the ``pieces``, of a system that reads its inputs where they are kept.

        Raises:
            CaptureError: it cannot be done.
        """


G = TypeVar("G", bound=Graphs)


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
        self.solves: dict[Hashable, Graphs | str | None] = {}

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

    def settled(self, key: Hashable, make: Callable[[], Graphs]) -> Graphs | str:
        """The graphs of a solve, made where there are none yet, or why it has none."""
        found = self.solves[key]
        if found is None:
            try:
                found = make()
            except CaptureError as error:
                found = str(error)
        elif isinstance(found, Graphs) and found.refused:
            found = found.refused
        self.solves[key] = found
        return found

    def graphs(self) -> int:
        """How many have graphs."""
        return sum(isinstance(kept, Graphs) for kept in self.solves.values())


_kept: weakref.WeakKeyDictionary[Any, Kept] = weakref.WeakKeyDictionary()
_lock = threading.Lock()


def lend(
    system: System,
    device: torch.device,
    key: Callable[[], Hashable],
    make: Callable[[Capture], G],
) -> G | None:
    """The graphs of a solve; None where there are none, and the loop is to be run.

    They are made in the second solve of the same shapes: in the first, kernels are loaded, and a
    solve that stays alone needs none. One solve has them at a time, until it calls ``end``; another
    meanwhile runs the loop. Where there can be none, a warning says why.

    Arguments:
        system: what is solved.
        device: where.
        key: what is fixed in a record beside f and its input; raises :class:`CaptureError` where
            there is to be none.
        make: makes the graphs, to be recorded when they are first loaded.
    """
    try:
        function = function_key(system)
        whole = (input_key(system), function.constants, system.backend, key())
        with _lock:
            kept = _kept.setdefault(_owner(system), Kept())
        found: Any = meet(kept, function.tensors, whole, lambda: recorder_on(device), make)
    except CaptureError as error:
        found = str(error)
    if isinstance(found, Graphs):
        return found if found.lock.acquire(blocking=False) else None  # pyright: ignore[reportReturnType] - the key tells of which kind it is
    if found is not None:
        _tell(system, found)
    return None


def meet(
    kept: Kept,
    tensors: Hashable,
    key: Hashable,
    recorder: Callable[[], Capture],
    make: Callable[[Capture], G],
) -> G | str | None:
    """The graphs of a solve that may be met again, or why it has none; None where it is the first.

    Raises:
        CaptureError: see :meth:`Kept.meet`.
    """

    def made() -> G:
        found = recorder()
        if kept.graphs() >= MOST:
            raise CaptureError(f"it has graphs for {MOST} sets of shapes already")
        return make(found)

    with _lock:
        found: Any = None if kept.meet(tensors, key) else kept.settled(key, made)
    return found


def recorder_on(device: torch.device) -> Capture:
    """What records on a device.

    Raises:
        CaptureError: nothing does.
    """
    recorder = capture.capture_on(device)
    if recorder is None:
        raise CaptureError(f"there are no CUDA graphs on {device}")
    return recorder


def _owner(system: System) -> Any:
    """What lives as long as the user's f."""
    dynamics = system.dynamics
    found = getattr(dynamics, "cell", getattr(dynamics, "field", dynamics))
    return found if isinstance(found, nn.Module | FunctionType) else dynamics


def _tell(system: System, reason: str) -> None:
    def message() -> str:
        return f"cuda_graphs: {type(system.dynamics).__name__} is solved without: {reason}"

    warn_repeatedly(owner_of(system.dynamics), ("cuda_graphs", reason), message, InputWarning)
