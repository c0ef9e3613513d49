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
from implicitcore.tensors.products import BADDBMM, BMM
from implicitcore.tensors.state import DTYPES

# The index of the largest weight of a sum, that weight, and those of the others relative to it.
_Weights = tuple[int, float, list[tuple[int, float]]]


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
        return BMM[row.is_cpu](row, history.mH)

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
            return BMM[history.is_cpu](weights * scale, history, out=out)
        return BADDBMM[row.is_cpu](row, weights, history, alpha=scale, out=out)

    def stage_combination(
        self, z: Tensor | None, dt: Tensor, stages: Sequence[Tensor], weights: Sequence[float]
    ) -> Tensor:
        """See :meth:`Backend.stage_combination`."""
        by_size = _by_size if torch.compiler.is_compiling() else _by_size_kept
        return _sum(z, _scale(dt, stages[0]), stages, by_size(tuple(weights)))

    def error_norm(
        self, error: Tensor, z: Tensor, z_next: Tensor, rtol: float, atol: float
    ) -> Tensor:
        """See :meth:`Backend.error_norm`."""
        return norm(error / units(z, z_next, rtol, atol))

    def stage_sums(self, rows: tuple[tuple[float, ...], ...], z: Tensor, dt: Tensor) -> StageSums:
        """See :meth:`Backend.stage_sums`.

        All rows at once on an accelerator, where no graph is recorded and they are long.
        """
        if torch.compiler.is_compiling():
            return _EachRow([_by_size(row) for row in rows], z, dt)
        ordered, long = _ordered(rows)
        if long and not torch.is_grad_enabled() and not host.on_host(z):
            return _AllRows(rows, z, dt)
        return _EachRow(ordered, z, dt)


def units(z: Tensor, z_next: Tensor, rtol: float, atol: float) -> Tensor:
    """What the 2-norm of an error over it is the root mean square in units of the tolerances of.

    sqrt(n) (atol + rtol max(``|z|``, ``|z_next|``)), ``[batch, n]``.
    """
    root = max(z.shape[1], 1) ** 0.5
    most = larger(z, z_next).to(real_dtype(z))
    if torch.compiler.is_compiling():
        return most * (rtol * root) + atol * root
    return torch.add(_constant(atol * root), most, alpha=rtol * root)


def larger(z: Tensor, z_next: Tensor) -> Tensor:
    """The larger absolute value of each entry; as a norm of both, a launch less on an accelerator.

    There where no graph is recorded: the derivative where both are as large is another one.
    """
    if torch.is_grad_enabled() or torch.compiler.is_compiling() or host.on_host(z):
        return torch.maximum(z.abs(), z_next.abs())
    return torch.linalg.vector_norm(torch.stack((z, z_next)), ord=torch.inf, dim=0)


class _EachRow:
    """The rows of a tableau one by one."""

    def __init__(self, rows: Sequence[_Weights], z: Tensor, dt: Tensor) -> None:
        self.rows, self.z, self.scale = rows, z, _scale(dt, z)

    def __call__(self, stages: Sequence[Tensor], row: int, *, move: bool = False) -> Tensor:
        """See :class:`StageSums`."""
        return _sum(None if move else self.z, self.scale, stages, self.rows[row])


class _AllRows:
    """Every row of a tableau at once, to which a stage is added in one launch."""

    def __init__(self, rows: tuple[tuple[float, ...], ...], z: Tensor, dt: Tensor) -> None:
        self.z, self.dt = z, _scale(dt, z)
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


def _scale(dt: Tensor, like: Tensor) -> Tensor:
    """Dt as a state is multiplied by it."""
    scale = column(dt) if dt.ndim else dt
    return scale if scale.dtype is like.dtype else scale.to(like.dtype)


def _sum(z: Tensor | None, scale: Tensor, stages: Sequence[Tensor], weights: _Weights) -> Tensor:
    """Z + scale sum_i weights_i stages_i, without z where that is None."""
    # In place and relative to the largest weight, which the last product multiplies by: fewer
    # passes over memory, and fewer allocations.
    first, most, others = weights
    total = stages[first]
    if others:
        (index, ratio), *more = others
        total = torch.add(total, stages[index], alpha=ratio)
        for index, ratio in more:
            total.add_(stages[index], alpha=ratio)
    return total * (scale * most) if z is None else torch.addcmul(z, total, scale, value=most)


def _by_size(weights: tuple[float, ...]) -> _Weights:
    """The largest weight, and the others that are not zero; where all are, the first."""
    some = [i for i, weight in enumerate(weights) if weight]
    order = sorted(some, key=lambda i: -abs(weights[i])) or [0]
    most = weights[order[0]]
    return order[0], most, [(i, weights[i] / most) for i in order[1:]]


@cache
def _ordered(rows: tuple[tuple[float, ...], ...]) -> tuple[list[_Weights], bool]:
    """The weights of each row; whether these are more sums than twice their number."""
    return [_by_size(row) for row in rows], sum(map(bool, sum(rows, ()))) > 2 * len(rows)


_by_size_kept = cache(_by_size)  # a compiler would trace through the cache, and warn


TORCH = TorchBackend()
"""The one that is used where no backend is given: it has no options and keeps nothing."""
