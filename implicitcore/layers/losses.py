"""The regularizers of layers: loss terms that are added to the task's loss."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from implicitcore.solution import SolveResult, Trajectory


def skip_loss(solution: SolveResult) -> Tensor:
    """Mean ``|z - z0|`` over all entries, differentiable in both (Skip DEQ, arXiv 2201.12240)."""
    return _mean(solution.z, solution.start, torch.nn.functional.l1_loss)


def start_loss(solution: SolveResult) -> Tensor:
    """Smooth L1 loss of z0 with the detached z as its target (HomoODE, arXiv 2310.09583)."""
    end = solution.final() if isinstance(solution, Trajectory) else solution
    target = pytree.tree_map(torch.detach, end.z)
    return _mean(solution.start, target, torch.nn.functional.smooth_l1_loss)


def _mean(left: Any, right: Any, loss: Any) -> Tensor:
    """The mean loss over all entries of two states."""
    pairs = list(zip(pytree.tree_leaves(left), pytree.tree_leaves(right), strict=True))
    entries = sum(a.numel() for a, _ in pairs)
    total = torch.stack([loss(a, b, reduction="sum") for a, b in pairs]).sum()
    return total / max(entries, 1)
