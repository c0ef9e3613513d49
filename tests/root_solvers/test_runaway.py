"""A state that runs away has not converged, whichever solver of several meets it there."""

import pytest
import torch

import implicitcore as ic


def drift(z, x):
    return z + 2 + torch.sin(z)


def named(part) -> str:
    return f"{type(part).__name__}-{getattr(part, 'tol', '')}-{getattr(part, 'atol', '')}"


def several(tol: float, atol: float) -> list[ic.RootSolver]:
    options = {"tol": tol, "atol": atol, "max_steps": 200}
    picard, anderson = ic.Picard(**options), ic.Anderson(**options)
    broyden, newton = ic.Broyden(**options), ic.Newton(**options)
    return [
        ic.Chain((anderson, picard)),
        ic.Chain((broyden, anderson, ic.SteadyState(**options))),
        ic.Chain((ic.Chain((anderson, picard)), newton)),
        ic.Homotopy(corrector=anderson),
        ic.Homotopy(corrector=newton),
    ]


SOLVERS = [*several(1e-2, 0.0), *several(0.0, 1e-12), *several(1e-4, 1e-4)]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("solver", SOLVERS, ids=named)
def test_solvers_in_a_row(solver, dtype):
    with torch.no_grad():
        solution = ic.fixed_point(
            drift, torch.zeros(3, 4, dtype=dtype), solver=solver, on_failure="ignore"
        )
    assert not solution.converged.any(), solution.summary()


@pytest.mark.parametrize("tol", [1e-2, 1e-3, 1e-6])
@pytest.mark.parametrize("part", [ic.Anderson, ic.Broyden, ic.Newton, ic.SteadyState])
def test_where_the_rounding_of_a_short_dtype_hides_the_residual(part, tol):
    solver = part(tol=0.0, atol=tol, max_steps=200)
    with torch.no_grad():
        solution = ic.fixed_point(
            drift, torch.zeros(3, 4, dtype=torch.bfloat16), solver=solver, on_failure="ignore"
        )
    far = solution.z.float().norm(dim=1) > 400
    assert not (solution.converged & far).any(), solution.summary()


@pytest.mark.parametrize("rate", [0.5, 0.9, 0.98])
@pytest.mark.parametrize("part", [ic.Picard, ic.Anderson, ic.Broyden, ic.Newton])
def test_a_state_that_grows_on_its_way_to_a_fixed_point_converges(part, rate):
    x = torch.ones(2, 3, dtype=torch.bfloat16)
    solver = part(tol=1e-2, max_steps=400)
    with torch.no_grad():
        solution = ic.fixed_point(
            lambda z, x: rate * z + x, torch.zeros_like(x), x, solver=solver, on_failure="ignore"
        )
    assert solution.converged.all(), solution.summary()


@pytest.mark.parametrize("second", [ic.Newton(), ic.Anderson(max_steps=200), ic.Broyden()])
def test_a_second_solver_finishes_what_grew(second):
    matrix = torch.tensor([[0.5, 1e3], [0.0, 0.5]], dtype=torch.float64)  # |f| grows 4000 times
    x = torch.tensor([[0.0, 1.0], [1.0, 0.0]], dtype=torch.float64)
    chain = ic.Chain((ic.Picard(max_steps=4), second))
    with torch.no_grad():
        solution = ic.fixed_point(
            lambda z, x: z @ matrix.T + x, torch.zeros_like(x), x, solver=chain, on_failure="ignore"
        )
    assert solution.converged.all(), solution.summary()
    exact = torch.linalg.solve(torch.eye(2, dtype=torch.float64) - matrix, x.T).T
    assert torch.allclose(solution.z, exact, rtol=1e-2, atol=1e-2)


@pytest.mark.parametrize("size", [1e-30, 1e-25, 1e25, 1e30])
@pytest.mark.parametrize(
    "name", ["scipy-hybr", "scipy-anderson", "scipy-krylov", "scipy-broyden1", "scipy-df-sane"]
)
def test_a_box_that_takes_one_sample_at_a_time_in_any_units(name, size):
    x = torch.tensor([[1.0, 2.0, -1.0], [0.5, 0.0, 3.0], [1.0, 1.0, 1.0]])
    sizes = torch.tensor([[1.0], [size], [1.0]])
    with torch.no_grad():
        solution = ic.fixed_point(
            lambda z, x: 0.5 * z + x,
            torch.zeros(3, 3),
            x * sizes,
            solver={"name": name, "tol": 1e-4},
            on_failure="ignore",
        )
    assert solution.converged.all(), solution.summary()
    assert torch.allclose(solution.z / sizes, 2 * x, rtol=1e-3, atol=1e-3)
