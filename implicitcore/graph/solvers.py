"""Which solvers have a loop in a graph, and which loop it is."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from implicitcore.errors import ConfigError
from implicitcore.graph.integration import STEPPERS, integrate
from implicitcore.graph.loop import SOLVERS, check_history, solve
from implicitcore.graph.outputs import integrate_over
from implicitcore.graph.steady import steady_state
from implicitcore.graph.stop import Found
from implicitcore.graph.system import GraphField, GraphSystem
from implicitcore.ode_solvers.base import ODESolver
from implicitcore.root_solvers.steady_state import SteadyState

_KNOWN = (
    f"{', '.join(kind.__name__ for kind in SOLVERS)}, SteadyState, Adams or an explicit "
    "Runge-Kutta method"
)


def follows_field(solver: Any) -> bool:
    """Whether it integrates the velocity, and does not iterate the map."""
    return isinstance(solver, SteadyState | ODESolver)


def _innermost(solver: Any) -> tuple[str, Any]:
    """What makes the steps, and the option that it is."""
    if isinstance(solver, SteadyState):
        return "solver.ode_solver", solver.ode_solver
    return "solver", solver


def check_solver(solver: Any) -> None:
    """Refuse a solver without a loop in a graph.

    Raises:
        ConfigError: says which have one.
    """
    where, inner = _innermost(solver)
    steppers = tuple(STEPPERS)
    known = steppers if inner is not solver else (*SOLVERS, *steppers)
    if not isinstance(inner, known):
        raise ConfigError([f"{where}: {type(inner).__name__} has no loop in a graph; use {_KNOWN}"])
    check_history(inner)


def run(
    solver: Any,
    system: GraphSystem | GraphField,
    z0: Tensor,
    horizon: float,
    due: Tensor | None = None,
) -> Found:
    """What the solver finds from z0, ``[batch, n]``.

    An ODE solver, at the horizon, or at the output times ``due`` ``[T, batch]``.
    """
    if isinstance(system, GraphSystem):
        return solve(solver, system, z0)
    if isinstance(solver, SteadyState):
        return steady_state(solver, system, z0)
    if due is not None:
        return integrate_over(solver, system, z0, due)
    return integrate(solver, system, z0, horizon)
