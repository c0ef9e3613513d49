"""Tensors of the checks: copies, some of the samples, and directional derivatives."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from implicitcore.tensors.restrict import of_input
from implicitcore.testing.expect import NotApplicable


def flat(z: Any) -> Tensor:
    """A pytree of tensors as one, ``[batch, n]``."""
    return torch.cat(
        [leaf.flatten(1) if leaf.ndim > 1 else leaf[:, None] for leaf in pytree.tree_leaves(z)], 1
    )


def copied(tree: Any) -> Any:
    """The same values in tensors of their own."""
    return pytree.tree_map_only(Tensor, lambda leaf: leaf.detach().clone(), tree)


def require_grad(tree: Any) -> tuple[Any, list[Tensor]]:
    """A copy whose floating-point tensors require gradients, and these."""
    tree = copied(tree)
    leaves = [
        leaf.requires_grad_()
        for leaf in pytree.tree_leaves(tree)
        if isinstance(leaf, Tensor) and leaf.is_floating_point()
    ]
    return tree, leaves


def rows(tree: Any, index: list[int]) -> Any:
    """Some of the samples; what is marked as shared stays."""
    return of_input(tree, torch.tensor(index))


def with_nan(tree: Any, row: int) -> Any:
    """A copy with a NaN in one sample.

    Raises:
        NotApplicable: there is no floating-point tensor to put it into.
    """
    tree, leaves = require_grad(tree)
    if not leaves:
        raise NotApplicable("its input has no floating-point tensor")
    with torch.no_grad():
        leaves[-1][row] = torch.nan
    return pytree.tree_map_only(Tensor, torch.detach, tree)


def slope(f: Callable[[], Tensor], leaves: list[Tensor], step: float = 1e-5) -> tuple[float, float]:
    """The derivative of the scalar f in one direction of its leaves.

    By autograd, and by a central difference. The direction is that of the gradient with noise, so
    that no leaf is left out, and leaves that get no gradient stay where they are.
    """
    found = torch.autograd.grad(f(), leaves, allow_unused=True)
    pairs = [
        (leaf, g, g + g.norm() / g.numel() ** 0.5 * torch.randn_like(g))
        for leaf, g in zip(leaves, found, strict=True)
        if g is not None
    ]
    size = torch.stack([d.square().sum() for _, _, d in pairs]).sum().sqrt()
    values = []
    with torch.no_grad():
        for sign in (1, -2):
            for leaf, _, d in pairs:
                leaf.add_(d / size, alpha=sign * step)
            values.append(f().item())
        for leaf, _, d in pairs:
            leaf.add_(d / size, alpha=step)
    return sum((g * d).sum().item() for _, g, d in pairs) / size.item(), (values[0] - values[1]) / (
        2 * step
    )


def parameters(module: nn.Module) -> list[Tensor]:
    """The parameters that require a gradient."""
    return [parameter for parameter in module.parameters() if parameter.requires_grad]
