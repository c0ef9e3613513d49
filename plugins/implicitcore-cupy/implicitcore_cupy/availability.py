"""Why the kernels cannot run here, if they cannot."""

from __future__ import annotations

import functools
import importlib
from types import ModuleType

import torch

_EXTRAS = {"12": "cuda12", "13": "cuda13"}


@functools.cache
def unavailable_reason() -> str | None:
    """None where the kernels can run.

    Else which of CUDA build, package, driver, device or compiler is missing. Found out once in a
    process: it is asked at every solve.
    """
    version = torch.version.cuda
    if version is None:
        return (
            f"the CUDA build of torch is missing: torch {torch.__version__} is built without CUDA"
        )
    try:
        cupy = importlib.import_module("cupy")
    except ModuleNotFoundError as error:
        if error.name == "cupy":
            return f"the package cupy is missing: {_install(version)}"
        return f"the package cupy cannot be imported: {error}"
    except ImportError as error:
        return f"the package cupy cannot be imported: {error}"
    return _without_driver(cupy) or _without_device(cupy) or _without_compiler(cupy)


def _install(version: str) -> str:
    """How to get the CuPy of torch's CUDA."""
    extra = _EXTRAS.get(version.partition(".")[0])
    if extra is None:
        return f"torch is built for CUDA {version}; install the CuPy built for it"
    return f"pip install 'implicitcore-cupy[{extra}]' (torch is built for CUDA {version})"


def _without_driver(cupy: ModuleType) -> str | None:
    # CUDA's own code for no driver is that of one too old; the version tells them apart.
    if not cupy.cuda.runtime.driverGetVersion():
        return "the NVIDIA driver is missing"
    return None


def _without_device(cupy: ModuleType) -> str | None:
    try:
        count = cupy.cuda.runtime.getDeviceCount()
    except cupy.cuda.runtime.CUDARuntimeError as error:
        return f"a CUDA device is missing: {error}"
    if not count or not torch.cuda.is_available():
        return f"a CUDA device is missing: CuPy sees {count}, torch {torch.cuda.device_count()}"
    return None


def _without_compiler(cupy: ModuleType) -> str | None:
    try:
        cupy.cuda.nvrtc.getVersion()
    except (ImportError, OSError, RuntimeError) as error:  # which of them depends on CuPy's version
        return (
            "the compiler NVRTC is missing, which comes with CUDA and with torch's wheels "
            f"for it: {error}"
        )
    return None
