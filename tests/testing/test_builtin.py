"""Every part of the core keeps the contract of its kind."""

from __future__ import annotations

from functools import partial

import torch

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
    ic.ESDIRK(root_solver=ic.Newton(tol=0.01)),
)


def builtin(kind):
    return [part for part in REGISTRY.parts(kind) if part.provider == "implicitcore"]


def expected(part):
    return EXPECTED.get(part, {})


LOOSE = {"adaptive_heun": {"rtol": 1e-3, "atol": 1e-5}}
"""Of order 2, which takes hundreds of steps at the tolerances of the others."""
OBJECTS = [
    ic.create(kind, {"name": part.name, **LOOSE.get(part.name, {})})
    for kind in ("root_solver", "ode_solver", "gradient", "backend")
    for part in builtin(kind)
]


@parametrize_with_checks([*OBJECTS, *MORE], expected_failed_checks=expected)
def test_objects(part, check):
    check(part)


@parametrize_with_checks([part.load() for part in builtin("dynamics")])
def test_dynamics(part, check):
    check(part)


GIVEN = {
    "augmented": [{"extra": 2}],
    "learned": [
        {"channels": 6},
        {"channels": 4, "init": "normal"},
        {"channels": (2, 3), "shape": ((2, 4, 4), (3, 2))},
    ],
    "one_step": [{}, {"origin": ic.LearnedInitialGuess(6, (6,))}],
    "predictor": [{}, {"predictor": torch.nn.Linear(6, 4)}],
    "pyramid": [{"channels": (2, 4, 1)}],
    "warm": [{"samples": 5}, {"samples": 5, "start": ic.LearnedInitialGuess(6)}],
    "zeros": [{}, {"shape": {"a": (2, 3), "b": (4,)}}],
}
STARTS = [
    partial(part.load(), **options)
    for part in builtin("start")
    for options in GIVEN.get(part.name, [{}])
]


@parametrize_with_checks(STARTS)
def test_starts(part, check):
    check(part)


def relaxed(z: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
    return 0.5 * (z + x)


OBJECT_STARTS = [
    ic.Identity(),
    ic.LearnedInitialGuess(6),
    ic.Predictor(torch.nn.Linear(6, 4)),
    ic.OneStep(relaxed),
]


@parametrize_with_checks(OBJECT_STARTS)
def test_starts_given_as_objects(part, check):
    check(part)
