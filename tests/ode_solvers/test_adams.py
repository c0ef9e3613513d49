"""Adams: the formulas, the order, the gradient, the cost."""

from __future__ import annotations

import math
from itertools import pairwise

import pytest
import torch
from benchmarks.problem import Reference
from benchmarks.root_problems import MLP_256, problems
from torch import Tensor

import implicitcore as ic
from implicitcore.testing.trajectories import driven, linear, logistic, trajectories

each_problem = pytest.mark.parametrize("problem", trajectories(), ids=str)


def times(*values: float, dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.tensor(values, dtype=dtype)


@pytest.fixture
def steps(monkeypatch) -> list[tuple[Tensor, Tensor, Tensor]]:
    """t, dt and order of every step that is tried."""
    seen, real = [], ic.Adams.step

    def step(self, system, t, dt, z, state):
        made = real(self, system, t, dt, z, state)
        assert made.order is not None
        seen.append((t, dt, made.order - 1))
        return made

    monkeypatch.setattr(ic.Adams, "step", step)
    return seen


def by_polynomials(field, z: Tensor, x: Tensor, steps) -> Tensor:
    """The same steps of one sample: each adds the integral of the polynomial through the last
    velocities, by a linear system."""
    nodes: list[float] = []
    velocities: list[Tensor] = []
    for t, dt, order in steps:
        nodes, velocities = [*nodes, t.item()], [*velocities, field(t[:, None], z, x)]
        k = int(order.item())
        powers = torch.arange(k, dtype=torch.float64)[:, None]
        offsets = (torch.tensor(nodes[-k:], dtype=torch.float64) - t) / dt
        weights = torch.linalg.solve(offsets**powers, 1 / (powers + 1))[:, 0] * dt
        z = z + sum(w * v for w, v in zip(weights, velocities[-k:], strict=True))
    return z


def accepted(steps):
    return [now for now, after in pairwise(steps) if not torch.equal(now[0], after[0])] + steps[-1:]


@each_problem
@pytest.mark.parametrize("end", [3.0, -1.5])
def test_each_step_integrates_the_polynomial_through_the_last_velocities(problem, end, steps):
    """The values and the gradients of the same steps without divided differences: no graph goes
    through the size or the order."""
    z0, x = problem.z0[:1].detach().requires_grad_(), problem.x[:1].detach().requires_grad_()
    z = (
        ic.integrate(
            problem.field,
            z0,
            x,
            times=times(0, end),
            solver=ic.Adams(rtol=1e-5, max_order=6, first_step=0.5),
        )
        .raise_if_failed()
        .z[-1]
    )
    made = accepted(steps)
    assert max(int(order) for _, _, order in made) > 3
    assert len(made) < len(steps), "a rejected step is part of this test"
    expected = by_polynomials(problem.field, z0, x, made)
    assert torch.allclose(z, expected, rtol=1e-9, atol=1e-11)
    for a, b in zip(
        torch.autograd.grad(z.sum(), [z0, x]),
        torch.autograd.grad(expected.sum(), [z0, x]),
        strict=True,
    ):
        assert torch.allclose(a, b, rtol=1e-8, atol=1e-9)


@pytest.mark.parametrize("max_order", [1, 2, 3, 4, 5])
@each_problem
def test_the_error_falls_with_the_order(problem, max_order):
    """From one tolerance to the next, error against evaluations: in logarithms a line whose slope
    is the order."""
    exact = problem.trajectory(times(1))[0]
    found = []
    for steps in (100, 400):
        rtol = 0.02 * steps ** -(max_order + 1.0) * 10**max_order
        with torch.no_grad():
            solver = ic.Adams(rtol=rtol, atol=rtol, max_order=max_order, max_steps=20000)
            solution = ic.integrate(
                problem.field, problem.z0, problem.x, times=times(0, 1), solver=solver
            ).raise_if_failed()
        found.append((solution.evaluations, (solution.z[-1] - exact).abs().max().item()))
    (few, error), (many, least) = found
    assert max_order - 0.5 < math.log(error / least) / math.log(many / few) < max_order + 1, found


@each_problem
def test_the_unrolled_gradient_is_that_of_the_formula(problem):
    grid = times(0, 0.4, 1)
    solution = ic.integrate(
        problem.field,
        problem.z0,
        problem.x,
        times=grid,
        solver=ic.Adams(rtol=1e-10, atol=1e-12, max_steps=5000),
    )
    weights = torch.randn(
        solution.z.shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64
    )
    found = torch.autograd.grad((solution.z * weights).sum(), problem.leaves)
    expected = torch.autograd.grad((problem.trajectory(grid) * weights).sum(), problem.leaves)
    for a, b in zip(found, expected, strict=True):
        assert (a - b).norm() < 1e-6 * b.norm()


def test_each_sample_has_its_own_order(steps):
    problem = logistic(fastest=20.0)
    ic.integrate(
        problem.field, problem.z0, problem.x, times=times(0, 1), solver=ic.Adams(rtol=1e-5)
    ).raise_if_failed()
    assert [order.unique().tolist() for _, _, order in steps[:2]] == [[1], [1]], (
        "two velocities are needed before the order can rise"
    )
    assert any(len(order.unique()) > 2 for _, _, order in steps)
    assert all(int(order.min()) >= 1 and int(order.max()) <= 5 for _, _, order in steps)


def test_fewer_evaluations_than_a_runge_kutta_method_for_the_same_error():
    problem = driven()
    exact = problem.trajectory(times(8))[0]
    found = {}
    for solver in (ic.Tsit5(rtol=1e-6, atol=1e-6), ic.Adams(rtol=1e-7, atol=1e-7, max_order=8)):
        with torch.no_grad():
            solution = ic.integrate(
                problem.field, problem.z0, problem.x, times=times(0, 8), solver=solver
            ).raise_if_failed()
        found[type(solver)] = (
            solution.evaluations,
            ((solution.z[-1] - exact) / exact).abs().max().item(),
        )
    assert found[ic.Adams][0] < 0.8 * found[ic.Tsit5][0]
    assert found[ic.Adams][1] < found[ic.Tsit5][1]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_step_cut_short_does_not_magnify_rounding(dtype):
    grid = times(0, 0.31, 0.31 + 3e-7, 2, dtype=dtype)
    z0 = torch.tensor([[1.0, 0.0]], dtype=dtype)

    def swing(t, z, x):
        return torch.stack((z[:, 1], -z[:, 0]), 1)

    cut, whole = (
        ic.integrate(
            swing, z0, times=grid[index], solver=ic.Adams(rtol=1e-4, atol=1e-4)
        ).raise_if_failed()
        for index in ([0, 1, 2, 3], [0, 1, 3])
    )
    assert torch.allclose(cut.z[-1], torch.stack((grid[-1:].cos(), -grid[-1:].sin()), 1), atol=2e-3)
    assert int(cut.steps) < int(whole.steps) + 15


@pytest.mark.parametrize("max_order", [1, 3, 5, 12])
@pytest.mark.parametrize("dtype", [torch.float32, torch.complex128])
def test_an_empty_batch(max_order, dtype):
    z0 = torch.zeros(0, 3, dtype=dtype)
    solution = ic.integrate(
        lambda t, z, x: -z, z0, times=torch.tensor([0.0, 1.0]), solver=ic.Adams(max_order=max_order)
    )
    assert solution.z.shape == (2, 0, 3) and solution.z.dtype == dtype


def test_the_adjoint_goes_back_with_a_solver_that_names_its_stages():
    problem = linear()
    grid = times(0, 0.4, 1)
    tight = {"rtol": 1e-9, "atol": 1e-11, "max_steps": 5000}
    solver = ic.Adams(**tight, max_order=7)
    assert solver.backward_solver() == ic.Tsit5(**tight)

    def gradients(gradient):
        z = ic.integrate(
            problem.field, problem.z0, problem.x, times=grid, solver=solver, gradient=gradient
        ).z
        return torch.autograd.grad(z[1:].square().sum(), problem.leaves)

    exact = problem.trajectory(grid)[1:].square().sum()
    expected = torch.autograd.grad(exact, problem.leaves)
    named = gradients(ic.Adjoint(ic.Tsit5(**tight)))
    for found, same, right in zip(gradients(ic.Adjoint()), named, expected, strict=True):
        assert torch.equal(found, same)
        assert (found - right).norm() < 1e-6 * right.norm()


def test_the_adjoint_of_an_event_after_adams():
    z0 = torch.tensor([[1.0], [2.0]], dtype=torch.float64, requires_grad=True)
    found = ic.integrate(
        lambda t, z, x: -z,
        z0,
        times=[0.0, 5.0],
        solver=ic.Adams(rtol=1e-9, atol=1e-11, max_steps=5000),
        gradient="adjoint",
        event=ic.Event(lambda t, z, x: z[:, 0] - 0.5, "falling"),
    )
    assert found.event_times is not None
    (slope,) = torch.autograd.grad(found.event_times.sum(), z0)  # t = log(2 z0)
    assert torch.allclose(slope, 1 / z0, rtol=1e-7)


@pytest.mark.parametrize("max_order", [0, 13, 2.5])
def test_orders_that_are_not_there(max_order):
    with pytest.raises(ic.ConfigError, match="max_order"):
        ic.Adams(max_order=max_order)


def test_the_cost_of_an_equilibrium():
    """The targets: 25 evaluations, and 60 with a Runge-Kutta method, for a residual of 1e-4; the
    gradient is right to 1e-3."""
    problem = next(problem for problem in problems() if problem.name == MLP_256)
    reference = Reference.of(problem)
    implicit = ic.Implicit(ic.GMRES(tol=1e-4))
    for solver, most in (
        (ic.SteadyState(), 13),
        (ic.SteadyState(ode_solver=ic.Tsit5(rtol=0.1, atol=0.1)), 60),
    ):
        solution = ic.fixed_point(
            problem.f, problem.z0, problem.x, solver=solver, gradient=implicit
        ).raise_if_failed()
        assert int(solution.steps.max()) <= most and solution.evaluations <= most + 1, (
            "one more with a graph, for the gradient"
        )
        assert reference.residual(solution.z.detach()) < 1.01e-4
        assert reference.gradient_error(problem.gradients(solution.z)) < 1e-3
