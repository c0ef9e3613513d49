"""A backend of kernels that looks at what it is given."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import ClassVar

import torch
from torch import Tensor

import implicitcore as ic
from implicitcore.backends.base import Residual
from implicitcore.extend import FusedBackend

REFERENCE = ic.TorchBackend()


@dataclass(frozen=True)
class Watched(FusedBackend):
    """Kernels that are the reference's, that check what they were promised, and that count."""

    device_types: ClassVar[tuple[str, ...]] = ("cpu",)
    dtypes: ClassVar[tuple[torch.dtype, ...]] = (torch.float64,)
    calls: list[str] = field(default_factory=list)
    reason: str | None = None

    def unavailable_reason(self) -> str | None:
        return self.reason

    def _residual(self, fz: Tensor, z: Tensor, out: Tensor) -> Residual:
        self._met("residual", [fz, z, out], [])
        return REFERENCE.residual(fz, z, out)

    def _inner_products(self, history: Tensor, row: Tensor) -> Tensor:
        self._met("inner_products", [], [history, row])
        return REFERENCE.inner_products(history, row)

    def _axpy_history(self, row, weights, history, scale, out):
        self._met("axpy_history", [weights], [history, out] if row is None else [row, history, out])
        return out.copy_(REFERENCE.axpy_history(row, weights, history, scale))

    def _stage_combination(self, z, dt, stages, weights):
        self._met("stage_combination", [dt, *stages] if z is None else [z, dt, *stages], [])
        assert all(weights)
        return REFERENCE.stage_combination(z, dt, stages, weights)

    def _error_norm(self, error, z, z_next, rtol, atol):
        self._met("error_norm", [error, z, z_next], [])
        return REFERENCE.error_norm(error, z, z_next, rtol, atol)

    def _met(self, name: str, whole: list[Tensor], rows: list[Tensor]) -> None:
        self.calls.append(name)
        assert all(tensor.is_contiguous() for tensor in whole)
        assert all(tensor.stride(2) == 1 for tensor in rows)
        assert all(tensor.numel() and tensor.dtype == torch.float64 for tensor in (*whole, *rows))
        assert not (
            torch.is_grad_enabled() and any(tensor.requires_grad for tensor in (*whole, *rows))
        )
