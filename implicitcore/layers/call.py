"""What a layer is called and made with beside its parts."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import is_dataclass, replace
from typing import Any, TypedDict, TypeVar

from torch import Tensor

from implicitcore.backends.base import Backend
from implicitcore.errors import ConfigError, InputError, show
from implicitcore.gradients.base import GradientStrategy, Solve
from implicitcore.gradients.event_times import check_between
from implicitcore.ode_solvers.saved import Save
from implicitcore.ode_solvers.times import Times, as_times, span
from implicitcore.options.types import OnFailure, Spec
from implicitcore.root_solvers.base import RootSolver
from implicitcore.solution import FinalState, Solution, Trajectory

_Solver = TypeVar("_Solver")
Result = Solution | FinalState | Trajectory


class CallOptions(TypedDict, total=False):
    """The options whose default is the same in every layer: ``**options: Unpack[CallOptions]``."""

    backend: Backend | Spec | None
    on_failure: OnFailure
    coupled: bool


class LayerOptions(CallOptions, total=False):
    """The options that every layer has: for ``**options: Unpack[LayerOptions]``."""

    gradient: GradientStrategy | Spec | None


def solver_of_call(solver: _Solver, options: Mapping[str, Any]) -> _Solver:
    """The solver with other options, read as it reads its own.

    Raises:
        ConfigError: an option is unknown, of another type or out of bounds; or the solver is no
            dataclass, and cannot be made again from its options.
    """
    if not options:
        return solver
    if not is_dataclass(solver):
        problem = f"options of one call need a solver that is a dataclass, received {show(solver)}"
        raise ConfigError([f"{', '.join(options)}: {problem}"])
    return replace(solver, **options)  # pyright: ignore[reportArgumentType, reportReturnType] - an object, not a class


def times_of(solver: Any, z0: Any, times: Times, horizon: float) -> Tensor | None:
    """The output times of a call; None for a root solver, which has none.

    Raises:
        InputError: it was given some.
    """
    if not isinstance(solver, RootSolver):
        return span(horizon, z0) if times is None else as_times(times)
    if times is not None:
        raise InputError("times: a root solver finds an equilibrium, which has none")
    return None


def saving(
    solve: Solve, save: Callable[..., Any], times: Times, gradient: GradientStrategy
) -> Solve:
    """The solve of a call, with what it is to save at the output times.

    Raises:
        InputError: there are none.
        GradientError: the strategy gives no gradient to it.
    """
    if times is None:
        raise InputError("save: it is what is kept at output times, and none were given: times=...")
    check_between(gradient, save=True)
    return replace(solve, save=Save(save))


def refuse_options(options: Mapping[str, Any]) -> None:
    """Require that a solve in a graph is called with x and z0 alone.

    Raises:
        ConfigError: there are options of this call.
    """
    if options.get("save") is not None:
        raise ConfigError(
            ["save: a solve in a graph gives the states: take the function of them, or the layer"]
        )
    if options:
        problem = "a solve in a graph has its options in the graph; set them on the layer before"
        raise ConfigError([f"{name}: {problem}" for name in options])
