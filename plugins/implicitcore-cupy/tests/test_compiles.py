"""NVRTC, which needs no driver, compiles every kernel for the GPUs of three generations."""

from __future__ import annotations

import importlib
from importlib.util import find_spec

import pytest
from cpu_launcher import DTYPES

from implicitcore.testing.requirements import missing
from implicitcore_cupy.launcher import FAMILIES, OPTIONS, instances, source

pytestmark = pytest.mark.extras


@pytest.fixture(scope="module")
def core():
    if find_spec("cuda") is None or not (find_spec("cuda.core") and find_spec("cuda.bindings")):
        missing("cuda-core with cuda-bindings")
    module = importlib.import_module("cuda.core")
    try:
        importlib.import_module("cuda.bindings.nvrtc").nvrtcVersion()
    except RuntimeError:  # it looks for the library at the first call
        missing("NVRTC (nvidia-cuda-nvrtc)")
    return module


@pytest.mark.parametrize("dtype", DTYPES, ids=DTYPES.values())
@pytest.mark.parametrize("arch", ["sm_80", "sm_90", "sm_120"])
@pytest.mark.parametrize("family", FAMILIES)
def test_every_kernel_compiles(core, arch, dtype, family):
    names = instances(dtype, family)
    options = core.ProgramOptions(arch=arch, std=OPTIONS[0].removeprefix("--std="))
    binary = core.Program(source(family), "c++", options).compile("cubin", name_expressions=names)
    assert set(binary.symbol_mapping) == set(names)
    assert bytes(binary.code).startswith(b"\x7fELF")
    assert all(
        mangled.encode() in bytes(binary.code)
        for mangled in map(_text, binary.symbol_mapping.values())
    )


def _text(name: str | bytes) -> str:
    return name.decode() if isinstance(name, bytes) else name


def test_a_mistake_in_the_source_does_not_compile(core):
    program = core.Program(
        source("kernels").replace("__syncthreads();", "__syncthread();"),
        "c++",
        core.ProgramOptions(arch="sm_90", std="c++17"),
    )
    with pytest.raises(Exception, match="__syncthread"):
        program.compile("cubin", name_expressions=("residual<float>",))
