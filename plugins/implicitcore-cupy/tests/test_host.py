"""The host side with a CuPy that runs the kernels on the CPU: streams, devices, compilation, and
why the backend cannot run."""

from __future__ import annotations

import subprocess
import sys
import threading
from types import SimpleNamespace
from typing import ClassVar

import numpy as np
import pytest
import torch
from cpu_launcher import CpuLauncher

import implicitcore as ic
import implicitcore_cupy.availability as availability
import implicitcore_cupy.launcher as launcher
from implicitcore_cupy import CupyBackend

HANDLE = 0x7F00


class FakeRuntimeError(RuntimeError):
    """As CuPy's."""


class FakeCupy:
    """Of CuPy what the backend uses; a kernel is run on the CPU, with what it was launched with."""

    def __init__(
        self, modern: bool = True, driver: int = 13000, devices: int | Exception = 2
    ) -> None:
        self.driver, self.devices = driver, devices
        self.log: list[tuple] = []
        self.current: list[object] = []
        stream = SimpleNamespace(from_external=self._from_external) if modern else SimpleNamespace()
        runtime = SimpleNamespace(
            driverGetVersion=lambda: self.driver,
            getDeviceCount=self._count,
            CUDARuntimeError=FakeRuntimeError,
        )
        nvrtc = SimpleNamespace(getVersion=lambda: (13, 0))
        self.cuda = SimpleNamespace(
            Stream=stream,
            ExternalStream=self._old_stream,
            Device=self._device,
            runtime=runtime,
            nvrtc=nvrtc,
        )

    def _count(self) -> int:
        if isinstance(self.devices, Exception):
            raise self.devices
        return self.devices

    def _from_external(self, stream):
        assert stream.__cuda_stream__()[0] == 0
        return Entered(self, ("stream", stream.__cuda_stream__()[1]))

    def _old_stream(self, handle):
        assert not hasattr(self.cuda.Stream, "from_external"), "deprecated since CuPy 14"
        return Entered(self, ("stream", handle))

    def _device(self, index):
        return Entered(self, ("device", index))

    def RawModule(self, *, code, options, name_expressions):  # noqa: N802
        assert options == ("--std=c++17",)
        self.log.append(("compiled", name_expressions, threading.get_ident()))
        return SimpleNamespace(
            get_function=lambda name: FakeKernel(self, name, code, name_expressions)
        )


class Entered:
    def __init__(self, cupy: FakeCupy, what: tuple) -> None:
        self.cupy, self.what = cupy, what

    def __enter__(self):
        self.cupy.current.append(self.what)

    def __exit__(self, *_):
        assert self.cupy.current.pop() == self.what


class FakeKernel:
    def __init__(self, cupy: FakeCupy, name: str, code: str, names: tuple[str, ...]) -> None:
        assert name in names
        assert code in map(launcher.source, launcher.FAMILIES)
        self.cupy, self.name, self.names = cupy, name, names

    def __call__(self, grid, block, args, *, shared_mem):
        assert all(type(number) is int for number in (*grid, *block, shared_mem))
        (packed,) = args
        assert isinstance(packed, np.ndarray)
        assert packed.size == 1  # CuPy passes no other array by value
        self.cupy.log.append(("launched", self.name, *self.cupy.current))
        like = next(
            torch.empty(0, dtype=dtype)
            for dtype in launcher.NAMES
            for family in launcher.FAMILIES
            if launcher.instances(dtype, family) == self.names
        )
        CpuLauncher().launch(self.name, like, grid, block[0], packed.tobytes(), shared_mem)


@pytest.fixture
def cuda(monkeypatch):
    """Torch as it would be with a GPU; a tensor of the CPU says that it is on device -1."""
    state = SimpleNamespace(current=-1, handle=HANDLE)
    monkeypatch.setattr(torch.cuda, "current_device", lambda: state.current)
    monkeypatch.setattr(
        torch.cuda, "current_stream", lambda device: SimpleNamespace(cuda_stream=state.handle)
    )
    return state


def install(monkeypatch, cupy: FakeCupy) -> CupyBackend:
    monkeypatch.setitem(sys.modules, "cupy", cupy)

    class Here(CupyBackend):
        device_types: ClassVar[tuple[str, ...]] = ("cpu",)
        launcher: ClassVar[launcher.Launcher] = launcher.CupyLauncher()

    return Here()


@pytest.mark.parametrize("modern", [True, False], ids=["cupy-14", "cupy-13"])
def test_a_kernel_runs_on_torchs_stream(monkeypatch, cuda, modern):
    cupy = FakeCupy(modern)
    backend, z = install(monkeypatch, cupy), torch.randn(3, 100_003)
    found = backend.residual(2 * z, z)
    assert torch.equal(found.value, z)
    assert torch.allclose(found.norm, z.norm(dim=1))
    launched = [entry for entry in cupy.log if entry[0] == "launched"]
    assert launched == [
        ("launched", "residual<float>", ("stream", HANDLE)),
        ("launched", "finish<float>", ("stream", HANDLE)),
    ]
    cuda.handle = 0  # the default stream
    backend.axpy_history(None, torch.ones(1, 1, 2), torch.ones(1, 2, 5))
    assert cupy.log[-1] == ("launched", "axpy_history<float>", ("stream", 0))


def test_the_device_is_changed_where_it_differs(monkeypatch, cuda):
    cupy, z = FakeCupy(), torch.ones(1, 5)
    backend = install(monkeypatch, cupy)
    backend.residual(z, z)
    cuda.current = 1
    backend.residual(z, z)
    assert [entry[2:] for entry in cupy.log if entry[0] == "launched"] == [
        (("stream", HANDLE),),
        (("device", -1), ("stream", HANDLE)),
    ]
    assert not cupy.current


