"""Every registered solver, with the tolerance and the number of steps of a sweep."""

from __future__ import annotations

import random
from functools import cache
from typing import Any

import implicitcore as ic
from implicitcore.options.option import Option
from implicitcore.options.options import options_of
from implicitcore.registry.part import Part
from implicitcore.registry.registry import REGISTRY


@cache
def parts(kind: str) -> dict[str, Part]:
    """All parts of a kind that are registered here, the plugins' included."""
    return {part.name: part for part in REGISTRY.parts(kind)}


def root_solver(name: str, tol: float, atol: float, choose: random.Random) -> ic.RootSolver:
    """The solver of that name; what else it can be told is drawn."""
    return ic.create("root_solver", _spec(name, tol, atol, choose))


def _spec(name: str, tol: float, atol: float, choose: random.Random) -> dict[str, Any]:
    known = options_of(parts("root_solver")[name].load())
    steps, compact = choose.choice((10, 40, 100)), choose.random() < 0.5
    wanted = {"tol": tol, "atol": atol, "max_steps": steps, "compact": compact}
    given = {option: value for option, value in wanted.items() if option in known}
    if "tol" not in known:  # it is that of the root solvers inside
        for option in known.values():
            given |= _inside(option, tol, atol, choose)
    return {"name": name, **given}


def _inside(option: Option, tol: float, atol: float, choose: random.Random) -> dict[str, Any]:
    if option.slot is None or "root_solver" not in option.slot.kinds:
        return {}
    if option.slot.many:
        names = choose.sample(("picard", "anderson", "newton", "steady_state"), k=2)
        return {option.name: [_spec(name, tol, atol, choose) for name in names]}
    name = choose.choice(("newton", "anderson"))
    return {option.name: _spec(name, tol, atol, choose)}


def ode_solver(name: str, rtol: float, atol: float) -> ic.ODESolver:
    """The solver of that name, at these tolerances where it has any."""
    known = options_of(parts("ode_solver")[name].load())
    wanted = {"rtol": rtol, "atol": atol, "max_steps": 300}
    given = {option: value for option, value in wanted.items() if option in known}
    return ic.create("ode_solver", {"name": name, **given})
