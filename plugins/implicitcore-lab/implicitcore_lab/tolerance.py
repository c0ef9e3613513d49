"""Layers at equal tolerances: a comparison of cost at different ones compares nothing."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

SOLVERS = ("root_solver", "ode_solver")
OPTIONS = ("tol", "rtol")


def at_tolerance(config: Mapping[str, Any], tolerance: float) -> dict[str, Any]:
    """Set the tolerance of a layer's solver, and of the solver that its gradient was given.

    That of an equilibrium bounds its residual, that of a trajectory the error of a step. What a
    root solver steps with on its way to an equilibrium stays as it is: it moves the cost, not the
    accuracy. A gradient that was given no solver follows the layer's by itself, a tenth below it.

    Arguments:
        config: of a layer, with every option, as ``layer.config`` has it.
        tolerance: relative.

    Returns:
        The configuration. A solver without a tolerance, of fixed steps, is left as it is.
    """
    changed = {slot: _set(config[slot], tolerance) for slot in SOLVERS if slot in config}
    gradient = config["gradient"]
    if isinstance(gradient, Mapping) and "solver" in gradient:
        changed["gradient"] = {**gradient, "solver": _set(gradient["solver"], tolerance)}
    return {**config, **changed}


def tolerance_of(config: Mapping[str, Any]) -> float | None:
    """The tolerance of a layer's solver; None where it has none."""
    for slot in SOLVERS:
        for option in _options(config.get(slot)):
            return config[slot][option]
    return None


def _set(solver: Any, tolerance: float) -> Any:
    options = _options(solver)
    return {**solver, **dict.fromkeys(options, tolerance)} if options else solver


def _options(solver: Any) -> list[str]:
    """Which options of a solver, as its configuration names them, are its tolerance."""
    return [name for name in OPTIONS if name in solver] if isinstance(solver, Mapping) else []
