"""Products with a history of rows, and where a history is better kept by a solver's own loop."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from implicitcore.backends.base import Backend
from implicitcore.backends.torch import TORCH
from implicitcore.root_solvers.anderson import Anderson
from implicitcore.root_solvers.broyden import Broyden
from implicitcore.root_solvers.gmres import GMRES
from implicitcore.tensors.norms import real_dtype

LARGEST = 2**16
"""The bytes of a state with all its samples, above which a loop of its own keeps a history.

A graph copies all rows to write one, and takes those that were never written into each product:
with larger states that costs more than the calls it saves (measured on two CPUs; at this size 0.8
to 1.0 of the eager time). Each row in a tensor of its own is copied as well: a quarter of an
iteration of five rows is copies, of which that saves a quarter.
"""


def inner_products(history: Tensor, row: Tensor) -> Tensor:
    """See :meth:`Backend.inner_products`."""
    if not _is_fused():
        return TORCH.inner_products(history, row)
    wide = real_dtype(row)
    products = (history.to(wide) * row.to(wide)).sum(2)
    return products.unsqueeze(1).to(row.dtype)


def axpy_history(
    row: Tensor | None, weights: Tensor, history: Tensor, scale: float = 1.0
) -> Tensor:
    """See :meth:`Backend.axpy_history`."""
    if not _is_fused():
        return TORCH.axpy_history(row, weights, history, scale)
    wide = real_dtype(history)
    total = (weights.to(wide).mT * history.to(wide)).sum(1, keepdim=True) * scale
    return (total if row is None else row.to(wide) + total).to(history.dtype)


def _is_fused() -> bool:
    """Whether a compiler fuses products with what is around them.

    A product of matrices it would take apart by itself, and then sum across the rows; elsewhere it
    is one operation.
    """
    return torch.compiler.is_compiling() and not torch.compiler.is_exporting()


def keeps_loop(z: Tensor, solver: Any, backend: Backend) -> bool:
    """Whether a solver keeps a history, and is faster in its own loop.

    There a backend other than torch has a kernel for it, which no graph was measured to reach; and
    torch itself is ahead with states that are too large for a history in a graph. On an accelerator
    neither: each call costs more, and memory moves faster.
    """
    small = backend is TORCH and z.numel() * z.element_size() <= LARGEST
    return not small and z.device.type == "cpu" and isinstance(solver, Anderson | Broyden | GMRES)
