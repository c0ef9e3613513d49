"""A history in a narrower dtype than the state's, and sums with it in the state's."""

from __future__ import annotations

from typing import TypeAlias

import torch
from torch import Tensor

from implicitcore.backends.base import Backend
from implicitcore.tensors.norms import HALF
from implicitcore.tensors.products import BMM


class WidenedRows:
    """Products with a narrow history, one row after the other.

    A row is widened for its product and then let go: never is there more than one of them, and
    every sum is that of the wide dtype. For large states, where a row costs more than its calls.
    """

    def inner_products(self, history: Tensor, row: Tensor) -> Tensor:
        """See :meth:`Backend.inner_products`; in float32 where the row is narrow too."""
        wide = row.to(torch.promote_types(row.dtype, torch.float32))
        each = history.split(1, 1)
        bmm = BMM[row.is_cpu]
        return torch.cat([bmm(wide, past.to(wide.dtype).mT) for past in each], 2)

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
        if row is None:
            row = torch.zeros_like(history[:, :1], dtype=weights.dtype)
        total = row.clone() if out is None else out.copy_(row)
        for past, weight in zip(history.split(1, 1), weights.split(1, 2), strict=True):
            total.addcmul_(past.to(total.dtype), weight.to(total.dtype), value=scale)
        return total


WIDENED_ROWS = WidenedRows()

Products: TypeAlias = Backend | WidenedRows
"""What a solver asks for products with its history."""


def history_dtype(z: Tensor, wanted: str | None) -> torch.dtype:
    """What the history of a solve from z is kept in.

    As it is in half precision, and where a graph is recorded, which keeps every value anyway.
    """
    if wanted is None or z.dtype in HALF or torch.is_grad_enabled():
        return z.dtype
    return getattr(torch, wanted)


def products(backend: Backend, z: Tensor, dtype: torch.dtype) -> Products:
    """Of histories of this dtype beside the state z: the backend's, where it is z's own."""
    return backend if dtype == z.dtype else WIDENED_ROWS
