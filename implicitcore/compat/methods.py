"""The methods and options of torchdiffeq as ODE solvers of ours."""

from __future__ import annotations

import sys
import warnings
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from implicitcore.errors import InputError, UnknownPartError
from implicitcore.ode_solvers.base import ODESolver
from implicitcore.options.options import options_of
from implicitcore.registry.registry import REGISTRY
from implicitcore.tensors.norms import real_dtype

DEFAULT = "dopri5"

# Where our name is another: the method of the same family.
_OURS = {
    "heun2": "heun",
    "dopri8": "dop853",
    "explicit_adams": "adams",
    "implicit_adams": "adams",
    "fixed_adams": "adams",
}
_OPTIONS = {"step_size": "dt", "max_num_steps": "max_steps"}
_TINY = sys.float_info.min


def solver_for(  # noqa: PLR0913 - torchdiffeq's arguments
    method: str | ODESolver | None,
    options: Mapping[str, Any] | None,
    rtol: Any,
    atol: Any,
    y0: Any,
    times: Tensor,
) -> ODESolver:
    """The ODE solver of ours that a call of torchdiffeq asks for.

    Arguments:
        method: a method of torchdiffeq, the name of any registered ODE solver, or one of these
            themselves.
        options: torchdiffeq's; those that the solver does not have are named in a warning.
        rtol: a number, or tensors of them: the smallest counts, but for one below the precision of
            y0, which rounding alone exceeds.
        atol: a number, or tensors of them: the smallest counts.
        y0: the state.
        times: where fixed steps have no size, they go from one of these to the next.

    Raises:
        InputError: there is no such method; the message lists those that there are.
    """
    if isinstance(method, ODESolver):
        return method
    cls = _find(method or DEFAULT)
    known = options_of(cls)
    asked = {_OPTIONS.get(name, name): value for name, value in (options or {}).items()}
    if asked.get("norm") in (
        None,
        "seminorm",
    ):  # parameters never steer the steps of an adjoint here
        asked.pop("norm", None)
    unused = {name: value for name, value in asked.items() if name not in known}
    if unused:
        warnings.warn(f"{cls.__name__}: Unexpected arguments {unused}", stacklevel=4)
    given = {
        "rtol": max(_smallest(rtol), _precision(y0)),
        "atol": _smallest(atol),
        "max_steps": 2**31 - 1,
        "dt": _longest(times),
    }
    return cls(
        **{
            name: _plain(value)
            for name, value in (given | asked).items()
            if name in known and value is not None
        }
    )


def _find(method: str) -> type[ODESolver]:
    name = _OURS.get(method, method)
    try:
        return REGISTRY.find("ode_solver", name).load()
    except UnknownPartError as error:
        ours = sorted({part.name for part in REGISTRY.parts("ode_solver")})
        theirs = sorted(theirs for theirs, name in _OURS.items() if name in ours)
        raise InputError(
            f"method: there is no {method!r}; there are {', '.join(theirs + ours)}"
        ) from error


def _smallest(tolerance: Any) -> float:
    """One tolerance that meets all."""
    leaves = [
        leaf.min().item() if isinstance(leaf, Tensor) else float(leaf)
        for leaf in pytree.tree_leaves(tolerance)
    ]
    return max(min(leaves), _TINY)


def _precision(y0: Any) -> float:
    return torch.finfo(real_dtype(pytree.tree_leaves(y0)[0])).eps


def _longest(times: Tensor) -> float | None:
    return float(times.detach().diff().abs().max()) if times.numel() > 1 else None


def _plain(value: Any) -> Any:
    return value.item() if isinstance(value, Tensor) else value
