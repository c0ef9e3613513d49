"""Loops of compiled iterations that the host repeats, as CUDA graphs where these can be recorded.

An iteration after the last changes nothing, so the host need not know at once that it was the last:
it asks after three iterations, launches a fourth, and looks then.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Hashable, Sequence
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from implicitcore.backends.capture import Capture
from implicitcore.backends.pinned import values_later
from implicitcore.dynamics.base import Dynamics
from implicitcore.errors import InputWarning
from implicitcore.system.kept_graphs import Graphs, Kept, meet, recorder_on
from implicitcore.system.repeated import owner_of, warn_repeatedly
from implicitcore.tensors.watched import CaptureError, modes_watch, placed

ASKED, LOOKED = 3, 1
"""Iterations until the host asks whether there are more, and from there until it looks."""


def records_on(device: torch.device, dynamics: Dynamics, wanted: bool | None) -> bool:
    """Whether loops are to be CUDA graphs: of None, where a device has them.

    A warning says where they are wanted in vain.
    """
    if wanted is False:
        return False
    try:
        recorder_on(device)
    except CaptureError as error:
        if wanted:
            text = f"cuda_graphs: the compiled layer is solved without: {error}"
            warn_repeatedly(owner_of(dynamics), ("cuda_graphs",), lambda: text, InputWarning)
        return False
    return True


class LoopOfLoops:
    """A loop with loops in its iterations: the host looks after each of them.

    Arguments:
        step: what is carried and read -> whether there is another iteration, and what is carried.
        carried: how many tensors are.
    """

    def __init__(self, step: Callable[..., Sequence[Tensor]], carried: int) -> None:
        self.step, self.carried = step, carried

    def __call__(self, going: Tensor, *given: Any) -> tuple[Tensor, ...]:
        """What it ends with."""
        carried, read = given[: self.carried], given[self.carried :]
        while bool(going):
            going, *carried = self.step(*carried, *read)
        return tuple(carried)


class Signature(NamedTuple):
    """What is known of the arguments of a loop before it runs.

    Attributes:
        wanted: of each that it carries, whether its last value is wanted; it reads the others.
        sizes: the places and dimensions of sizes that differ from call to call.
        numbers: the places of those that are sizes themselves.
        dense: of each, whether it has no gaps in its memory, and no entry twice.
        written: the places of those that an iteration writes beside what is carried.
    """

    wanted: tuple[bool, ...]
    sizes: tuple[tuple[int, int], ...]
    numbers: tuple[int, ...]
    dense: tuple[bool, ...]
    written: tuple[int, ...]

    @classmethod
    def of(
        cls,
        given: Sequence[Any],
        own: Sequence[Any],
        wanted: Sequence[bool],
        written: Sequence[int],
    ) -> Signature:
        """Of examples, and of copies of them."""
        tensors = [(i, value) for i, value in enumerate(given) if isinstance(value, Tensor)]
        sizes = tuple(
            (i, axis)
            for i, value in tensors
            for axis, size in enumerate(value.shape)
            if isinstance(size, torch.SymInt)
        )
        places = {i for i, _ in tensors}
        numbers = tuple(i for i in range(len(given)) if i not in places)
        pairs = zip(given, own, strict=True)
        dense = tuple(i in numbers or a.stride() == b.stride() for i, (a, b) in enumerate(pairs))
        return cls(tuple(wanted), sizes, numbers, dense, tuple(written))

    @property
    def carried(self) -> int:
        """How many of them it carries."""
        return len(self.wanted)

    def key(self, given: Sequence[Any]) -> Hashable:
        """What is fixed in a record of them."""
        sizes = [given[i].shape[axis] for i, axis in self.sizes]
        return tuple(sizes), tuple([given[i] for i in self.numbers])

    def stays(self, given: Sequence[Any]) -> list[bool]:
        """Of each, whether it is read where it is: weights, which are trained in place."""
        return [
            i >= self.carried
            and self.dense[i]
            and i not in self.written
            and isinstance(value, nn.Parameter)
            for i, value in enumerate(given)
        ]


class LoopOfGraphs:
    """A loop whose iterations need nothing of the host.

    In the second solve of the same sizes they are recorded; in the first kernels are loaded, and a
    solve that stays alone needs none. One solve has the memory of the graphs at a time; another
    meanwhile, and each that has none, launches the kernels of an iteration one by one.

    Arguments:
        step: one iteration, of whether there is one, what is carried and what is read: it writes
            the former two, and nothing after the last iteration.
        signature: of what is carried and read.
    """

    def __init__(self, step: Callable[..., Any], signature: Signature) -> None:
        self.step, self.signature = step, signature
        self.kept, self.lock = Kept(), threading.Lock()
        self.capture: Capture | None = None

    def __call__(self, going: Tensor, *given: Any) -> tuple[Tensor | None, ...]:
        """What it ends with."""
        graphs = self._borrow(going.device, given)
        if graphs is None:
            return self._by_kernels(going, given)
        graphs.start()
        try:
            if not graphs.load(going, given):
                return self._by_kernels(going, given)
            _repeat(graphs.own[0], graphs.launch)
            return graphs.results(given)
        finally:
            graphs.end()

    def _by_kernels(self, going: Tensor, given: Sequence[Any]) -> tuple[Tensor, ...]:
        carried, dense = self.signature.carried, self.signature.dense
        own = [going.clone(), *(value.clone() for value in given[:carried])]
        each = zip(given[carried:], dense[carried:], strict=True)
        own += [value if known else value.clone() for value, known in each]

        def launch(count: int) -> None:
            for _ in range(count):
                self.step(*own)

        _repeat(own[0], launch)
        return tuple(own[1 : 1 + carried])

    def _borrow(self, device: torch.device, given: Sequence[Any]) -> LoopGraphs | None:
        """The graphs; None where there are none, or another solve has them."""
        if modes_watch():
            return None
        try:
            stays = self.signature.stays(given)
            weights = tuple([placed(t) for t, kept in zip(given, stays, strict=True) if kept])
            key = self.signature.key(given), tuple(stays)
            make = partial(LoopGraphs, self, stays)
            found = meet(self.kept, weights, key, lambda: self._recorder(device), make)
        except CaptureError as error:
            found = str(error)
        if isinstance(found, LoopGraphs):
            return found if found.lock.acquire(blocking=False) else None
        if isinstance(found, str):
            text = f"a compiled loop runs without CUDA graphs: {found}"
            warn_repeatedly(self, ("cuda_graphs", found), lambda: text, InputWarning)
        return None

    def _recorder(self, device: torch.device) -> Capture:
        """One for all sizes, whose graphs share its memory, and so the lock."""
        if self.capture is None:
            self.capture = recorder_on(device)
        return self.capture


class LoopGraphs(Graphs):
    """The memory of a loop for arguments of some sizes, and its iterations as graphs.

    Arguments:
        loop: whose iterations they are.
        stays: of each argument, whether it is read where it is.
        recorder: records graphs.
    """

    def __init__(self, loop: LoopOfGraphs, stays: Sequence[bool], recorder: Capture) -> None:
        super().__init__(recorder)
        self.step, self.signature, self.lock = loop.step, loop.signature, loop.lock
        numbers = loop.signature.numbers
        moved = [i for i, known in enumerate(stays) if not known and i not in numbers]
        self.copied = [0, *(1 + i for i in moved)]  # the places of what is copied in each solve
        self.own: list[Any] = []  # where the graphs read and write

    def load(self, going: Tensor, given: Sequence[Any]) -> bool:
        """Copy the arguments to where the graphs read them; record these, where none are.

        Returns:
            Whether there are graphs.
        """
        with self.recording():
            if not self.pieces:
                self.own = [going, *given]
                for place in self.copied:
                    self.own[place] = self.own[place].clone()
                self.capture.warm_up(lambda: self.step(*self.own))
                for count in (ASKED, LOOKED):
                    self.pieces[count] = self.capture.record(partial(self._iterations, count))
            every = going, *given
            pairs = [(self.own[i], every[i]) for i in self.copied]
            torch._foreach_copy_([own for own, _ in pairs], [new for _, new in pairs])  # pyright: ignore[reportPrivateImportUsage]
        return not self.refused

    def _iterations(self, count: int) -> None:
        for _ in range(count):
            self.step(*self.own)

    def launch(self, count: int) -> None:
        """So many iterations, as many as a graph has."""
        self.pieces[count]()

    def results(self, given: Sequence[Any]) -> tuple[Tensor | None, ...]:
        """What the loop ended with, in a memory of its own: what is wanted of it."""
        for place in self.signature.written:
            given[place].copy_(self.own[1 + place])
        pairs = zip(self.own[1:], self.signature.wanted, strict=False)
        return tuple([value.clone() if wanted else None for value, wanted in pairs])


def _repeat(going: Tensor, launch: Callable[[int], None]) -> None:
    """Launch iterations until it is known that the last were behind the end."""
    more = True
    while more:
        launch(ASKED)
        asked = values_later(going.view(1))
        launch(LOOKED)
        more = bool(asked()[0])
