"""Products of small matrices as sums, which a compiler fuses with what is around them."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

LONGEST, LARGEST = 8, 64
"""Of a matrix that a sum stands for: its rows, and its entries."""


def _product(a: Tensor, b: Tensor) -> Any:
    """``[batch, k] [k, n]`` on a CPU, where a call of a library takes longer than the product.

    Only in a precision that the sum has too, and not of the batch itself, whose size is none.
    """
    k, n = b.shape
    # A size of the batch is no int, and may not be looked at.
    fixed = type(k) is int and type(n) is int and k <= LONGEST and k * n <= LARGEST
    if not fixed or a.device.type != "cpu" or a.dtype not in (torch.float32, torch.float64):
        return NotImplemented
    return (a.unsqueeze(2) * b.unsqueeze(0)).sum(1)


def _sum_and_product(c: Tensor, a: Tensor, b: Tensor, *, beta: float = 1, alpha: float = 1) -> Any:
    found = _product(a, b) if beta == alpha == 1 else NotImplemented
    return found if found is NotImplemented else c + found


SMALL_PRODUCTS = {
    torch.ops.aten.mm.default: _product,
    torch.ops.aten.addmm.default: _sum_and_product,
}
"""For a trace: what stands for an operation, or ``NotImplemented``."""
