"""What a solver returned, which may be somebody's own code: its kind and its shapes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor

from implicitcore.errors import InputError, show
from implicitcore.solution import Solution, SolveResult, Trajectory
from implicitcore.tensors.like import described


def check_solution(solver: object, found: Any, z0: Tensor) -> None:
    """Require the solution of a root solver, packed.

    Raises:
        InputError: it is something else, or has other shapes than the state.
    """
    what = _check_kind(solver, found, Solution)
    _check_shape(what, "z", found.z, z0.shape)
    _check_shape(what, "residual", found.residual, (len(z0),))
    _check_samples(what, found, z0)


def check_trajectory(solver: object, found: Any, z0: Tensor, times: Tensor) -> None:
    """Require the trajectory of an ODE solver over some output times, packed.

    Raises:
        InputError: it is something else, or has other shapes than the state.
    """
    what = _check_kind(solver, found, Trajectory)
    _check_shape(what, "z", found.z, (len(times), *z0.shape))
    _check_samples(what, found, z0)


def _check_samples(what: str, found: SolveResult, z0: Tensor) -> None:
    _check_shape(what, "status", found.status, (len(z0),))
    _check_shape(what, "steps", found.steps, (len(z0),))
    if found.z.dtype is not z0.dtype or found.z.device != z0.device:
        raise InputError(f"{what}: z is {described(found.z)}, expected that of {described(z0)}")


def _check_kind(solver: object, found: Any, kind: type) -> str:
    what = f"{type(solver).__name__}.solve"
    if not isinstance(found, kind):
        raise InputError(f"{what} returned {show(found)}, expected a {kind.__name__}")
    return what


def _check_shape(what: str, name: str, value: Any, shape: Sequence[int]) -> None:
    if not isinstance(value, Tensor) or tuple(value.shape) != tuple(shape):
        raise InputError(f"{what}: {name} is {described(value)}, expected shape {[*shape]}")
