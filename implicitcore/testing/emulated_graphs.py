"""CUDA graphs without a GPU: torch's operations and our kernels, recorded on a CPU and run again.

As on a device, what is recorded is not done: results have no values until the replay (here NaN, of
whole numbers zero), nothing is written, and the host may read nothing, nor give numbers of its own.
A replay runs operations and kernels on the memory that the recording had, and no Python of whoever
was recorded.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.utils import _pytree as pytree
from torch.utils._python_dispatch import TorchDispatchMode

HOST = {torch.Tag.data_dependent_output, torch.Tag.dynamic_output_shape}
REFUSED = "CUDA error: operation not permitted when stream is capturing"
_recording = threading.local()


def launch(kernel: Callable[[], Any]) -> None:
    """Run a kernel; where this thread records, it is recorded instead."""
    recording = getattr(_recording, "now", None)
    if recording is None:
        kernel()
    else:
        recording.work.append(kernel)


class Recording(TorchDispatchMode):
    """What runs inside, as a list of calls."""

    def __init__(self) -> None:
        super().__init__()
        self.work: list[Callable[[], Any]] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if meets_host(func, args):
            raise RuntimeError(REFUSED)
        if func._schema.is_mutable:
            self.work.append(partial(func, *args, **kwargs))
            return written(func, args, kwargs)
        found = func(*args, **kwargs)
        given = {leaf.untyped_storage().data_ptr() for leaf in tensors((args, kwargs))}
        new = [leaf for leaf in tensors(found) if leaf.untyped_storage().data_ptr() not in given]
        if new:
            self.work.append(partial(into, found, func, args, kwargs))
        for leaf in new:
            value = torch.nan if leaf.is_floating_point() or leaf.is_complex() else 0
            torch.ops.aten.fill_.Scalar(leaf, value)
        return found

    def replay(self) -> None:
        """Run the calls again."""
        for work in self.work:
            work()


def meets_host(func: Any, args: Any) -> bool:
    """Whether an operation needs values on the host, or brings some from there."""
    if func.overloadpacket is torch.ops.aten.index:
        return any(leaf.dtype is torch.bool for leaf in tensors(args[1:]))
    return func.overloadpacket is torch.ops.aten.lift_fresh or not HOST.isdisjoint(func.tags)


def tensors(tree: Any) -> list[Tensor]:
    """Those of a pytree."""
    return [leaf for leaf in pytree.tree_leaves(tree) if isinstance(leaf, Tensor)]


def written(func: Any, args: Any, kwargs: Any) -> Any:
    """What a function returns that writes into its arguments, without doing it."""
    found = [
        args[place] if place < len(args) else kwargs[entry.name]
        for place, entry in enumerate(func._schema.arguments)
        if entry.alias_info is not None and entry.alias_info.is_write
    ]
    return None if not func._schema.returns else found[0] if len(found) == 1 else tuple(found)


def into(results: Any, func: Any, args: Any, kwargs: Any) -> None:
    """Run an operation, and write what it gives to the results it was recorded with."""
    for kept, new in zip(tensors(results), tensors(func(*args, **kwargs)), strict=True):
        kept.copy_(new)


class EmulatedCapture:
    """``implicitcore.backends.capture.Capture`` on a CPU.

    Attributes:
        records: how many graphs were recorded.
        replays: how many were launched.
        failing: raise when one is recorded.
    """

    records, replays, failing = 0, 0, False

    def __init__(self, device: torch.device) -> None:
        self.busy = False

    def warm_up(self, work: Callable[[], None]) -> None:
        work()

    def record(self, work: Callable[[], None]) -> Callable[[], None]:
        kind = type(self)
        if kind.failing:
            raise RuntimeError(REFUSED)
        recording = Recording()
        _recording.now = recording
        try:
            with recording:
                work()
        finally:
            _recording.now = None
        kind.records += 1

        def replay() -> None:
            assert self.busy, "the graph's memory is not this solve's"
            kind.replays += 1
            recording.replay()

        return replay

    def begin(self) -> None:
        assert not self.busy, "two solves at once in the memory of one graph"
        self.busy = True

    def end(self) -> None:
        self.busy = False


def emulated(monkeypatch: Any) -> type[EmulatedCapture]:
    """Have graphs recorded on the CPU; a class that counts them."""

    class Counted(EmulatedCapture):
        """One count for each test."""

    monkeypatch.setattr("implicitcore.backends.capture.capture_on", Counted)
    return Counted
