"""The modules of the checks, each of which makes instances of its own."""

from __future__ import annotations

import copy
import inspect
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from implicitcore.errors import InputError
from implicitcore.layers.base import ImplicitLayer
from implicitcore.layers.shapes import map_shape
from implicitcore.options.kinds import PIECE_KINDS
from implicitcore.options.options import options_of
from implicitcore.root_solvers.base import RootSolver
from implicitcore.testing.options import limited, with_options
from implicitcore.testing.problems import Cell, inputs
from implicitcore.testing.subjects import kind_of, label

Inputs = Callable[[int, torch.dtype], Any]
"""(batch, dtype) -> x of a layer or a start, (z, x) of dynamics or a cell."""

# Options at which a gradient can be compared with differences of values. A root solver that
# integrates keeps its own step tolerances.
TIGHT_ROOT = {"tol": 1e-10, **limited(1000)}
TIGHT_TRAJECTORY = {"rtol": 1e-8, "atol": 1e-10, "dt": 0.01, **limited(2000)}


class AnyCell(nn.Module):
    """A contraction f(z, x) by 0.4.

    And f(t, z, x), for dynamics that pass the time, and f(x), for a start that predicts.
    """

    def __init__(self, seed: int = 0) -> None:
        super().__init__()
        self.cell = Cell(contraction=0.4, seed=seed)

    def forward(self, *arguments: Tensor) -> Tensor:
        """f, ``[batch, 6]``."""
        x = arguments[-1]
        f = self.cell(x if len(arguments) == 1 else arguments[-2], x)
        return f * torch.cos(arguments[0]) if len(arguments) > 2 else f


class Maker:
    """Makes the modules of a check.

    Arguments:
        part: a class, or a ``functools.partial`` of one; a start or a cell, which is copied.
        given: makes the inputs; None for ``[batch, 6]``, or what a start or cell takes.

    Attributes:
        kind: of the part.
        factory: makes one, of a cell where it takes one.

    Raises:
        InputError: the factory needs more than a cell.
    """

    def __init__(self, part: Any, given: Inputs | None = None) -> None:
        self.kind, self.given = kind_of(part), given
        self.factory: Callable[..., Any] = part
        self._module = part if isinstance(part, nn.Module) else None
        positional, keywords = ([], []) if self._module is not None else _required(part)
        self.takes_cell = bool(positional)
        missing = [*positional[1:], *keywords]
        if missing:
            name = label(part)
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
        if self._module is not None:
            module = copy.deepcopy(self._module) if seed == 0 else _another(self._module)
        else:
            # A copy: all instances of a partial share its arguments (a predictor).
            module = copy.deepcopy(self.factory(*self.cell(seed)))
        # A start or cell drops nothing at random outside a solve.
        return (module.eval() if self.kind in PIECE_KINDS else module).to(dtype)

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
        """The x of a layer or a start; (z, x) of dynamics or a cell."""
        shape = self._example() if self.given is None else None
        torch.manual_seed(1)
        if self.given is not None:
            return self.given(batch, dtype)
        if shape is not None:
            return map_shape(lambda sizes: torch.randn(batch, *sizes, dtype=dtype), shape)
        x = inputs(batch, dtype=dtype)
        return x if self.kind == "layer" else (inputs(batch, seed=2, dtype=dtype), x)

    def _example(self) -> Any:
        """The shapes of one sample of the inputs of a start or cell."""
        if self.kind not in PIECE_KINDS:
            return None
        module = self.make()
        return module.example_shape() if self.kind == "start" else module.example_shapes()


def _another(module: nn.Module) -> nn.Module:
    """A new module with the options of this one, and weights of its own."""
    cls = type(module)
    return cls(**{name: copy.deepcopy(getattr(module, name)) for name in options_of(cls)})


def _required(factory: Callable[..., Any]) -> tuple[list[str], list[str]]:
    """The parameters without a default: the positional ones, and the keyword-only ones."""
    found = inspect.signature(factory).parameters.values()
    required = [
        p for p in found if p.default is p.empty and p.kind not in (p.VAR_POSITIONAL, p.VAR_KEYWORD)
    ]
    names = [p.name for p in required if p.kind is p.KEYWORD_ONLY]
    return [p.name for p in required if p.kind is not p.KEYWORD_ONLY], names
