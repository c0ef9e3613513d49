"""The backend: which kernel is launched how."""

from __future__ import annotations

import os
import struct
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from functools import cache
from importlib.util import find_spec
from typing import Any, ClassVar, final

import numpy as np
import torch
from torch import Tensor

from implicitcore.extend import (
    AdamsAttempt,
    AdamsStep,
    DeviceBackend,
    DeviceControl,
    KrylovSpace,
    Residual,
    RootIteration,
    StepRule,
    StepTaken,
    StopRule,
    UpdateRule,
    real_dtype,
)
from implicitcore_triton.iteration import TritonIteration, takes
from implicitcore_triton.krylov import KRYLOV, TritonKrylov
from implicitcore_triton.steps import TritonAdamsStep, control, fits

INTERPRETED = os.environ.get("TRITON_INTERPRET", "0").lower() in ("1", "true", "yes", "on", "y")
"""Triton compiles nothing in this process.

It reads the variable when a kernel is defined, and never again.
"""

CHUNK = 4096
"""Columns that one program sums: samples with more are summed by several and a second kernel."""

TILE = 1024
"""Entries that a program holds at once, of a state."""

STEPS = ("control", "predict", "correct")  # of what an adaptive step is beside its evaluations

ITERATIONS = ("picard", "anderson", "broyden", *STEPS, *KRYLOV)
"""Kernels of a whole iteration, step or product."""

LINES = 8
"""Lines of a history that a program holds at once.

The rows in use of a small history come in eights.
"""


