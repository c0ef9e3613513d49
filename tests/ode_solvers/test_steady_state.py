"""SteadyState: every ODE solver as a root solver."""

from __future__ import annotations

import pytest
import torch

import implicitcore as ic
from implicitcore.testing.dense import fixed_point
from implicitcore.testing.problems import Cell, inputs

ODE_SOLVERS = [
    ic.Euler(dt=0.5),
    ic.Midpoint(dt=0.5),
    ic.Heun(dt=0.5),
    ic.Heun3(dt=0.5),
    ic.RK4(dt=1.0),
    ic.Bosh3(),
    ic.Bosh3(rtol=0.1, atol=0.1),
    ic.Dopri5(),
    ic.Fehlberg45(),
    ic.Tsit5(),
    ic.DOP853(),
    ic.Adams(),
    ic.Adams(max_order=3, rtol=0.5, atol=0.5),
]
IMPLICIT = [
    ic.ImplicitEuler(dt=10.0),
    ic.Trapezoid(dt=1.0),
    ic.ESDIRK(),
    ic.Kvaerno5(),
    ic.RadauIIA5(),
]
each_solver = pytest.mark.parametrize("ode_solver", [*ODE_SOLVERS, *IMPLICIT], ids=str)


@each_solver
@pytest.mark.parametrize("tol", [1e-3, 1e-8])
def test_every_ode_solver_finds_the_equilibrium_to_the_tolerance(ode_solver, tol):
    cell, x = Cell(), inputs()
    solver = ic.SteadyState(ode_solver=ode_solver, tol=tol, max_steps=500)
    with torch.no_grad():
        solution = ic.fixed_point(cell, torch.zeros_like(x), x, solver=solver).raise_if_failed()
    assert torch.allclose(
        solution.z, fixed_point(lambda z: cell(z, x), torch.zeros_like(x)), atol=10 * tol
    )
    fz = cell(solution.z, x)
    residual = (fz - solution.z).norm(dim=1)
    assert bool((residual <= tol * fz.norm(dim=1)).all())
    assert torch.allclose(residual, solution.residual, rtol=1e-6)


@each_solver
def test_the_tolerance_of_the_steps_is_no_floor_of_the_residual(ode_solver):
    cell, x = Cell(), inputs()
    solver = ic.SteadyState(ode_solver=ode_solver, tol=1e-12, max_steps=1000)
    assert (
        ic.fixed_point(cell, torch.zeros_like(x), x, solver=solver).raise_if_failed().evaluations
        < 1500
    )


def test_picard_is_euler_with_unit_steps():
    cell, x = Cell(), inputs()
    picard = ic.fixed_point(cell, torch.zeros_like(x), x, solver=ic.Picard(tol=1e-8))
    euler = ic.fixed_point(
        cell, torch.zeros_like(x), x, solver=ic.SteadyState(ode_solver=ic.Euler(dt=1.0), tol=1e-8)
    )
    assert torch.allclose(picard.z, euler.z, rtol=1e-12)
    assert picard.evaluations == euler.evaluations
    assert picard.steps.tolist() == euler.steps.tolist()


def test_the_default_needs_few_evaluations():
    """The derivative at each step is the method's own: the stop test costs nothing."""
    cell, x = Cell(), inputs()
    with torch.no_grad():
        solution = ic.fixed_point(
            cell, torch.zeros_like(x), x, solver=ic.SteadyState()
        ).raise_if_failed()
    assert solution.evaluations <= 12
    assert solution.evaluations == int(solution.steps.max())


@each_solver
def test_samples_that_have_arrived_are_frozen(ode_solver):
    cell, x = Cell(), inputs()
    z = fixed_point(lambda z: cell(z, x), torch.zeros_like(x))
    z0 = torch.where(torch.arange(8)[:, None] % 2 == 0, z, torch.zeros_like(z))
    with torch.no_grad():
        solution = ic.fixed_point(
            cell, z0, x, solver=ic.SteadyState(ode_solver=ode_solver, max_steps=500)
        ).raise_if_failed()
    assert torch.equal(solution.z[::2], z[::2])
    assert solution.steps[::2].tolist() == [1] * 4
    assert bool((solution.steps[1::2] > 1).all())


@each_solver
def test_the_last_of_the_steps_is_looked_at(ode_solver):
    """max_steps states, the start among them."""
    x = inputs()
    solver = ic.SteadyState(ode_solver=ode_solver, tol=0.0, max_steps=3)
    with torch.no_grad():
        solution = ic.fixed_point(
            lambda z, x: 0.5 * z + x, torch.zeros_like(x), x, solver=solver, on_failure="ignore"
        )
    assert solution.status.tolist() == [ic.Status.MAX_STEPS] * 8
    assert torch.allclose(solution.residual, (0.5 * solution.z + x - solution.z).norm(dim=1))
    assert solution.steps.tolist() == [3] * 8


def test_dynamics_that_leave_are_called_divergence():
    """By an explicit method; a long implicit step finds a root that repels, as Newton's method
    does."""
    growth = torch.tensor([[0.5], [3.0]], dtype=torch.float64)
    for ode_solver in ODE_SOLVERS:
        solver = ic.SteadyState(ode_solver=ode_solver, max_steps=500)
        solution = ic.fixed_point(
            lambda z, x: x * z + 1,
            torch.zeros(2, 1, dtype=torch.float64),
            growth,
            solver=solver,
            on_failure="ignore",
        )
        assert solution.status.tolist() == [ic.Status.CONVERGED, ic.Status.DIVERGED]
        assert bool(solution.z.isfinite().all())
