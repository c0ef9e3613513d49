"""Whole solves and training gradients, in Triton's interpreter: those of the torch backend."""

from __future__ import annotations

import pytest

import implicitcore as ic
from implicitcore.testing.solve_checks import SolveChecks
from implicitcore_triton import TritonBackend, backend

SOLVES = SolveChecks(TritonBackend(interpret=True))


@pytest.fixture(autouse=True)
def _kernels_ran(monkeypatch):
    names, launch = set(), backend._launch
    monkeypatch.setattr(
        backend,
        "_launch",
        lambda name, *rest, **sizes: (names.add(name), launch(name, *rest, **sizes)),
    )
    yield
    assert names


@pytest.mark.parametrize(
    "solver",
    [ic.Anderson(tol=1e-11), ic.Broyden(tol=1e-11), ic.Newton(tol=1e-11)],
    ids=lambda s: type(s).__name__,
)
def test_an_equilibrium_and_its_gradient(solver):
    SOLVES.equilibrium(solver)


@pytest.mark.parametrize(
    "gradient", [ic.Adjoint(), ic.Checkpointed()], ids=lambda g: type(g).__name__
)
def test_a_trajectory_and_its_gradient(gradient):
    SOLVES.trajectory(ic.Tsit5(rtol=1e-6, atol=1e-8), gradient)


def test_an_equilibrium_in_bfloat16():
    SOLVES.bfloat16(ic.Anderson(tol=1e-2))


def test_second_derivatives():
    SOLVES.second_derivatives()
