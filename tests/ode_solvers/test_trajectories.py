"""The integration: right to its order, at every output time, at the cost that it says."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import pytest
import torch
from torch import Tensor

import implicitcore as ic
from implicitcore.extend import Step, StepwiseODESolver
from implicitcore.ode_solvers.step_size import Fixed, StepSize
from implicitcore.system.system import System
from implicitcore.testing.trajectories import driven, linear, logistic, trajectories

TIGHT = {"rtol": 1e-9, "atol": 1e-11, "max_steps": 5000}
ADAPTIVE = [
    ic.Bosh3(**TIGHT),
    ic.Fehlberg45(**TIGHT),
    ic.Dopri5(**TIGHT),
    ic.Tsit5(**TIGHT),
    ic.DOP853(**TIGHT),
    ic.Adams(**TIGHT),
]
each_problem = pytest.mark.parametrize("problem", trajectories(), ids=str)


def times(*values: float, dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.tensor(values, dtype=dtype)


def solve(problem, solver, grid):
    with torch.no_grad():
        return ic.integrate(problem.field, problem.z0, problem.x, times=grid, solver=solver)


def largest(difference: Tensor) -> float:
    return difference.abs().max().item()


@pytest.mark.parametrize("solver", ADAPTIVE, ids=lambda s: type(s).__name__)
@pytest.mark.parametrize(
    "grid",
    [times(0, 1), times(0, 0.01, 0.3, 0.31, 2), times(0, -0.2, -0.7)],
    ids=["end", "several", "backwards"],
)
@each_problem
def test_adaptive_steps_meet_the_tolerance_at_every_output_time(problem, solver, grid):
    solution = solve(problem, solver, grid).raise_if_failed()
    assert solution.z.shape == (len(grid), *problem.z0.shape)
    assert torch.equal(solution.z[0], problem.z0)
    assert torch.equal(solution.times, grid)
    assert isinstance(solution, ic.Trajectory)
    expected = problem.trajectory(grid)
    assert largest((solution.z - expected) / expected.abs().clamp(min=1)) < 1e-7


@each_problem
def test_a_smaller_tolerance_gives_a_smaller_error(problem):
    exact = problem.trajectory(times(1))[0]
    errors = []
    for rtol in (1e-3, 1e-5, 1e-7, 1e-9):
        errors.append(
            largest(solve(problem, ic.Tsit5(rtol=rtol, atol=rtol), times(0, 1)).z[-1] - exact)
        )
        assert errors[-1] < 20 * rtol
    assert errors == sorted(errors, reverse=True)


def test_there_and_back_again():
    problem = driven()
    solver = ic.Dopri5(**TIGHT)
    end = solve(problem, solver, times(0.3, 1.9)).z[-1]
    back = ic.integrate(problem.field, end, problem.x, times=times(1.9, 0.3), solver=solver)
    assert torch.allclose(back.z[-1], problem.z0, rtol=1e-7)


@pytest.mark.parametrize(
    ("solver", "per_step"),
    [
        (ic.Euler(dt=0.1), 1),
        (ic.Midpoint(dt=0.1), 2),
        (ic.Heun(dt=0.1), 2),
        (ic.Heun3(dt=0.1), 3),
        (ic.RK4(dt=0.1), 4),
    ],
    ids=str,
)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize(
    ("grid", "steps"), [((0, 1), 10), ((0, 0.05, 1), 10), ((5, 4), 10), ((100, 130), 300)], ids=str
)
def test_fixed_steps_are_counted_exactly(solver, per_step, dtype, grid, steps):
    seen = []

    def field(t, z, x):
        seen.append(1)
        return -z

    solution = ic.integrate(
        field, torch.ones(3, 2, dtype=dtype), times=times(*grid, dtype=dtype), solver=solver
    ).raise_if_failed()
    assert solution.steps.tolist() == [steps] * 3
    assert solution.evaluations == len(seen) == per_step * steps


@pytest.mark.parametrize(
    ("solver", "per_step"),
    [(ic.Bosh3, 3), (ic.Dopri5, 6), (ic.Tsit5, 6), (ic.DOP853, 12), (ic.Adams, 1)],
    ids=str,
)
def test_adaptive_evaluations_are_counted_exactly(solver, per_step):
    problem = logistic(1)
    estimated = solve(problem, solver(), times(0, 3))
    assert estimated.evaluations == 2 + per_step * estimated.steps.item()
    given = solve(problem, solver(first_step=0.05), times(0, 3))
    assert given.evaluations == 1 + per_step * given.steps.item()


def test_equal_steps_arrive_exactly_and_are_no_longer_than_dt():
    lengths = []

    def field(t, z, x):
        lengths.append(t.flatten()[0].item())
        return torch.ones_like(z)

    ic.integrate(
        field, torch.zeros(1, 1, dtype=torch.float64), times=times(0, 1), solver=ic.Euler(dt=0.3)
    ).raise_if_failed()
    assert lengths == pytest.approx([0, 0.25, 0.5, 0.75])


def test_a_constant_field_needs_few_steps():
    """No error at all: the step grows until it arrives."""
    solution = ic.integrate(
        lambda t, z, x: torch.ones_like(z),
        torch.zeros(2, 1),
        times=times(0, 1e6),
        solver=ic.Tsit5(),
    )
    assert solution.z[-1].flatten().tolist() == pytest.approx([1e6] * 2)
    assert int(solution.steps.max()) < 40
    still = ic.integrate(
        lambda t, z, x: torch.zeros_like(z),
        torch.zeros(2, 1),
        times=times(0, 1e6),
        solver=ic.Tsit5(),
    )
    assert still.raise_if_failed().steps.max() < 20


def test_the_end_is_never_overstepped():
    """sqrt(1 - t) is not defined beyond t = 1, where the integration ends."""
    field = lambda t, z, x: torch.where(t <= 1, torch.ones_like(z), torch.nan)  # noqa: E731
    for solver in (ic.Tsit5(), ic.Dopri5(first_step=5.0), ic.RK4(dt=0.3), ic.Adams()):
        solution = ic.integrate(
            field, torch.ones(2, 2, dtype=torch.float64), times=times(0, 0.4, 1), solver=solver
        ).raise_if_failed()
        assert solution.z[:, 0, 0].tolist() == pytest.approx([1, 1.4, 2])


@pytest.mark.parametrize(
    "solver",
    [ic.Heun(), ic.RK4(), ic.Bosh3(), ic.Tsit5(), ic.Adams()],
    ids=lambda s: type(s).__name__,
)
@pytest.mark.parametrize(
    ("dtype", "error"),
    [(torch.float64, 2e-3), (torch.float32, 2e-3), (torch.bfloat16, 3e-2), (torch.float16, 1e-2)],
)
def test_every_dtype_keeps_its_own(solver, dtype, error):
    z0 = torch.tensor([[1.0, 2.0], [0.5, -1.0]], dtype=dtype)
    solution = ic.integrate(
        lambda t, z, x: -z, z0, times=times(0, 0.5, 1), solver=solver
    ).raise_if_failed()
    assert solution.z.dtype == dtype
    assert solution.times.dtype == torch.float64, "that of the times, as they were given"
    assert largest(solution.z[-1].double() - z0.double() * torch.exp(torch.tensor(-1.0))) < error


@pytest.mark.parametrize(
    "solver",
    [ic.RK4(dt=0.01), ic.Tsit5(rtol=1e-8, atol=1e-8), ic.Adams(rtol=1e-8, atol=1e-8)],
    ids=lambda s: type(s).__name__,
)
def test_a_complex_state_turns(solver):
    z0 = torch.tensor([[1 + 1j], [2j]], dtype=torch.complex128)
    solution = ic.integrate(
        lambda t, z, x: 1j * z, z0, times=times(0, 1, 3), solver=solver
    ).raise_if_failed()
    assert solution.z.dtype == torch.complex128
    assert torch.allclose(solution.z, z0 * torch.exp(1j * times(0, 1, 3))[:, None, None], rtol=1e-6)


def test_a_pytree_state_comes_back_as_one():
    z0 = {
        "position": torch.ones(4, 2, 1, dtype=torch.float64),
        "speed": torch.zeros(4, 2, 1, dtype=torch.float64),
    }
    grid = times(0, 1, 2)
    swing = lambda t, z, x: {"position": z["speed"], "speed": -z["position"]}  # noqa: E731
    solution = ic.integrate(swing, z0, times=grid, solver=ic.Tsit5(rtol=1e-9, atol=1e-9))
    assert solution.z["position"].shape == (3, 4, 2, 1)
    assert torch.allclose(
        solution.z["position"], torch.cos(grid)[:, None, None, None].expand(3, 4, 2, 1), atol=1e-7
    )
    assert torch.allclose(
        solution.z["speed"], -torch.sin(grid)[:, None, None, None].expand(3, 4, 2, 1), atol=1e-7
    )


def test_the_graph_is_that_of_the_discrete_steps():
    """Euler by hand; the starting z0 is left as it was."""
    problem = linear()
    start = problem.z0.detach().clone()
    solution = ic.integrate(
        problem.field, problem.z0, problem.x, times=times(0, 1, 2), solver=ic.Euler(dt=0.25)
    )
    z, rows = problem.z0, [problem.z0]
    for k in range(8):
        z = z + 0.25 * problem.field(torch.zeros(()), z, problem.x)
        rows += [z] if k % 4 == 3 else []
    weights = torch.randn_like(solution.z)
    found = torch.autograd.grad((solution.z * weights).sum(), problem.leaves)
    expected = torch.autograd.grad((torch.stack(rows) * weights).sum(), problem.leaves)
    for a, b in zip(found, expected, strict=True):
        assert torch.allclose(a, b, rtol=1e-12)
    assert torch.equal(problem.z0, start)


def test_no_graph_where_none_is_wanted():
    problem = logistic()
    with torch.no_grad():
        assert not ic.integrate(
            problem.field, problem.z0, problem.x, times=times(0, 1), solver=ic.Tsit5()
        ).z.requires_grad
        assert not ic.integrate(
            problem.field, problem.z0, problem.x, times=times(0, 1), solver=ic.RK4()
        ).z.requires_grad


class Half(NamedTuple):
    velocity: Tensor
    taken: Tensor


@dataclass(frozen=True, kw_only=True)
class Counting(StepwiseODESolver[Half]):
    """Somebody's solver: a state of its own, and nothing else."""

    @property
    def step_size(self) -> StepSize:
        return Fixed(0.01)

    def init(self, system: System, t: Tensor, z: Tensor) -> Half:
        return Half(system.velocity(t, z), torch.zeros_like(t))

    def velocity(self, state: Half) -> Tensor:
        return state.velocity

    def step(self, system: System, t: Tensor, dt: Tensor, z: Tensor, state: Half) -> Step:
        z_next = z + dt[:, None] * state.velocity
        return Step(z_next, state=Half(system.velocity(t + dt, z_next), state.taken + 1))


def test_a_solver_of_ones_own_is_one_method_and_its_state():
    problem = linear()
    solution = solve(problem, Counting(), times(0, 1)).raise_if_failed()
    assert torch.allclose(solution.z, solve(problem, ic.Euler(dt=0.01), times(0, 1)).z, rtol=1e-12)
    assert solution.evaluations == 101
    cell = lambda z, x: torch.cos(z)  # noqa: E731
    root = ic.fixed_point(
        cell, torch.zeros(3, 1), solver=ic.SteadyState(ode_solver=Counting(), max_steps=2000)
    ).raise_if_failed()
    assert torch.allclose(root.z, torch.full((3, 1), 0.739085), atol=1e-3)
