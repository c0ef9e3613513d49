"""Layers and dynamics for the checks: each check makes its own, from the class that was handed in."""

from __future__ import annotations

import copy
import inspect
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from implicitcore.errors import InputError
from implicitcore.layers.base import ImplicitLayer
from implicitcore.root_solvers.base import RootSolver
from implicitcore.system import select
from implicitcore.testing.expect import NotApplicable
from implicitcore.testing.handed import kind_of, label
from implicitcore.testing.options import with_options
from implicitcore.testing.problems import Cell, inputs

Inputs = Callable[[int, torch.dtype], Any]
"""(batch, dtype) -> x of a layer, (z, x) of dynamics."""

# Options at which a gradient can be compared with differences of values. A root solver that integrates steps as loosely as it likes.
TIGHT_ROOT = {"tol": 1e-10, "max_steps": 1000}
TIGHT_WAY = {"rtol": 1e-8, "atol": 1e-10, "dt": 0.01, "max_steps": 2000}


class AnyCell(nn.Module):
    """A contraction f(z, x) by 0.4, and f(t, z, x) for dynamics that pass the time."""

    def __init__(self, seed: int = 0) -> None:
        super().__init__()
        self.cell = Cell(contraction=0.4, seed=seed)

    def forward(self, *arguments: Tensor) -> Tensor:
        """f, ``[batch, 6]``."""
        *time, z, x = arguments
        f = self.cell(z, x)
        return f * torch.cos(time[0]) if time else f


class Maker:
    """Makes the layers or dynamics of a check.

    Arguments:
        factory: a class, or a ``functools.partial`` of one.
        given: where the inputs come from; None for ``[batch, 6]``.

    Raises:
        InputError: the factory needs more than a cell.
    """

    def __init__(self, factory: Callable[..., Any], given: Inputs | None = None) -> None:
        self.factory, self.given = factory, given
        positional, keywords = _required(factory)
        self.takes_cell = bool(positional)
        missing = [*positional[1:], *keywords]
        if missing:
            name = label(factory)
            hint = ", ".join(f"{option}=..." for option in missing)
            raise InputError(f"{name} needs {', '.join(missing)} beside a cell: hand in functools.partial({name}, {hint})")

    def cell(self, seed: int = 0) -> tuple[Any, ...]:
        """The positional arguments: a cell, or none."""
        return (AnyCell(seed),) if self.takes_cell else ()

    def make(self, dtype: torch.dtype = torch.float64, seed: int = 0) -> Any:
        """A new module; the same seed makes an equal one."""
        torch.manual_seed(seed)
        # A copy: what the partial holds (a predictor) is shared by all that are made.
        return copy.deepcopy(self.factory(*self.cell(seed))).to(dtype)

    def exact(self) -> Any:
        """A layer whose solver and backward pass meet tight tolerances."""
        layer = self.make()
        if isinstance(layer, ImplicitLayer):
            options = TIGHT_ROOT if isinstance(layer.solver, RootSolver) else TIGHT_WAY
            layer.solver, layer.gradient = with_options(layer.solver, **options), with_options(layer.gradient, **options)
        return layer

    def inputs(self, batch: int = 4, dtype: torch.dtype = torch.float64) -> Any:
        """X of a layer; (z, x) of dynamics."""
        torch.manual_seed(1)
        if self.given is not None:
            return self.given(batch, dtype)
        x = inputs(batch, dtype=dtype)
        return x if kind_of(self.factory) == "layer" else (inputs(batch, seed=2, dtype=dtype), x)


def flat(z: Any) -> Tensor:
    """A pytree of tensors as one, ``[batch, n]``."""
    return torch.cat([leaf.flatten(1) if leaf.ndim > 1 else leaf[:, None] for leaf in pytree.tree_leaves(z)], 1)


def copied(tree: Any) -> Any:
    """The same values in tensors of their own."""
    return pytree.tree_map_only(Tensor, lambda leaf: leaf.detach().clone(), tree)


def learning(tree: Any) -> tuple[Any, list[Tensor]]:
    """A copy whose floating-point tensors require gradients, and these."""
    tree = copied(tree)
    leaves = [leaf.requires_grad_() for leaf in pytree.tree_leaves(tree) if isinstance(leaf, Tensor) and leaf.is_floating_point()]
    return tree, leaves


def rows(tree: Any, index: list[int], batch: int) -> Any:
    """Some of the samples."""
    return select(tree, torch.tensor(index), batch)


def spoiled(tree: Any, row: int) -> Any:
    """A copy with a NaN in one sample.

    Raises:
        NotApplicable: there is no floating-point tensor to put it into.
    """
    tree, leaves = learning(tree)
    if not leaves:
        raise NotApplicable("its input has no floating-point tensor")
    with torch.no_grad():
        leaves[-1][row] = torch.nan
    return pytree.tree_map_only(Tensor, torch.detach, tree)


def slope(f: Callable[[], Tensor], leaves: list[Tensor], step: float = 1e-5) -> tuple[float, float]:
    """The derivative of the scalar f in one direction of its leaves: by autograd, and by a central difference.

    The direction is that of the gradient with noise, so that no leaf is left out, and leaves that get no gradient stay where they are.
    """
    found = torch.autograd.grad(f(), leaves, allow_unused=True)
    pairs = [
        (leaf, g, g + g.norm() / g.numel() ** 0.5 * torch.randn_like(g)) for leaf, g in zip(leaves, found, strict=True) if g is not None
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
    return sum((g * d).sum().item() for _, g, d in pairs) / size.item(), (values[0] - values[1]) / (2 * step)


def parameters(module: nn.Module) -> list[Tensor]:
    """Those that learn."""
    return [parameter for parameter in module.parameters() if parameter.requires_grad]


def _required(factory: Callable[..., Any]) -> tuple[list[str], list[str]]:
    """The parameters without a default: those that take a position, and those that take a name."""
    found = inspect.signature(factory).parameters.values()
    required = [p for p in found if p.default is p.empty and p.kind not in (p.VAR_POSITIONAL, p.VAR_KEYWORD)]
    names = [p.name for p in required if p.kind is p.KEYWORD_ONLY]
    return [p.name for p in required if p.kind is not p.KEYWORD_ONLY], names
