"""Layers and dynamics for the checks, each of which makes instances of its own from a class."""

from __future__ import annotations

import copy
import inspect
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from implicitcore.errors import InputError
from implicitcore.layers.base import ImplicitLayer
from implicitcore.root_solvers.base import RootSolver
from implicitcore.testing.options import limited, with_options
from implicitcore.testing.problems import Cell, inputs
from implicitcore.testing.subjects import kind_of, label

Inputs = Callable[[int, torch.dtype], Any]
"""(batch, dtype) -> x of a layer, (z, x) of dynamics."""

# Options at which a gradient can be compared with differences of values. A root solver that
# integrates keeps its own step tolerances.
TIGHT_ROOT = {"tol": 1e-10, **limited(1000)}
TIGHT_TRAJECTORY = {"rtol": 1e-8, "atol": 1e-10, "dt": 0.01, **limited(2000)}


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
        given: makes the inputs; None for ``[batch, 6]``.

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
            raise InputError(
                f"{name} needs {', '.join(missing)} beside a cell: pass "
                f"functools.partial({name}, {hint})"
            )

    def cell(self, seed: int = 0) -> tuple[Any, ...]:
        """The positional arguments: a cell, or none."""
        return (AnyCell(seed),) if self.takes_cell else ()

    def make(self, dtype: torch.dtype = torch.float64, seed: int = 0) -> Any:
        """A new module; the same seed makes an equal one."""
        torch.manual_seed(seed)
        # A copy: all instances of a partial share its arguments (a predictor).
        return copy.deepcopy(self.factory(*self.cell(seed))).to(dtype)

    def exact(self) -> Any:
        """A layer whose solver and backward pass meet tight tolerances."""
        layer = self.make()
        if isinstance(layer, ImplicitLayer):
            options = TIGHT_ROOT if isinstance(layer.solver, RootSolver) else TIGHT_TRAJECTORY
            layer.solver, layer.gradient = (
                with_options(layer.solver, **options),
                with_options(layer.gradient, **options),
            )
        return layer

    def inputs(self, batch: int = 4, dtype: torch.dtype = torch.float64) -> Any:
        """The x of a layer; (z, x) of dynamics."""
        torch.manual_seed(1)
        if self.given is not None:
            return self.given(batch, dtype)
        x = inputs(batch, dtype=dtype)
        return x if kind_of(self.factory) == "layer" else (inputs(batch, seed=2, dtype=dtype), x)


def _required(factory: Callable[..., Any]) -> tuple[list[str], list[str]]:
    """The parameters without a default: the positional ones, and the keyword-only ones."""
    found = inspect.signature(factory).parameters.values()
    required = [
        p for p in found if p.default is p.empty and p.kind not in (p.VAR_POSITIONAL, p.VAR_KEYWORD)
    ]
    names = [p.name for p in required if p.kind is p.KEYWORD_ONLY]
    return [p.name for p in required if p.kind is not p.KEYWORD_ONLY], names
