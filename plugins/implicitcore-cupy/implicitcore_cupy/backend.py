"""The CUDA backend: what each kernel is given."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from struct import Struct
from typing import ClassVar, NamedTuple

import torch
from torch import Tensor

from implicitcore import TorchBackend
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
from implicitcore_cupy.availability import unavailable_reason
from implicitcore_cupy.geometry import WARP, geometry, threads_for
from implicitcore_cupy.iteration import CupyIteration, kind_of
from implicitcore_cupy.krylov import CupyKrylov
from implicitcore_cupy.krylov import takes as takes_space
from implicitcore_cupy.launcher import GROUPS, NAMES, CupyLauncher, Launcher
from implicitcore_cupy.steps import CupyAdamsStep, control, takes

MAX_STAGES = 16

# The structs of kernels.cu, member by member: Q is a pointer, q an integer, d a double.
_TOTALS = "2Q3qd"
_RESIDUAL = Struct(f"=3Q4q{_TOTALS}")
_ERROR_NORM = Struct(f"=3Q2d4q{_TOTALS}")
_INNER_PRODUCTS = Struct(f"=2Q3q5q{_TOTALS}")
_FINISH = Struct(f"={_TOTALS}q")
_MIX = Struct("=4Q4qd5q")
_COMBINE = {
    torch.float32: Struct(f"=3Q5q{MAX_STAGES}Q{MAX_STAGES}f"),
    torch.float64: Struct(f"=3Q5q{MAX_STAGES}Q{MAX_STAGES}d"),
}


@dataclass(frozen=True, kw_only=True)
class CupyBackend(DeviceBackend):
    """CUDA kernels for the inner loops, and for whole iterations of Picard, Anderson and Broyden.

    Such an iteration is one launch, or up to five where a sample has more than 16,384 entries; the
    host looks once in four of them whether all samples have stopped. So it does in GMRES, where all
    beside a product is one launch, or three. What follows the stages of an
    adaptive step is one launch and the zeroing of four numbers, which the host then reads; a step
    of Adams is one launch before the evaluation and one behind it. Elsewhere a step's passes over
    the memory are one, and so are its launches, and nothing waits for the device. Sums are in
    float32, for float64 states in float64, and the same bits in every run. A kernel is compiled
    where its dtype first meets a device, which takes seconds; CuPy keeps it on disk for the next
    process. Choose it where launches cost more than f does: small states, many steps. Where f is
    large, the choice matters little.

    Reference:
        The fused update of memory-bound steps: Harris, Optimizing Parallel Reduction in CUDA,
        NVIDIA (2007).
    """

    device_types: ClassVar[tuple[str, ...]] = ("cuda",)
    dtypes: ClassVar[tuple[torch.dtype, ...]] = tuple(NAMES)
    launcher: ClassVar[Launcher] = CupyLauncher()

    def unavailable_reason(self) -> str | None:
        """None where the kernels can run.

        Else which of CUDA build, package, driver, device or compiler is missing.
        """
        return unavailable_reason()

    def _root_iteration(
        self, update: UpdateRule, rule: StopRule, z: Tensor
    ) -> RootIteration | None:
        kind = kind_of(update)
        return None if kind is None else CupyIteration(self.launcher, kind, rule, z)

    def _krylov_space(self, g: Tensor, limit: Tensor, most: int) -> KrylovSpace | None:
        return CupyKrylov(self.launcher, g, limit, most) if takes_space(g, most) else None

    def _control(self, rule: StepRule, taken: StepTaken) -> DeviceControl:
        return control(self.launcher, rule, taken)

    def _adams_step(self, attempt: AdamsAttempt) -> AdamsStep | None:
        return CupyAdamsStep(self.launcher, attempt) if takes(attempt.past) else None

    def _residual(self, fz: Tensor, z: Tensor, out: Tensor) -> Residual:
        norms = z.new_empty((2, z.shape[0]), dtype=real_dtype(z))
        words = fz.data_ptr(), z.data_ptr(), out.data_ptr()
        self._sum(
            f"residual<{NAMES[z.dtype].state}>",
            z,
            _RESIDUAL,
            words,
            _Totals(norms, 1, z.shape[0], 2, 1.0),
        )
        return Residual(out, *norms.unbind())

    def _error_norm(
        self, error: Tensor, z: Tensor, z_next: Tensor, rtol: float, atol: float
    ) -> Tensor:
        norms = z.new_empty(z.shape[0], dtype=real_dtype(z))
        words = error.data_ptr(), z.data_ptr(), z_next.data_ptr(), rtol, atol
        self._sum(
            f"error_norm<{NAMES[z.dtype].state}>",
            z,
            _ERROR_NORM,
            words,
            _Totals(norms, 1, 0, 1, 1 / z.shape[1]),
        )
        return norms

    def _inner_products(self, history: Tensor, row: Tensor) -> Tensor:
        batch, depth, _ = history.shape
        out = row.new_empty((batch, 1, depth))
        group = GROUPS[0] if depth <= GROUPS[0] else GROUPS[1]
        words = row.data_ptr(), history.data_ptr(), row.stride(0), *history.stride()[:2], depth
        kernel = f"inner_products<{NAMES[row.dtype].state}, {group}>"
        self._sum(
            kernel, history, _INNER_PRODUCTS, words, _Totals(out, depth, 1, depth, 0.0), group
        )
        return out

    def _axpy_history(
        self, row: Tensor | None, weights: Tensor, history: Tensor, scale: float, out: Tensor
    ) -> Tensor:
        batch, depth, n = history.shape
        laid = geometry(n, history.dtype, sums=False)
        pointers = (
            0 if row is None else row.data_ptr(),
            weights.data_ptr(),
            history.data_ptr(),
            out.data_ptr(),
        )
        steps = (
            0 if row is None else row.stride(0),
            out.stride(0),
            history.stride(0),
            history.stride(1),
        )
        words = _MIX.pack(*pointers, *steps, scale, depth, batch, laid.lanes, n, laid.span)
        kernel = f"axpy_history<{NAMES[history.dtype].state}>"
        self.launcher.launch(kernel, history, laid.grid(batch), laid.threads(batch), words, 0)
        return out

    def _stage_combination(
        self, z: Tensor | None, dt: Tensor, stages: Sequence[Tensor], weights: Sequence[float]
    ) -> Tensor:
        count, first = len(stages), stages[0]
        if count > MAX_STAGES:
            return TorchBackend().stage_combination(z, dt, stages, weights)
        if dt.dtype not in (torch.float32, torch.float64):
            dt = dt.to(real_dtype(first))
        out, (batch, n) = torch.empty_like(first), first.shape
        laid = geometry(n, first.dtype, sums=False)
        unused = (0,) * (MAX_STAGES - count)
        pointers = 0 if z is None else z.data_ptr(), dt.data_ptr(), out.data_ptr()
        addresses = (stage.data_ptr() for stage in stages)
        words = _COMBINE[real_dtype(first)].pack(
            *pointers,
            *(batch, laid.lanes, n, laid.span, count),
            *addresses,
            *unused,
            *weights,
            *unused,
        )
        kernel = f"stage_combination<{NAMES[first.dtype].state}, {NAMES[dt.dtype].state}>"
        self.launcher.launch(kernel, first, laid.grid(batch), laid.threads(batch), words, 0)
        return out

    def _sum(
        self,
        kernel: str,
        like: Tensor,
        layout: Struct,
        words: tuple[float, ...],
        totals: _Totals,
        at_once: int = 0,
    ) -> None:
        """Launch a kernel of sums over the samples ``[batch, ..., n]``.

        Where a sample has several spans, add them up with a second.
        """
        batch, n, size = like.shape[0], like.shape[-1], real_dtype(like).itemsize
        laid = geometry(n, like.dtype, sums=True)
        partial = (
            None
            if laid.spans == 1
            else like.new_empty(batch * totals.sums * laid.spans, dtype=real_dtype(like))
        )
        where = totals.out.data_ptr(), 0 if partial is None else partial.data_ptr(), *totals[1:]
        shared = laid.shared(at_once or totals.sums, size)
        packed = layout.pack(*words, batch, laid.lanes, n, laid.span, *where)
        self.launcher.launch(kernel, like, laid.grid(batch), laid.threads(batch), packed, shared)
        if partial is not None:
            finish = f"finish<{NAMES[totals.out.dtype].state}>"
            threads = max(WARP, threads_for(laid.spans))
            self.launcher.launch(
                finish,
                like,
                (batch, totals.sums),
                threads,
                _FINISH.pack(*where, laid.spans),
                threads // WARP * size,
            )


class _Totals(NamedTuple):
    """Where the sums over the samples go."""

    out: Tensor
    sample_step: int
    sum_step: int
    sums: int  # of a sample
    scale: float  # of a norm, sqrt(scale sum); zero for the sums themselves
