"""The launch of a kernel: by CuPy, on torch's current stream of the tensors' device."""

from __future__ import annotations

import functools
import importlib
import threading
from collections.abc import Callable
from importlib.resources import files
from typing import Any, NamedTuple, Protocol

import numpy as np
import torch
from torch import Tensor

from implicitcore.extend import DeviceIteration

OPTIONS = ("--std=c++17",)
GROUPS = (8, 16)
"""Rows of a history that inner_products takes at once."""
GROUP = 8
"""The same of root_iteration.cu and krylov.cu."""


class Names(NamedTuple):
    """The C++ types of a dtype: of the state and of its sums."""

    state: str
    sums: str


NAMES = {
    torch.float32: Names("float", "float"),
    torch.float64: Names("double", "double"),
    torch.bfloat16: Names("bfloat16", "float"),
}


UPDATES = ("Picard", "Anderson", "Broyden")
STAGES = ("iterate", "measure", "judge", "extend", "settle", "move")
CONTROLS = ("control", "conclude")
STEPS = ("predict", "correct", "choose")
KRYLOV = ("expand", "project", "reduce", "settle", "minimise", "solve", "combine")
FAMILIES = ("kernels", "steps", "krylov", *UPDATES)
"""Kernels that are compiled together: a solve does not wait for those of other solvers."""


@functools.cache
def source(family: str) -> str:
    """The CUDA C++ source of a family of kernels."""
    folder = files("implicitcore_cupy")
    own = "root_iteration" if family in UPDATES else family
    texts = (folder.joinpath(f"{name}.cu") for name in ("common", own))
    return "\n".join(text.read_text(encoding="utf-8") for text in texts)


@functools.cache
def instances(dtype: torch.dtype, family: str) -> tuple[str, ...]:
    """The kernels of a dtype, as the C++ expressions that name them."""
    state, sums = NAMES[dtype]
    if family in UPDATES:
        return tuple(f"{stage}<{state}, {family}>" for stage in STAGES)
    if family == "krylov":
        return tuple(f"{stage}<{state}>" for stage in KRYLOV)
    times = ("double",) if state == "double" else ("float", "double")  # no less than that of sums
    if family == "steps":
        names = [f"{kernel}<{state}>" for kernel in STEPS]
        controls = (f"{kernel}<{state}, {time}>" for kernel in CONTROLS for time in times)
        return (*names, *controls)
    names = [f"{kernel}<{state}>" for kernel in ("residual", "error_norm", "axpy_history")]
    names += [f"inner_products<{state}, {group}>" for group in GROUPS]
    names += [f"stage_combination<{state}, {time}>" for time in ("float", "double")]
    return (*names, *sorted({f"finish<{state}>", f"finish<{sums}>"}))


class Launcher(Protocol):
    """Runs a kernel; the arguments are the bytes of its one struct."""

    def launch(
        self,
        kernel: str,
        like: Tensor,
        grid: tuple[int, int],
        threads: int,
        arguments: bytes,
        shared: int,
    ) -> None:
        """Run a kernel of the dtype and on the device of a tensor.

        Arguments:
            kernel: one of :func:`instances`.
            like: a tensor of the state's dtype, on its device.
            grid: blocks along x and y.
            threads: threads of a block.
            arguments: the struct that the kernel takes.
            shared: bytes of shared memory of a block.
        """
        ...

    def later(self, number: Tensor) -> Callable[[], int]:
        """The value that a whole number on the device has here in its stream.

        Returns:
            The value, by a call that waits for what was queued before, and for nothing after it.
        """
        ...


class CupyLauncher:
    """Compiles the kernels of a dtype at its first use on a device, and keeps them.

    A first use inside the capture of a CUDA graph fails, as it does for torch's own lazily made
    handles: run once before it.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._kernels: dict[tuple[str, int], Any] = {}
        self._streams: dict[int, Any] = {}

    def launch(
        self,
        kernel: str,
        like: Tensor,
        grid: tuple[int, int],
        threads: int,
        arguments: bytes,
        shared: int,
    ) -> None:
        """See :meth:`Launcher.launch`."""
        device = like.get_device()
        packed = np.frombuffer(
            arguments, dtype=f"V{len(arguments)}"
        )  # CuPy passes an array of one element by value
        if device == torch.cuda.current_device():
            self._launch(kernel, like.dtype, device, (grid, (threads,), (packed,), shared))
        else:
            with _cupy().cuda.Device(device):
                self._launch(kernel, like.dtype, device, (grid, (threads,), (packed,), shared))

    def later(self, number: Tensor) -> Callable[[], int]:
        """See :meth:`Launcher.later`."""
        return DeviceIteration.value_later(number)

    def _launch(self, kernel: str, dtype: torch.dtype, device: int, call: tuple[Any, ...]) -> None:
        function = self._kernels.get((kernel, device)) or self._compile(kernel, dtype, device)
        *arguments, shared = call
        with self._stream(torch.cuda.current_stream(device).cuda_stream):
            function(*arguments, shared_mem=shared)

    def _compile(self, kernel: str, dtype: torch.dtype, device: int) -> Any:
        with self._lock:
            if (kernel, device) not in self._kernels:
                family = next(each for each in FAMILIES if kernel in instances(dtype, each))
                code, names = source(family), instances(dtype, family)
                module = _cupy().RawModule(code=code, options=OPTIONS, name_expressions=names)
                self._kernels.update({(name, device): module.get_function(name) for name in names})
            return self._kernels[kernel, device]

    def _stream(self, handle: int) -> Any:
        stream = self._streams.get(handle)
        if stream is None:
            cuda = _cupy().cuda
            # The protocol came with CuPy 14, which warns of the class before it.
            modern = hasattr(cuda.Stream, "from_external")
            stream = (
                cuda.Stream.from_external(_Handle(handle))
                if modern
                else cuda.ExternalStream(handle)
            )
            self._streams[handle] = stream
        return stream


class _Handle(NamedTuple):
    """A stream of torch in CUDA's stream protocol, which torch itself has only had since 2.9."""

    handle: int

    def __cuda_stream__(self) -> tuple[int, int]:
        return 0, self.handle


def _cupy() -> Any:
    return importlib.import_module("cupy")
