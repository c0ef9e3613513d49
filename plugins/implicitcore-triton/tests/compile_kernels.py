"""Compile every kernel as the backend launches it, for GPUs that need not be there; print a line for each binary.

A program, for in its process nothing may be interpreted.
"""

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource
from triton.runtime.jit import mangle_type

from implicitcore_triton import backend, kernels

CAPABILITIES = (80, 90, 120)
SIZES = (1, 129, 8192)


def signature(function: Any, arguments: dict[str, Any]) -> tuple[dict[str, Any], dict[tuple[int, ...], Any], dict[tuple[int, ...], Any]]:
    """The types of the arguments, those known when it is compiled (a size of one is), and those that 16 divides, as at a launch."""
    types, constants, attributes = {}, {}, {}
    for place, parameter in enumerate(function.params):
        value = arguments[parameter.name]
        if parameter.is_constexpr or value is None or (type(value) is int and value == 1 and not parameter.do_not_specialize):
            types[parameter.name], constants[place,] = "constexpr", value
            continue
        types[parameter.name] = parameter.annotation_type or _type(value)
        parts = [((place, i), part) for i, part in enumerate(value)] if isinstance(value, tuple) else [((place,), value)]
        divisible = [path for path, part in parts if not parameter.do_not_specialize and _divisible(part)]
        attributes |= {path: [["tt.divisibility", 16]] for path in divisible}
    return types, constants, attributes


def _type(value: Any) -> Any:
    return tuple(map(_type, value)) if isinstance(value, tuple) else mangle_type(value)


def _divisible(value: Any) -> bool:
    return (value.data_ptr() if isinstance(value, torch.Tensor) else value) % 16 == 0


def compile_launch(name: str, grid: tuple[int, ...], *arguments: Any, num_warps: int = 4, **sizes: Any) -> None:
    """Stands in for the backend's launch."""
    del grid
    function = getattr(kernels, name)
    acc = tl.float64 if any(isinstance(a, torch.Tensor) and a.dtype == torch.float64 for a in arguments) else tl.float32
    types, constants, attributes = signature(function, function.signature.bind(*arguments, ACC=acc, **sizes).arguments)
    source = ASTSource(function, types, constants, attributes)
    for capability in CAPABILITIES:
        compiled = triton.compile(source, GPUTarget("cuda", capability, 32), {"num_warps": num_warps})
        assert not compiled.metadata.global_scratch_size
        print(name, acc, f"sm_{capability}", len(compiled.asm["cubin"]))


def launch_all(dtype: torch.dtype, n: int) -> None:
    """Every kernel that a state of this size meets."""
    cuda = backend.Triton()
    z, history = torch.zeros(3, n, dtype=dtype), torch.zeros(3, 5, n, dtype=dtype)
    row, weights, dt = z[:, None], torch.zeros(3, 1, 5, dtype=dtype), torch.zeros(3)
    cuda._residual(z, z, z)
    cuda._gram_row(history, row)
    cuda._error_norm(z, z, z, 1e-3, 1e-6)
    for base in (row, None):
        cuda._mix(base, weights, history, -1.0, row)
    for base, count in ((z, 1), (None, 7), (z, 16)):
        cuda._combine(base, dt, [z] * count, [0.5] * count)


if __name__ == "__main__":
    backend._launch = compile_launch
    for dtype in backend.Triton.dtypes:
        for n in SIZES:
            launch_all(dtype, n)