def test_kernels_are_compiled_once_whichever_thread_comes_first(monkeypatch, cuda):
    cupy, states = FakeCupy(), [torch.ones(1, 5, dtype=dtype) for dtype in launcher.NAMES]
    backend, barrier = install(monkeypatch, cupy), threading.Barrier(8)

    def run():
        barrier.wait()
        for z in states:
            backend.residual(z, z)

    threads = [threading.Thread(target=run) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    compiled = [entry[1] for entry in cupy.log if entry[0] == "compiled"]
    assert sorted(compiled) == sorted(launcher.instances(d, "kernels") for d in launcher.NAMES)
    assert sum(entry[0] == "launched" for entry in cupy.log) == 8 * len(states)


def test_what_autograd_or_another_dtype_needs_launches_nothing(monkeypatch, cuda):
    cupy = FakeCupy()
    backend = install(monkeypatch, cupy)
    for z in (
        torch.ones(1, 5, requires_grad=True),
        torch.ones(1, 5, dtype=torch.complex64),
        torch.ones(0, 5),
        torch.ones(1, 0),
    ):
        backend.residual(z, z)
        backend.error_norm(z, z, z, 0.1, 0.1)
    assert not cupy.log


@pytest.fixture
def reason(monkeypatch):
    """Ask again, for it is asked once in a process."""

    def ask(cupy, version="13.0", available=True):
        monkeypatch.setitem(sys.modules, "cupy", cupy)  # None: not installed
        monkeypatch.setattr(torch.version, "cuda", version)
        monkeypatch.setattr(torch.cuda, "is_available", lambda: available)
        monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)
        availability.unavailable_reason.cache_clear()
        return CupyBackend().unavailable_reason()

    yield ask
    availability.unavailable_reason.cache_clear()


def test_nothing_is_missing(reason):
    assert reason(FakeCupy()) is None


def test_the_reason_says_what_is_missing(reason):
    assert (
        reason(FakeCupy(), version=None)
        == f"the CUDA build of torch is missing: torch {torch.__version__} is built without CUDA"
    )
    assert reason(FakeCupy(driver=0)) == "the NVIDIA driver is missing"
    assert (
        reason(FakeCupy(devices=FakeRuntimeError("cudaErrorNoDevice")))
        == "a CUDA device is missing: cudaErrorNoDevice"
    )
    assert reason(FakeCupy(devices=0)) == "a CUDA device is missing: CuPy sees 0, torch 0"
    assert reason(FakeCupy(), available=False) == "a CUDA device is missing: CuPy sees 2, torch 0"
    bare = FakeCupy()
    bare.cuda.nvrtc.getVersion = lambda: (_ for _ in ()).throw(
        RuntimeError("libnvrtc.so.13 not found")
    )
    assert (
        "the compiler NVRTC is missing, which comes with CUDA and with torch's wheels for "
        "it: libnvrtc" in reason(bare)
    )


@pytest.mark.parametrize(
    ("version", "hint"),
    [
        ("12.8", "pip install 'implicitcore-cupy[cuda12]' (torch is built for CUDA 12.8)"),
        ("13.0", "pip install 'implicitcore-cupy[cuda13]' (torch is built for CUDA 13.0)"),
        ("11.8", "torch is built for CUDA 11.8; install the CuPy built for it"),
    ],
)
def test_the_package_that_is_missing_is_that_of_torchs_cuda(reason, version, hint):
    assert reason(None, version) == f"the package cupy is missing: {hint}"


def test_a_package_that_cannot_be_imported_says_why(reason, monkeypatch, tmp_path):
    (tmp_path / "cupy.py").write_text("import libfastrlock", encoding="utf-8")
    monkeypatch.syspath_prepend(tmp_path)
    assert reason(None, version=None) is not None  # which takes the fake away
    del sys.modules["cupy"]
    availability.unavailable_reason.cache_clear()
    monkeypatch.setattr(torch.version, "cuda", "13.0")
    assert (
        CupyBackend().unavailable_reason()
        == "the package cupy cannot be imported: No module named 'libfastrlock'"
    )


def test_the_reason_is_found_out_once(reason, monkeypatch):
    first = reason(None, version=None)
    monkeypatch.setattr(torch.version, "cuda", "13.0")
    assert CupyBackend().unavailable_reason() is first


def test_the_plugin_is_light():
    code = (
        "import implicitcore_cupy.plugin, sys; print(sorted({'cupy', 'numpy', 'torch'} & "
        "sys.modules.keys()))"
    )
    assert (
        subprocess.run(
            [sys.executable, "-c", code], capture_output=True, text=True, check=True
        ).stdout
        == "[]\n"
    )
    code = (
        "import implicitcore_cupy, sys; implicitcore_cupy.CupyBackend(); print('cupy' in "
        "sys.modules)"
    )
    assert (
        subprocess.run(
            [sys.executable, "-c", code], capture_output=True, text=True, check=True
        ).stdout
        == "False\n"
    )


def test_the_registry_finds_it_and_auto_passes_over_it_without_cuda(reason):
    reason(None, version=None)
    assert isinstance(ic.create("backend", "cupy"), CupyBackend)
    assert not isinstance(ic.create("backend", "auto"), CupyBackend)
    with pytest.raises(
        ic.ConfigError, match=r"CupyBackend cannot run here: the CUDA build of torch is missing"
    ):
        ic.fixed_point(lambda z, x: torch.cos(z), torch.zeros(2, 3), None, backend=CupyBackend())
