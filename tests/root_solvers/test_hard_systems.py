"""Classical hard systems: solved from starts that defeat Newton's method, and failures said to be
failures."""

from __future__ import annotations

import pytest
import torch

import implicitcore as ic
from implicitcore.testing.hard_systems import NO_ROOT, SYSTEMS

TOL = 1e-10
NEWTON = ic.Newton(tol=TOL, max_steps=100)
HOMOTOPY = ic.Homotopy(corrector=NEWTON)
SOLVERS = {"homotopy": HOMOTOPY, "chain": ic.Chain((NEWTON, HOMOTOPY))}
# Where the Jacobian at the root is singular, the distance is the square root of the residual.
SINGULAR = {"Powell, singular (13)", "Powell, singular on a line"}


def solve(system, solver):
    with torch.no_grad():
        return ic.find_root(system.g, system.z0(), solver=solver, on_failure="ignore")


def residual(system, z):
    return system.g(z).norm(dim=1)


@pytest.mark.parametrize("solver", SOLVERS)
@pytest.mark.parametrize("system", SYSTEMS, ids=str)
def test_it_is_solved(system, solver):
    solution = solve(system, SOLVERS[solver]).raise_if_failed()
    limit = TOL * residual(system, system.z0()).clamp(min=1)
    assert bool((residual(system, solution.z) <= limit * 1.01).all())
    assert system.distance(solution.z) < (1e-4 if system.name in SINGULAR else 1e-7)


@pytest.mark.parametrize("system", [system for system in SYSTEMS if system.defeats], ids=str)
def test_newton_fails_where_the_table_says_so(system):
    undamped = ic.Newton(tol=TOL, max_steps=100, backtracks=0)
    solver = undamped if system.defeats == "newton" else NEWTON
    solution = solve(system, solver)
    assert not solution.converged.item()
    assert solution.z.isfinite().all()
    assert torch.allclose(residual(system, solution.z), solution.residual)


@pytest.mark.parametrize("system", NO_ROOT, ids=str)
@pytest.mark.parametrize(
    "solver",
    [
        *SOLVERS.values(),
        NEWTON,
        ic.PseudoTransient(tol=TOL),
        ic.BiCGSTAB(tol=TOL),
        ic.Broyden(tol=TOL),
        ic.Anderson(tol=TOL),
    ],
    ids=lambda s: type(s).__name__,
)
def test_a_system_without_a_root_is_never_said_to_be_solved(system, solver):
    solution = solve(system, solver)
    assert not solution.converged.item()
    assert torch.allclose(residual(system, solution.z), solution.residual)


@pytest.mark.parametrize(
    "solver",
    [NEWTON, SOLVERS["chain"], ic.PseudoTransient(tol=TOL)],
    ids=["newton", "chain", "pseudo_transient"],
)
def test_a_batch_of_starts_ends_as_each_start_does_and_says_which_failed(solver):
    system = next(system for system in SYSTEMS if system.name.startswith("Freudenstein"))
    z0 = torch.cartesian_prod(torch.linspace(-10, 10, 5), torch.linspace(-9, 11, 5)).double()
    with torch.no_grad():
        together = ic.find_root(system.g, z0, solver=solver, on_failure="ignore")
        singles = [
            ic.find_root(system.g, z0[i : i + 1], solver=solver, on_failure="ignore")
            for i in range(len(z0))
        ]
    small = residual(system, together.z) <= TOL * residual(system, z0).clamp(min=1) * 1.01
    assert torch.equal(together.converged, small)
    assert together.converged.tolist() == [single.converged.item() for single in singles]
    if solver is SOLVERS["chain"]:
        assert bool(together.converged.all())
        assert all(system.distance(z[None]) < 1e-7 for z in together.z)
