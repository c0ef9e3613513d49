"""The abstract backend: the few array kernels in the inner loops of the solvers."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from typing import ClassVar, NamedTuple

import torch
from torch import Tensor

from implicitcore.options.options import PartMeta


class Residual(NamedTuple):
    """g = f(z) - z with its norms per sample."""

    value: Tensor  # [batch, n]
    norm: Tensor  # [batch], |g|
    update_norm: Tensor  # [batch], |f(z)|


class Backend(metaclass=PartMeta):
    """Torch tensors in, torch tensors out, on torch's current stream and without a host sync.

    The torch backend is the reference: it defines the meaning of each kernel. States are ``[batch,
    n]``, histories ``[batch, depth, n]``, and a state that meets a history is one row of it; norms
    are per sample, in float32 at least.

    Attributes:
        device_types: the torch device types it runs on.
        dtypes: the state dtypes it takes.
        differentiable: autograd may pass through its kernels.
    """

    kind: ClassVar[str] = "backend"
    device_types: ClassVar[tuple[str, ...]]
    dtypes: ClassVar[tuple[torch.dtype, ...]]
    differentiable: ClassVar[bool]

    @abstractmethod
    def unavailable_reason(self) -> str | None:
        """None where the backend can run.

        Else which of package, driver, CUDA build or device is missing.
        """

    @abstractmethod
    def residual(self, fz: Tensor, z: Tensor, out: Tensor | None = None) -> Residual:
        """f(z) - z, its 2-norm and that of f(z), per sample.

        The difference is written to ``out``, where given (without a graph).
        """

    @abstractmethod
    def inner_products(self, history: Tensor, row: Tensor) -> Tensor:
        """Inner products of a row with each of the history.

        ``[batch, depth, n], [batch, 1, n] -> [batch, 1, depth]``.
        """

    @abstractmethod
    def axpy_history(
        self,
        row: Tensor | None,
        weights: Tensor,
        history: Tensor,
        scale: float = 1.0,
        *,
        out: Tensor | None = None,
    ) -> Tensor:
        """row + scale sum_i weights_i history_i; no row is zero.

        Written to ``out``, where given (without a graph), which may be the row. ``[batch, 1, n],
        [batch, 1, depth], [batch, depth, n] -> [batch, 1, n]``.
        """

    @abstractmethod
    def stage_combination(
        self, z: Tensor | None, dt: Tensor, stages: Sequence[Tensor], weights: Sequence[float]
    ) -> Tensor:
        """The Runge-Kutta stage combination z + dt sum_i weights_i stages_i, with dt ``[batch]``.

        No z is zero.
        """

    @abstractmethod
    def error_norm(
        self, error: Tensor, z: Tensor, z_next: Tensor, rtol: float, atol: float
    ) -> Tensor:
        """Root mean square of error / (atol + rtol max(``|z|``, ``|z_next|``)), ``[batch]``."""
