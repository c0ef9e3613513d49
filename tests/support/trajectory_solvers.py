"""Every registered ODE solver of any field, as the tests of gradients use it; and one that shows no
steps."""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Any

from torch import Tensor

import implicitcore as ic
from implicitcore.extend import EqualSteps, Options, StepwiseODESolver
from implicitcore.registry.registry import REGISTRY
from implicitcore.solution import Trajectory
from implicitcore.system.system import System

PARTS = [part for part in REGISTRY.parts("ode_solver") if part.provider == "implicitcore"]
NAMES = sorted(part.name for part in PARTS if not part.load().separable)
SEPARABLE = sorted(part.name for part in PARTS if part.load().separable)
"""Those of fields of positions and momenta alone."""

ADAPTIVE = [
    ic.Bosh3,
    ic.Fehlberg45,
    ic.Dopri5,
    ic.Tsit5,
    ic.DOP853,
    ic.Adams,
    ic.ESDIRK,
    ic.Kvaerno5,
    ic.RadauIIA5,
]
"""Those that choose the size of their steps, of order 3 and more."""


FIXED = [
    part.load()
    for part in PARTS
    if issubclass(part.load(), EqualSteps) and not part.load().separable
]
"""Those of equal steps."""


def make(name: str, **options: Any) -> ic.ODESolver:
    """The solver of that name, with those of the options that it has."""
    known = {field.name for field in fields(type(ic.create("ode_solver", name)))}
    return ic.create(
        "ode_solver",
        {"name": name, **{key: value for key, value in options.items() if key in known}},
    )


def stepwise() -> list[ic.ODESolver]:
    """All that show their steps, at a size or tolerance at which they take tens of steps."""
    solvers = [make(name, dt=0.04, rtol=1e-4, atol=1e-5) for name in NAMES]
    return [solver for solver in solvers if isinstance(solver, StepwiseODESolver)]


@dataclass(frozen=True, kw_only=True)
class BlackBox(Options, ic.ODESolver):
    """Somebody's solver that shows no steps."""

    def solve(self, system: System, z0: Tensor, times: Tensor, stop=None) -> Trajectory:
        return ic.RK4(dt=0.01).solve(_Opaque(system), z0, times)


class _Opaque(System):
    def __init__(self, system: System) -> None:
        super().__init__(system.problem, system.context)
        self.velocity = system.velocity
