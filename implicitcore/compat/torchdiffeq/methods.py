"""The methods and options of torchdiffeq as ODE solvers of ours."""

from __future__ import annotations

import math
import sys
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from implicitcore.compat.torchdiffeq.adams import GridAdams
from implicitcore.compat.torchdiffeq.collocation import TABLEAUS, GridCollocation
from implicitcore.compat.torchdiffeq.steps import is_adaptive
from implicitcore.errors import InputError, UnknownPartError, did_you_mean
from implicitcore.ode_solvers.base import ODESolver
from implicitcore.ode_solvers.implicit_runge_kutta import (
    FixedImplicitRungeKutta,
    ImplicitRungeKutta,
)
from implicitcore.ode_solvers.stepwise import StepwiseODESolver
from implicitcore.options.options import options_of
from implicitcore.registry.registry import REGISTRY
from implicitcore.tensors.norms import real_dtype

DEFAULT = "dopri5"
SCIPY = "scipy_solver"

# Where our name is another.
OURS = {
    "heun2": "heun",
    "rk4": "rk38",
    "fehlberg2": "fehlberg21",
    "dopri8": "dop853",
}
ADAMS = {"explicit_adams": False, "implicit_adams": True, "fixed_adams": True}
# torchdiffeq's estimate of the error, where it is another multiple of that of the paper.
SHARES = {"dopri5": 2 / 3}
ADAPTIVE_OPTIONS = frozenset(
    "norm min_step max_step first_step step_t jump_t safety ifactor dfactor".split()
    + ["max_num_steps", "dtype"]
)
FIXED_OPTIONS = frozenset("step_size grid_constructor interp perturb".split())
CALLBACKS = ("step", "accept", "reject")
_IGNORED = {"norm", "grid_points", "eps"}  # as torchdiffeq does, where a method has no use for them
_STAGES = 1e-10  # equal steps have no other error than that of the method, as in torchdiffeq
_TINY = sys.float_info.min


@dataclass(frozen=True, eq=False)
class Method:
    """What a call of torchdiffeq asks for.

    Attributes:
        name: torchdiffeq's, or ours.
        solver: of ours.
        options: those of the integration, and not of the solver.
    """

    name: str
    solver: ODESolver
    options: dict[str, Any]

    @property
    def callbacks(self) -> tuple[str, ...]:
        """Those that it calls."""
        if not isinstance(self.solver, StepwiseODESolver):
            return ()
        return CALLBACKS if is_adaptive(self.solver) else CALLBACKS[:1]


def method_for(
    method: str | ODESolver | None,
    options: Mapping[str, Any] | None,
    rtol: Any,
    atol: Any,
    y0: Any,
) -> Method:
    """The ODE solver that a call of torchdiffeq asks for, and how it is to be used.

    Arguments:
        method: a method of torchdiffeq, the name of any registered ODE solver, or one of these
            themselves.
        options: torchdiffeq's, and those of the solver; others are named in a warning.
        rtol: a number, or tensors of them: the smallest counts for the solver itself.
        atol: alike.
        y0: the state.

    Raises:
        InputError: there is no such method; the message lists those that there are.
    """
    asked = dict(options or {})
    if isinstance(method, ODESolver):
        cls, name, given = type(method), type(method).__name__, {}
    else:
        name = method or DEFAULT
        cls, given = _find(name, asked)
        given |= {"rtol": max(smallest(rtol), precision(y0)), "atol": smallest(atol)}
        if issubclass(cls, ImplicitRungeKutta):  # a stage is solved to a hundredth of them
            most = _STAGES if issubclass(cls, FixedImplicitRungeKutta) else math.inf
            given |= {
                key: max(min(given[key], most), 100 * precision(y0)) for key in ("rtol", "atol")
            }
    of_loop = _options_of_loop(cls)
    known = options_of(cls)
    if not of_loop and "max_num_steps" in asked:
        asked["max_steps"] = asked.pop("max_num_steps")
    given["max_steps"] = 2**31 - 1
    loop = {name: value for name, value in asked.items() if name in of_loop}
    own = {name: value for name, value in asked.items() if name in known and name not in of_loop}
    unused = {name: asked[name] for name in asked.keys() - loop.keys() - own.keys() - _IGNORED}
    if unused:
        warnings.warn(f"{name}: Unexpected arguments {unused}", stacklevel=5)
    if isinstance(method, ODESolver):
        return Method(name, method, loop)
    values = {
        name: _plain(value)
        for name, value in (given | own).items()
        if name in known and value is not None and value != math.inf
    }
    return Method(name, cls(**values), loop)


def _options_of_loop(cls: type[ODESolver]) -> frozenset[str]:
    """Those that the steps take, and not the solver."""
    if not issubclass(cls, StepwiseODESolver):
        return frozenset()
    return FIXED_OPTIONS if "dt" in options_of(cls) else ADAPTIVE_OPTIONS


def _find(method: str, options: dict[str, Any]) -> tuple[type[ODESolver], dict[str, Any]]:
    """The class of a method, and the options that its name stands for."""
    if method in ADAMS:
        return GridAdams, {"implicit": ADAMS[method]}
    if method in TABLEAUS:
        return GridCollocation, {"stages": method}
    name = OURS.get(method, method)
    if method == SCIPY:
        name = f"scipy-{options.pop('solver', 'LSODA').lower()}"
    try:
        return REGISTRY.find("ode_solver", name).load(), {}
    except UnknownPartError as error:
        if method == SCIPY:
            raise InputError(
                f"method: {SCIPY} is the distribution implicitcore-scipy, which has no {name!r} or "
                "is not installed"
            ) from error
        ours = sorted({part.name for part in REGISTRY.parts("ode_solver")})
        names = sorted({*OURS, *ADAMS, *TABLEAUS, SCIPY, *ours})
        raise InputError(
            f"method: there is no {method!r}{did_you_mean(method, names)}; there are "
            f"{', '.join(names)}"
        ) from error


def smallest(tolerance: Any) -> float:
    """One tolerance that meets all."""
    leaves = [
        leaf.min().item() if isinstance(leaf, Tensor) else float(leaf)
        for leaf in pytree.tree_leaves(tolerance)
    ]
    return max(min(leaves), _TINY)


def precision(y0: Any) -> float:
    """The unit of rounding of a state, below which no error of a step can be."""
    return torch.finfo(real_dtype(pytree.tree_leaves(y0)[0])).eps


def _plain(value: Any) -> Any:
    return value.item() if isinstance(value, Tensor) else value
