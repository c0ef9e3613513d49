"""A backend for devices whose kernels are torch's operations: with CUDA graphs, emulated, on a
CPU."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from implicitcore.backends.torch import TORCH
from implicitcore.extend import DeviceBackend, Residual


@dataclass(frozen=True, kw_only=True)
class TorchDevice(DeviceBackend):
    """Everything that the loops share with the backends of accelerators, and no kernels."""

    device_types: ClassVar[tuple[str, ...]] = ("cpu",)
    dtypes: ClassVar[tuple[torch.dtype, ...]] = (torch.float32, torch.float64)

    def unavailable_reason(self) -> str | None:
        return None

    def _residual(self, fz: Tensor, z: Tensor, out: Tensor) -> Residual:
        return TORCH.residual(fz, z, out)

    def _inner_products(self, history: Tensor, row: Tensor) -> Tensor:
        return TORCH.inner_products(history, row)

    def _axpy_history(
        self, row: Tensor | None, weights: Tensor, history: Tensor, scale: float, out: Tensor
    ) -> Tensor:
        return TORCH.axpy_history(row, weights, history, scale, out=out)

    def _stage_combination(
        self, z: Tensor | None, dt: Tensor, stages: Sequence[Tensor], weights: Sequence[float]
    ) -> Tensor:
        return TORCH.stage_combination(z, dt, stages, weights)

    def _error_norm(
        self, error: Tensor, z: Tensor, z_next: Tensor, rtol: float, atol: float
    ) -> Tensor:
        return TORCH.error_norm(error, z, z_next, rtol, atol)
