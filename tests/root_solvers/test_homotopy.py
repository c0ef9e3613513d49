"""The homotopy: paths that turn back, both parametrisations, other ODE solvers and correctors."""

from __future__ import annotations

import pytest
import torch

import implicitcore as ic
from implicitcore.testing.dense import fixed_point, implicit_gradient, relative_error
from implicitcore.testing.problems import Cell, inputs

T = torch.float64
CORRECTOR = ic.Newton(tol=1e-10)


def cubic(z, x):
    """Its path from the local minimum of |g| turns back in s twice."""
    return -(z**3 - 2 * z + x)


def test_a_path_that_turns_back_is_followed_by_its_length_and_not_by_s():
    """Newton ends in the minimum of |g| near 0.8."""
    z0, x = torch.tensor([[1.5]], dtype=T), torch.tensor([[2.0]], dtype=T)
    with torch.no_grad():
        assert not ic.find_root(
            cubic, z0, x, solver=CORRECTOR, on_failure="ignore"
        ).converged.item()
        by_length = ic.find_root(
            cubic, z0, x, solver=ic.Homotopy(corrector=CORRECTOR), on_failure="ignore"
        ).raise_if_failed()
        by_s = ic.find_root(
            cubic,
            z0,
            x,
            solver=ic.Homotopy(corrector=CORRECTOR, dense_below=0),
            on_failure="ignore",
        )
    assert by_length.z.item() == pytest.approx(-1.7692923542386314)
    assert not by_s.converged.item()
    assert by_s.residual.item() == pytest.approx(cubic(by_s.z, x).norm().item())


@pytest.mark.parametrize(
    "ode_solver",
    [ic.Tsit5(), ic.Bosh3(rtol=1e-2, atol=1e-3), ic.RK4(dt=0.2), ic.Euler(dt=0.1)],
    ids=lambda s: type(s).__name__,
)
@pytest.mark.parametrize(
    "corrector",
    [ic.Newton(tol=1e-9), ic.Anderson(tol=1e-9), ic.Broyden(tol=1e-9)],
    ids=lambda s: type(s).__name__,
)
@pytest.mark.parametrize("dense_below", [0, 64])
def test_any_ode_solver_and_any_corrector(ode_solver, corrector, dense_below):
    cell, x = Cell(), inputs()
    solver = ic.Homotopy(ode_solver=ode_solver, corrector=corrector, dense_below=dense_below)
    with torch.no_grad():
        solution = ic.fixed_point(cell, torch.zeros_like(x), x, solver=solver).raise_if_failed()
    assert torch.allclose(
        solution.z, fixed_point(lambda z: cell(z, x), torch.zeros_like(x)), atol=1e-8
    )


def test_samples_whose_paths_end_differently_do_not_meet():
    """One path arrives at once, one turns back, one runs away, one begins at the root, one is not a
    number."""
    z0 = torch.tensor([[-2.0], [0.9], [0.0], [1.0], [torch.nan]], dtype=T)
    x = torch.tensor([[2.0], [2.0], [torch.inf], [1.0], [2.0]], dtype=T)
    solver = ic.Homotopy(corrector=CORRECTOR)
    with torch.no_grad():
        together = ic.find_root(cubic, z0, x, solver=solver, on_failure="ignore")
        singles = [
            ic.find_root(cubic, z0[i : i + 1], x[i : i + 1], solver=solver, on_failure="ignore")
            for i in range(5)
        ]
    assert together.converged.tolist() == [True, True, False, True, False]
    assert together.status.tolist() == [single.status.item() for single in singles]
    assert together.steps.tolist() == [single.steps.item() for single in singles]
    assert torch.allclose(together.z[:4], torch.cat([single.z for single in singles])[:4])
    assert together.steps[3] == 1


def test_a_path_that_runs_away_ends_and_is_no_solution():
    z0 = torch.zeros(1, 1, dtype=T)
    with torch.no_grad():
        solution = ic.find_root(
            lambda z, _: z**2 + 1, z0, solver=ic.Homotopy(corrector=CORRECTOR), on_failure="ignore"
        )
    assert solution.status.item() == ic.Status.STALLED
    assert solution.residual.item() == pytest.approx(1)
    assert solution.start is not None


def test_evaluations_are_those_of_the_path_and_the_corrector():
    calls = 0

    def cell(z, x):
        nonlocal calls
        calls += 1
        return torch.cos(z) + x

    x = inputs(n=1)
    with torch.no_grad():
        solution = ic.fixed_point(
            cell, torch.zeros_like(x), x, solver=ic.Homotopy()
        ).raise_if_failed()
    linearized = (
        calls - 1
    )  # all but the first evaluation; each but the last one or two came with a product, n = 1
    assert 2 * linearized - 2 <= solution.evaluations <= 2 * linearized + 1


@pytest.mark.parametrize(
    "ode_solver",
    [ic.Tsit5(), ic.DOP853(rtol=1e-6, atol=1e-8), ic.Bosh3(rtol=1e-5, atol=1e-6)],
    ids=str,
)
def test_the_unrolled_gradient_is_the_roots_where_the_corrector_has_nothing_to_do(ode_solver):
    cell, x = Cell(), inputs().requires_grad_()
    solver = ic.Homotopy(ode_solver=ode_solver, corrector=ic.Newton(tol=1e-2))
    solution = ic.fixed_point(
        cell, torch.zeros_like(x), x, solver=solver, gradient=ic.Unrolled()
    ).raise_if_failed()
    with torch.no_grad():
        assert torch.equal(
            solution.z, ic.fixed_point(cell, torch.zeros_like(x), x, solver=solver).z
        )
    found = torch.autograd.grad(solution.z.sum(), [x, *cell.parameters()])
    z = fixed_point(lambda z: cell(z, x), torch.zeros_like(x))
    expected = implicit_gradient(
        lambda z: cell(z, x), z, torch.ones_like(z), [x, *cell.parameters()]
    )
    assert relative_error(found, expected) < 2e-2


def test_a_corrector_that_rounding_stops_has_met_a_tolerance_of_the_path():
    """From the end of the path the corrector's relative tolerance lies below the rounding of g; the
    one that was asked for is relative to the start."""
    z0, x = torch.zeros(1, 1), torch.tensor([[1e4]])
    solver = ic.Homotopy(ode_solver=ic.Tsit5(rtol=1e-6, atol=1e-6), corrector=ic.Newton(tol=1e-4))
    with torch.no_grad():
        solution = ic.find_root(
            lambda z, x: x - z - torch.tanh(z / 1e4), z0, x, solver=solver, on_failure="ignore"
        )
    assert solution.converged.all()
    assert solution.residual.item() <= 1.0
    assert solution.relative_residual is not None
    assert solution.relative_residual.item() == pytest.approx(
        solution.residual.item() / 1e4, rel=1e-3
    )
