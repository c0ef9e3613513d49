"""The reference backend: plain torch operations."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from typing import ClassVar, final

import torch
from torch import Tensor

from implicitcore.backends.base import Backend, Residual, StageSums
from implicitcore.tensors import host
from implicitcore.tensors.norms import HALF, column, norm, real_dtype
from implicitcore.tensors.packing import DTYPES


@final
class TorchBackend(Backend):
    """Runs on any device and floating-point dtype of torch, and is differentiable."""

    device_types: ClassVar[tuple[str, ...]] = ("cpu", "cuda", "mps", "xpu")
    dtypes: ClassVar[tuple[torch.dtype, ...]] = DTYPES
    differentiable: ClassVar[bool] = True

    def unavailable_reason(self) -> str | None:
        """None: it can always run."""
        return None

    def residual(self, fz: Tensor, z: Tensor, out: Tensor | None = None) -> Residual:
        """See :meth:`Backend.residual`."""
        g = fz - z if out is None else torch.sub(fz, z, out=out)
        if fz.dtype in HALF:
            return Residual(g, norm(g), norm(fz))
        size = torch.linalg.vector_norm
        return Residual(g, size(g, dim=1), size(fz, dim=1))

    def inner_products(self, history: Tensor, row: Tensor) -> Tensor:
        """See :meth:`Backend.inner_products`."""
        # As row times matrix: matrix times column was measured 5 to 15 times slower on a CPU.
        return torch.bmm(row, history.mH)

    def axpy_history(
        self,
        row: Tensor | None,
        weights: Tensor,
        history: Tensor,
        scale: float = 1.0,
        *,
        out: Tensor | None = None,
    ) -> Tensor:
        """See :meth:`Backend.axpy_history`."""
        # Weights from a batched solve are column-major, for which bmm was measured 9 times slower
        # on a CPU.
        weights = weights.contiguous()
        if row is None:
            return torch.bmm(weights * scale, history, out=out)
        return torch.baddbmm(row, weights, history, alpha=scale, out=out)

    def stage_combination(
        self, z: Tensor | None, dt: Tensor, stages: Sequence[Tensor], weights: Sequence[float]
    ) -> Tensor:
        """See :meth:`Backend.stage_combination`."""
        # In place and relative to the largest weight, which the last product multiplies by: fewer
        # passes over memory, and fewer allocations.
        by_size = _by_size if torch.compiler.is_compiling() else _by_size_kept
        (first, most), *others = by_size(tuple(weights))
        total = stages[first]
        for place, (index, ratio) in enumerate(others):
            total = (
                total.add_(stages[index], alpha=ratio)
                if place
                else torch.add(total, stages[index], alpha=ratio)
            )
        scale = column(dt) if dt.ndim else dt
        if scale.dtype is not total.dtype:
            scale = scale.to(total.dtype)
        return total * (scale * most) if z is None else torch.addcmul(z, total, scale, value=most)

    def error_norm(
        self, error: Tensor, z: Tensor, z_next: Tensor, rtol: float, atol: float
    ) -> Tensor:
        """See :meth:`Backend.error_norm`."""
        root = max(z.shape[1], 1) ** 0.5
        larger = torch.maximum(z.abs(), z_next.abs()).to(real_dtype(z))
        if torch.compiler.is_compiling():
            return norm(error / (larger * (rtol * root) + atol * root))
        return norm(error / torch.add(_constant(atol * root), larger, alpha=rtol * root))

    def stage_sums(
        self, rows: tuple[tuple[float, ...], ...], z: Tensor, dt: Tensor
    ) -> StageSums | None:
        """See :meth:`Backend.stage_sums`: on an accelerator, where no graph is recorded."""
        if host.on_host(z) or torch.is_grad_enabled() or torch.compiler.is_compiling():
            return None
        return _AllRows(rows, z, dt)


class _AllRows:
    """Every row of a tableau at once, to which a stage is added in one launch."""

    def __init__(self, rows: tuple[tuple[float, ...], ...], z: Tensor, dt: Tensor) -> None:
        self.z, self.dt = z, (column(dt) if dt.ndim else dt).to(z.dtype)
        self.weights = _columns(rows, z.dtype, z.device)
        self.sums, self.added = z, 0

    def __call__(self, stages: Sequence[Tensor], row: int, *, move: bool = False) -> Tensor:
        """See :class:`StageSums`."""
        for stage in stages[self.added :]:
            self._add(stage)
        total = self.sums[row]
        return total * self.dt if move else torch.addcmul(self.z, total, self.dt)

    def _add(self, stage: Tensor) -> None:
        index, weights = self.added, self.weights[self.added]
        if index:  # the rows before are complete
            self.sums[index:].addcmul_(weights[index:], stage)
        else:
            self.sums = weights * stage
        self.added += 1


@cache
def _columns(
    rows: tuple[tuple[float, ...], ...], dtype: torch.dtype, device: torch.device
) -> tuple[Tensor, ...]:
    """The weights of each stage in all rows, ``[rows, 1, 1]``."""
    longest = max(map(len, rows))
    with torch.inference_mode(False):
        padded = [[*row, *[0.0] * (longest - len(row))] for row in rows]
        table = torch.tensor(padded, dtype=torch.float64, device="cpu")
        return table.to(device, dtype).T[..., None, None].unbind(0)


@cache
def _constant(value: float) -> Tensor:
    """A number of a launch that takes a tensor there."""
    with torch.inference_mode(False):
        return torch.tensor(value, dtype=torch.float64, device="cpu")


def _by_size(weights: tuple[float, ...]) -> list[tuple[int, float]]:
    """The index of each weight that is not zero, the largest first, then relative to that."""
    order = sorted(
        (i for i, weight in enumerate(weights) if weight), key=lambda i: -abs(weights[i])
    )
    most = weights[order[0]]
    return [(order[0], most), *((i, weights[i] / most) for i in order[1:])]


_by_size_kept = cache(_by_size)  # a compiler would trace through the cache, and warn


TORCH = TorchBackend()
"""The one that is used where no backend is given: it has no options and keeps nothing."""