@final
@dataclass(frozen=True, kw_only=True)
class TritonBackend(DeviceBackend):
    """CUDA kernels in Triton: for whole iterations of Picard, Anderson, good Broyden, and others.

    Such an iteration is one launch where a sample has at most 16,384 entries, and the host looks
    once in four of them; so is the control of an adaptive step, and both halves of one of Adams.
    All that GMRES does beside a product is one launch, or three above 4096 entries.
    Elsewhere each kernel of the inner loops is one launch, two where the
    states are larger than 4096 entries. It saves launches and passes over the memory:
    prefer it where the cell is small, so that a step of the solver costs as much as f. float32,
    float64 and bfloat16 states, the last with sums in float32; any device, torch's current stream,
    no other host sync. Equal tensors give equal bits: nothing that rounds is added atomically, and
    a sample's result does not depend on the batch it is in. A kernel is compiled when it first
    runs, for each dtype and few sizes, and kept on disk: run a step before you capture a CUDA
    graph.

    Attributes:
        interpret: run the kernels in Triton's interpreter, on CPU tensors too: thousands of times
            slower, to test with. The variable ``TRITON_INTERPRET=1`` must be set before Triton is
            imported. So ``auto`` never takes an interpreter.

    Reference:
        Tillet, Kung, Cox, Triton: An Intermediate Language and Compiler for Tiled Neural Network
        Computations, MAPL 2019, p. 10-19.
    """

    device_types: ClassVar[tuple[str, ...]] = ("cuda", "cpu") if INTERPRETED else ("cuda",)
    dtypes: ClassVar[tuple[torch.dtype, ...]] = (torch.float32, torch.float64, torch.bfloat16)

    interpret: bool = False

    def unavailable_reason(self) -> str | None:
        """See :meth:`Backend.unavailable_reason`; found once, and then remembered."""
        return _reason(self.interpret, INTERPRETED)

    def _root_iteration(
        self, update: UpdateRule, rule: StopRule, z: Tensor
    ) -> RootIteration | None:
        return TritonIteration(_launch, update, rule, z, *_tile(z)) if takes(update, z) else None

    def _krylov_space(self, g: Tensor, limit: Tensor, most: int) -> KrylovSpace:
        return TritonKrylov(_launch, g, limit, most)

    def _control(self, rule: StepRule, taken: StepTaken) -> DeviceControl | None:
        return control(_launch, rule, taken, *_tile(taken.z)) if fits(taken.z) else None

    def _adams_step(self, attempt: AdamsAttempt) -> AdamsStep | None:
        z = attempt.z
        return TritonAdamsStep(_launch, attempt, *_tile(z)) if fits(z) else None

    def _residual(self, fz: Tensor, z: Tensor, out: Tensor) -> Residual:
        norms = self._norms("residual", (fz, z, out), 2)
        return Residual(out, *norms.unbind())

    def _error_norm(
        self, error: Tensor, z: Tensor, z_next: Tensor, rtol: float, atol: float
    ) -> Tensor:
        return self._norms("error_norm", (error, z, z_next), 1, z.shape[1], rtol, atol)[0]

    def _norms(
        self, name: str, states: tuple[Tensor, ...], kinds: int, count: int = 1, *options: float
    ) -> Tensor:
        """What a kernel over whole states leaves: norms ``[kinds, batch]``."""
        batch, n = states[0].shape
        chunks = _ceil_div(n, CHUNK)
        norms = states[0].new_empty(kinds, batch, chunks, dtype=real_dtype(states[0]))
        samples, columns = _tile(states[0])
        sizes = {"CHUNK": CHUNK, "SAMPLES": samples, "COLUMNS": columns, "ROOT": chunks == 1}
        grid = (_ceil_div(batch, samples) * chunks,)
        _launch(name, grid, *states, norms, batch, n, chunks, *options, **sizes)
        return (
            norms.squeeze(2)
            if chunks == 1
            else self._finish(norms, norms.new_empty(kinds, batch), count, root=True)
        )

    def _inner_products(self, history: Tensor, row: Tensor) -> Tensor:
        batch, depth, n = history.shape
        chunks, columns = _ceil_div(n, CHUNK), _columns(n, TILE // 2)
        products = row.new_empty(batch, 1, depth)
        parts = (
            products if chunks == 1 else row.new_empty(batch, depth, chunks, dtype=real_dtype(row))
        )
        strides = (*history.stride()[:2], row.stride(0))
        sizes = {"CHUNK": CHUNK, "LINES": LINES, "COLUMNS": columns, "num_warps": _warps(columns)}
        _launch(
            "inner_products",
            (batch * chunks, _ceil_div(depth, LINES)),
            history,
            row,
            parts,
            depth,
            n,
            chunks,
            *strides,
            **sizes,
        )
        return products if chunks == 1 else self._finish(parts, products)

    def _finish(self, parts: Tensor, out: Tensor, count: int = 1, *, root: bool = False) -> Tensor:
        """The second kernel: the sums over the last dimension of ``parts``, in ``out``."""
        rows, chunks = out.numel(), parts.shape[-1]
        _launch(
            "finish",
            (_ceil_div(rows, 16),),
            parts,
            out,
            rows,
            chunks,
            count,
            ROOT=root,
            ROWS=16,
            COLUMNS=64,
        )
        return out

    def _axpy_history(
        self, row: Tensor | None, weights: Tensor, history: Tensor, scale: float, out: Tensor
    ) -> Tensor:
        batch, depth, n = history.shape
        columns = _columns(n, TILE // 4)
        blocks = _ceil_div(n, columns)
        strides = (0 if row is None else row.stride(0), *history.stride()[:2], out.stride(0))
        sizes = {"LINES": LINES, "COLUMNS": columns, "num_warps": _warps(2 * columns)}
        _launch(
            "axpy_history",
            (batch * blocks,),
            row,
            weights,
            history,
            out,
            float(scale),
            depth,
            n,
            blocks,
            *strides,
            **sizes,
        )
        return out

    def _stage_combination(
        self, z: Tensor | None, dt: Tensor, stages: Sequence[Tensor], weights: Sequence[float]
    ) -> Tensor:
        out = torch.empty_like(stages[0])
        batch, n = out.shape
        columns = _columns(n, TILE)
        samples, blocks = TILE // columns, _ceil_div(n, columns)
        bits = struct.unpack(f"{len(weights)}q", struct.pack(f"{len(weights)}d", *weights))
        arguments = (out, z, dt, tuple(stages), bits, batch, n, blocks)
        _launch(
            "stage_combination",
            (_ceil_div(batch, samples) * blocks,),
            *arguments,
            SAMPLES=samples,
            COLUMNS=columns,
        )
        return out


def _launch(name: str, grid: tuple[int, ...], *arguments: Any, **sizes: Any) -> None:
    """Run a kernel on the device of its tensors; the first of them has the dtype of the state."""
    import triton.language as tl

    tensor = next(argument for argument in arguments if isinstance(argument, Tensor))
    acc = tl.float64 if tensor.dtype == torch.float64 else tl.float32
    with torch.cuda.device_of(
        tensor
    ):  # Triton launches on the current device, whatever it is given
        _call(name, grid, *arguments, ACC=acc, enable_fp_fusion=True, **sizes)


def _call(name: str, grid: tuple[int, ...], *arguments: Any, **options: Any) -> None:
    kernel = _kernel(name)
    if name not in ITERATIONS:
        kernel[grid](*arguments, **options)
        return
    # The interpreter is NumPy, which warns of what overflows or is not a number: a stop test meets
    # it, and judges it.
    with np.errstate(all="ignore") if INTERPRETED else nullcontext():
        kernel[grid](*arguments, **options)


def _kernel(name: str) -> Any:
    from implicitcore_triton import (
        anderson_kernel,
        broyden_kernel,
        iteration_kernels,
        kernels,
        krylov_kernels,
        step_kernels,
    )

    own = {"picard": iteration_kernels, "anderson": anderson_kernel, "broyden": broyden_kernel}
    own |= dict.fromkeys(STEPS, step_kernels) | dict.fromkeys(KRYLOV, krylov_kernels)
    return getattr(own.get(name, kernels), name)


def _columns(n: int, most: int) -> int:
    """The columns of a tile: a power of two, so that few kernels are compiled."""
    return min(most, max(16, 1 << (n - 1).bit_length()))


def _tile(z: Tensor) -> tuple[int, int]:
    """The samples that a program holds, and the columns of each that it holds at once."""
    columns = _columns(z.shape[1], TILE)
    return TILE // columns, columns


def _warps(columns: int) -> int:
    return max(1, LINES * columns // TILE)


def _ceil_div(count: int, size: int) -> int:
    return -(-count // size)


@cache
def _reason(interpret: bool, interpreted: bool) -> str | None:
    """Why no kernel can run in this process."""
    if find_spec("triton") is None:
        return (
            "the package triton is not installed: it comes with torch's CUDA builds for "
            "Linux, or by pip install triton"
        )
    if interpret != interpreted:
        if interpret:
            return "interpret needs the variable TRITON_INTERPRET=1, set before Triton is imported"
        return (
            "TRITON_INTERPRET is set, so Triton compiles nothing: unset it, or ask for the "
            "interpreter (interpret=True)"
        )
    if interpreted or torch.cuda.is_available():
        return None
    if not torch.backends.cuda.is_built():
        return f"torch {torch.__version__} is not a CUDA build"
    try:
        torch.cuda.init()
    except RuntimeError as error:  # says which of driver and device is missing
        return str(error).partition("\n")[0].rstrip(".")
    return "torch finds no CUDA device"
