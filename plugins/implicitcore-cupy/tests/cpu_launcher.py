"""The kernels' source on the CPU, behind the backend's own host side.

Built by g++; its threads take turns.
"""

from __future__ import annotations

import ctypes
import functools
import shutil
import struct
import subprocess
import tempfile
import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import pytest
import torch
from torch import Tensor

import implicitcore_cupy.launcher as launcher
from implicitcore.testing import emulated_graphs
from implicitcore.testing.requirements import missing
from implicitcore_cupy import CupyBackend

FORWARD, REVERSE, SHUFFLED = 0, 1, 2
HEADER = Path(__file__).with_name("cuda_on_cpu.h")


def build(source: str, names: tuple[str, ...], folder: Path, compiler: str) -> ctypes.PyDLL:
    """A library with those instances of the kernels of a source."""
    entries = "\n".join(
        f'    cpu::table()["{name}"] = cpu::entry<&{name}>(&{name});' for name in names
    )
    (folder / "kernels.cpp").write_text(
        f'#include "{HEADER}"\n{source}\nextern "C" void fill() {{\n{entries}\n}}\n',
        encoding="utf-8",
    )
    options = [
        "-std=c++17",
        "-shared",
        "-fPIC",
        "-fsanitize=alignment",
        "-fno-sanitize-recover=alignment",
        "-U_FORTIFY_SOURCE",
    ]
    command = [compiler, "-O2", *options, "-o", "kernels.so", "kernels.cpp"]
    subprocess.run(command, cwd=folder, check=True, capture_output=True, timeout=200)
    library = ctypes.PyDLL(
        str(folder / "kernels.so")
    )  # holds the interpreter's lock: the threads of a block are global
    library.run.restype = ctypes.c_char_p
    library.fill()
    return library


_LOCK = threading.Lock()


def library(dtype: torch.dtype, family: str, changes: tuple[tuple[str, str], ...]) -> ctypes.PyDLL:
    """As :func:`_library`; threads wait for the one that builds."""
    with _LOCK:
        return _library(dtype, family, changes)


@functools.cache
def _library(dtype: torch.dtype, family: str, changes: tuple[tuple[str, str], ...]) -> ctypes.PyDLL:
    """The kernels of a dtype and a family.

    From the source with each text, which is there once, replaced by the other.
    """
    compiler = shutil.which("g++")
    if compiler is None:
        missing("g++")
    source = launcher.source(family)
    for old, new in changes:
        assert source.count(old) == 1, old
        source = source.replace(old, new)
    with tempfile.TemporaryDirectory() as folder:
        return build(source, launcher.instances(dtype, family), Path(folder), compiler)


@dataclass
class CpuLauncher:
    """Runs the kernels in this process.

    Attributes:
        order: whose turn it is first: FORWARD, REVERSE, or the seed of a random order from SHUFFLED
            on.
        changes: made to the source.
    """

    order: int = FORWARD
    changes: tuple[tuple[str, str], ...] = ()
    launches: int = 0
    looks: int = 0

    def launch(
        self,
        kernel: str,
        like: Tensor,
        grid: tuple[int, int],
        threads: int,
        arguments: bytes,
        shared: int,
    ) -> None:
        (family,) = (
            each for each in launcher.FAMILIES if kernel in launcher.instances(like.dtype, each)
        )
        self.launches += 1
        launch = struct.pack("4I2N", *grid, threads, self.order, shared, len(arguments))
        built = library(like.dtype, family, self.changes)
        error = built.run(kernel.encode(), launch, arguments)
        if error:
            raise AssertionError(f"{kernel}: {error.decode()}")

    def later(self, number: Tensor) -> Callable[[], int]:
        """As it is now: what is launched after this is not seen."""
        value = int(number)

        def look() -> int:
            self.looks += 1
            return value

        return look


def on_cpu(order: int = FORWARD, changes: Mapping[str, str] | None = None) -> CupyBackend:
    """The backend with nothing but the launch exchanged."""

    class OnCpu(CupyBackend):
        device_types: ClassVar[tuple[str, ...]] = ("cpu",)
        launcher: ClassVar[launcher.Launcher] = CpuLauncher(order, tuple((changes or {}).items()))

        def unavailable_reason(self) -> None:
            return None

    return OnCpu()


def with_graphs(monkeypatch: pytest.MonkeyPatch) -> type[Any]:
    """What records graphs of these launches; it counts them, and what is launched of them."""
    launch = CpuLauncher.launch
    monkeypatch.setattr(
        CpuLauncher,
        "launch",
        lambda self, *rest: emulated_graphs.launch(functools.partial(launch, self, *rest)),
    )
    return emulated_graphs.emulated(monkeypatch)


def launches(backend: CupyBackend) -> int:
    """How many kernels the backend has launched."""
    found = backend.launcher
    assert isinstance(found, CpuLauncher)
    return found.launches


DTYPES = {torch.float32: "float32", torch.float64: "float64", torch.bfloat16: "bfloat16"}
