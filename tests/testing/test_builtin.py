"""Every part of the core keeps the contract of its kind."""

from __future__ import annotations

import implicitcore as ic
from implicitcore.registry.registry import REGISTRY
from implicitcore.testing import parametrize_with_checks

CUT = "the series is cut: an approximation"
EXPECTED = {
    ic.Phantom(): {
        "gives_the_gradient_of_the_parameters": CUT,
        "gives_the_gradient_of_the_input": CUT,
    },
    ic.Shine(): {
        "gives_the_gradient_of_the_parameters": "the inverse is the forward solve's estimate",
        "gives_the_gradient_of_the_input": "the inverse is the forward solve's estimate",
    },
}
# The same strategies where they are exact, and other options whose code is another.
MORE = (
    ic.Phantom(steps=40),
    ic.Neumann(steps=40),
    ic.Shine(ic.GMRES(tol=1e-8)),
    ic.Implicit(ic.Anderson(tol=1e-8)),
    ic.Checkpointed(4),
    ic.Anderson(tol=1e-8, compact=True),
    ic.Broyden(tol=1e-8, variant="bad"),
    ic.Newton(tol=1e-8, dense_below=0),
    ic.SteadyState(ode_solver=ic.Tsit5(), measure="entries"),
    ic.ESDIRK(dense_below=0),
)


def builtin(kind):
    return [part for part in REGISTRY.parts(kind) if part.provider == "implicitcore"]


def expected(part):
    return EXPECTED.get(part, {})


OBJECTS = [
    ic.create(kind, part.name)
    for kind in ("root_solver", "ode_solver", "gradient", "backend")
    for part in builtin(kind)
]


@parametrize_with_checks([*OBJECTS, *MORE], expected_failed_checks=expected)
def test_objects(part, check):
    check(part)


@parametrize_with_checks([part.load() for part in builtin("dynamics")])
def test_dynamics(part, check):
    check(part)
