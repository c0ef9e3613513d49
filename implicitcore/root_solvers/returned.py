"""What a solver returned, which may be somebody's own code: its kind and its shapes."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from implicitcore.errors import InputError, show
from implicitcore.solution import Solution, SolveResult, Trajectory
from implicitcore.tensors.like import described
from implicitcore.tensors.packing import Packing


def check_solution(solver: object, found: Any, packing: Packing) -> None:
    """Require the solution of a root solver, packed.

    Raises:
        InputError: it is something else, or has other shapes than the state.
    """
    what = _check_kind(solver, found, Solution)
    _check_shape(what, "z", found.z, (packing.batch, packing.width))
    _check_shape(what, "residual", found.residual, (packing.batch,))
    _check_samples(what, found, packing)


def check_trajectory(solver: object, found: Any, packing: Packing, times: Tensor) -> None:
    """Require the trajectory of an ODE solver over some output times, packed.

    Raises:
        InputError: it is something else, or has other shapes than the state.
    """
    what = _check_kind(solver, found, Trajectory)
    _check_shape(what, "z", found.z, (len(times), packing.batch, packing.width))
    _check_samples(what, found, packing)


def _check_samples(what: str, found: SolveResult, packing: Packing) -> None:
    _check_shape(what, "status", found.status, (packing.batch,))
    _check_shape(what, "steps", found.steps, (packing.batch,))
    if found.z.dtype is not packing.dtype:
        raise InputError(f"{what}: z is {described(found.z)}, expected {packing.dtype}")


def _check_kind(solver: object, found: Any, kind: type) -> str:
    what = f"{type(solver).__name__}.solve"
    if not isinstance(found, kind):
        raise InputError(f"{what} returned {show(found)}, expected a {kind.__name__}")
    return what


def _check_shape(what: str, name: str, value: Any, shape: tuple[int, ...]) -> None:
    if not isinstance(value, Tensor) or tuple(value.shape) != shape:
        raise InputError(f"{what}: {name} is {described(value)}, expected shape {list(shape)}")
