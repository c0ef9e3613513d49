"""scipy.integrate behind ODESolver: each sample by itself, right, and trainable by the adjoint."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from scipy.integrate import solve_ivp

import implicitcore as ic
import implicitcore_scipy as sp
from implicitcore.testing.dense import fixed_point, implicit_gradient, relative_error
from implicitcore.testing.problems import Cell, inputs
from implicitcore.testing.trajectories import linear, logistic, trajectories
from implicitcore_scipy.plugin import _PARTS

GRID = torch.tensor([0.0, 0.35, 1.0], dtype=torch.float64)
TIGHT = {"rtol": 1e-8, "atol": 1e-10, "max_steps": 5000}
SOLVERS = [
    sp.RK45(),
    sp.RK23(),
    sp.DOP853(),
    sp.Radau(),
    sp.BDF(),
    sp.LSODA(),
    sp.BDF(jacobian=False),
]
SETTLING = [solver for solver in SOLVERS if not isinstance(solver, sp.LSODA)]


def name(value):
    return type(value).__name__ + ("" if getattr(value, "jacobian", True) else "-differences")


each_solver = pytest.mark.parametrize("solver", SOLVERS, ids=name)


def test_every_name_is_a_class_of_its_kind():
    for kind, parts in _PARTS.items():
        for part, target, _ in parts:
            cls = getattr(sp, target.partition(":")[2])
            assert cls.kind == kind
            assert part == getattr(cls, "method", cls.__name__.lower())
    with pytest.raises(AttributeError, match="RK54"):
        sp.RK54  # noqa: B018  # pyright: ignore[reportAttributeAccessIssue]


@each_solver
@pytest.mark.parametrize("times", [GRID, GRID.flip(0)], ids=["onwards", "back"])
def test_trajectories_in_closed_form(solver, times):
    tight = replace(solver, rtol=1e-6, atol=1e-8, max_steps=5000)
    for problem in trajectories():
        start = problem.trajectory(times[:1])[0].detach()
        with torch.no_grad():
            solution = ic.integrate(
                problem.field, start, problem.x, times=times, solver=tight
            ).raise_if_failed()
            assert (solution.z - problem.trajectory(times)).abs().max() < 2e-4


@pytest.mark.parametrize("solver", [sp.DOP853(**TIGHT), sp.LSODA(**TIGHT)], ids=name)
def test_theirs_forward_and_ours_back(solver):
    for problem in trajectories():
        back = ic.Adjoint(ic.Tsit5(rtol=1e-9, atol=1e-11))
        solution = ic.integrate(
            problem.field, problem.z0, problem.x, times=GRID, solver=solver, gradient=back
        )
        found = torch.autograd.grad(solution.z.square().sum(), problem.leaves)
        expected = torch.autograd.grad(problem.trajectory(GRID).square().sum(), problem.leaves)
        assert relative_error(found, expected) < 1e-6


@pytest.mark.parametrize("leaf", [0, 1, 2], ids=["z0", "x", "captured"])
@pytest.mark.parametrize("solver", [sp.RK45(), sp.LSODA(), sp.Radau()], ids=name)
def test_it_never_returns_a_detached_trajectory(solver, leaf):
    tensors = [tensor.detach() for tensor in linear().leaves]
    z0, x, weight = tensors
    field = lambda t, z, x: z @ weight.T + x  # noqa: E731
    assert ic.integrate(field, z0, x, times=GRID, solver=solver).raise_if_failed().z.shape == (
        3,
        8,
        3,
    )
    tensors[leaf].requires_grad_()
    with pytest.raises(
        ic.GradientError, match=r"no graph for Unrolled to follow: use Adjoint\(solver=Tsit5"
    ):
        ic.integrate(field, z0, x, times=GRID, solver=solver)
    solution = ic.integrate(field, z0, x, times=GRID, solver=solver, gradient=ic.Adjoint())
    with pytest.raises(ic.GradientError, match="cannot integrate backwards: give Adjoint"):
        torch.autograd.grad(solution.z.sum(), tensors[leaf])


def test_an_event_needs_a_solver_that_shows_its_steps():
    z0 = torch.ones(2, 1, dtype=torch.float64)
    for gradient in (None, ic.Adjoint(ic.Tsit5())):
        with pytest.raises(ic.InputError, match="RK45 gives no values .* event needs a solver"):
            ic.integrate(
                lambda t, z, x: -z,
                z0,
                times=GRID,
                solver="scipy-rk45",
                gradient=gradient,
                event=[lambda t, z, x: z[:, 0] - 0.5],
            )


@each_solver
def test_a_batch_of_eight_equals_eight_single_solves(solver):
    problem = logistic(fastest=20.0)
    z0, x = problem.z0.detach(), problem.x.detach()
    with torch.no_grad():
        together = ic.integrate(problem.field, z0, x, times=GRID, solver=solver)
        assert len(set(together.steps.tolist())) > 1
        for i in range(8):
            single = ic.integrate(
                problem.field, z0[i : i + 1], x[i : i + 1], times=GRID, solver=solver
            )
            assert torch.equal(single.z[:, 0], together.z[:, i])
            assert single.steps[0] == together.steps[i]


def test_it_is_solve_ivp_and_counts_batches():
    rates = torch.tensor([[1.0], [3.0]], dtype=torch.float64)
    solution = ic.integrate(
        lambda t, z, x: -x * z,
        torch.ones(2, 1, dtype=torch.float64),
        rates,
        times=GRID,
        solver=sp.RK45(),
    )
    calls = 0
    for i, rate in enumerate(rates[:, 0].tolist()):
        expected = solve_ivp(
            lambda t, y, rate=rate: -rate * y,
            (0.0, 1.0),
            [1.0],
            t_eval=GRID.numpy(),
            rtol=1e-3,
            atol=1e-6,
        )
        assert torch.allclose(solution.z[:, i, 0], torch.tensor(expected.y[0]), rtol=1e-14)
        calls += expected.nfev
    assert solution.evaluations == -(-(calls + 2) // 2)  # and one at the start of each sample


@each_solver
@pytest.mark.parametrize("where", ["z0", "x"])
def test_one_nan_sample_leaves_the_others_alone(solver, where):
    problem = logistic()
    z0, x = problem.z0.detach().clone(), problem.x.detach().clone()
    with torch.no_grad():
        clean = ic.integrate(problem.field, z0, x, times=GRID, solver=solver)
        (z0 if where == "z0" else x)[3, 0] = torch.nan
        found = ic.integrate(problem.field, z0, x, times=GRID, solver=solver, on_failure="ignore")
    others = [i for i in range(8) if i != 3]
    assert found.status.tolist() == [
        ic.Status.NON_FINITE if i == 3 else ic.Status.CONVERGED for i in range(8)
    ]
    assert torch.equal(found.z[:, others], clean.z[:, others])
    assert found.steps[3] == 0


@each_solver
def test_a_nan_on_the_way_keeps_the_outputs_before_it(solver):
    field = lambda t, z, x: torch.where((t > 0.5) & (x > 0), torch.nan, 0 * x - z)  # noqa: E731
    x = torch.zeros(4, 1, dtype=torch.float64)
    x[2] = 1
    found = ic.integrate(
        field,
        torch.ones(4, 2, dtype=torch.float64),
        x,
        times=GRID,
        solver=solver,
        on_failure="ignore",
    )
    assert found.status.tolist() == [0, 0, ic.Status.NON_FINITE, 0]
    assert bool(found.z.isfinite().all())
    assert torch.allclose(found.z[1, 2], found.z[1, 0], rtol=1e-2)
    assert torch.allclose(found.z[2, 0], torch.exp(-GRID[2:]), rtol=1e-2)


@pytest.mark.parametrize("solver", [sp.RK45(), sp.DOP853(), sp.Radau()], ids=name)
def test_a_blow_up_is_a_status_of_its_sample_alone(solver):
    z0 = torch.tensor([[0.5], [4.0], [0.9]], dtype=torch.float64)
    solution = ic.integrate(
        lambda t, z, x: z * z, z0, times=GRID, solver=solver, on_failure="ignore"
    )
    assert solution.status.tolist() == [0, ic.Status.DIVERGED, 0]
    assert bool(solution.z.isfinite().all())
    assert torch.allclose(solution.z[-1, [0, 2]], 1 / (1 / z0[[0, 2]] - 1), rtol=2e-2)


@each_solver
def test_out_of_steps_is_a_status(solver):
    rate = torch.tensor([[0.0], [50.0]])
    field = lambda t, z, x: -x * (z - torch.cos(9 * t))  # noqa: E731
    solution = ic.integrate(
        field,
        torch.ones(2, 1),
        rate,
        times=GRID,
        solver=replace(solver, max_steps=6, first_step=0.02),
        on_failure="ignore",
    )
    assert solution.status[1] == ic.Status.MAX_STEPS
    assert solution.steps[1] == 6


@pytest.mark.parametrize(
    "solver", [sp.Radau(), sp.BDF(), sp.LSODA(), sp.Radau(jacobian=False)], ids=name
)
def test_stiff_dynamics_in_few_steps(solver):
    """Prothero and Robinson: z = cos t, whatever the stiffness."""
    z0 = torch.ones(2, 1, dtype=torch.float64)
    rate = torch.tensor([[1e2], [1e5]], dtype=torch.float64)
    field = lambda t, z, x: -x * (z - torch.cos(t)) - torch.sin(t)  # noqa: E731
    solution = ic.integrate(field, z0, rate, times=GRID, solver=solver).raise_if_failed()
    assert torch.allclose(solution.z[:, :, 0], torch.cos(GRID)[:, None], atol=1e-2)
    assert solution.steps.max() < 60


def test_the_jacobian_knows_the_time():
    """dg/dz depends on t alone: finite differences and autograd must agree step by step."""
    field = lambda t, z, x: -1000 * torch.sin(3 * t + 0.1) ** 2 * (z - 1)  # noqa: E731
    z0 = torch.zeros(1, 1, dtype=torch.float64)
    exact, differences = (
        ic.integrate(field, z0, times=GRID, solver=sp.Radau(jacobian=jacobian))
        for jacobian in (True, False)
    )
    assert torch.equal(exact.steps, differences.steps)
    assert torch.allclose(exact.z, differences.z, atol=1e-6)


@pytest.mark.parametrize("solver", SETTLING, ids=name)
def test_steady_states_and_their_gradients(solver):
    cell, x = Cell(contraction=0.4), inputs().requires_grad_()
    steady = ic.SteadyState(
        ode_solver=replace(solver, rtol=1e-6, atol=1e-8), tol=1e-5, max_steps=500
    )
    solution = ic.fixed_point(
        cell, torch.zeros_like(x), x, solver=steady, gradient=ic.Implicit(ic.GMRES(tol=1e-9))
    ).raise_if_failed()
    z = fixed_point(lambda z: cell(z, x), torch.zeros_like(x))
    assert torch.allclose(solution.z, z, atol=3e-5)
    wrt = [*cell.parameters(), x]
    found = torch.autograd.grad(solution.z.sum(), wrt)
    assert (
        relative_error(found, implicit_gradient(lambda z: cell(z, x), z, torch.ones_like(z), wrt))
        < 1e-4
    )
    few = ic.fixed_point(
        cell, torch.zeros_like(x), x, solver=replace(steady, max_steps=2), on_failure="ignore"
    )
    assert few.status.tolist() == [ic.Status.MAX_STEPS] * 8


def test_homotopy_follows_its_path_by_scipy():
    cell, x = Cell(), inputs(2)
    z = fixed_point(lambda z: cell(z, x), torch.zeros_like(x))
    for dense_below in (64, 0):
        solver = ic.Homotopy(ode_solver=sp.RK45(rtol=1e-2, atol=1e-3), dense_below=dense_below)
        solution = ic.fixed_point(cell, torch.zeros_like(x), x, solver=solver).raise_if_failed()
        assert torch.allclose(solution.z, z, atol=1e-3)


@each_solver
def test_an_empty_batch_and_float32(solver):
    empty = ic.integrate(lambda t, z, x: -z, torch.zeros(0, 3), times=GRID, solver=solver)
    assert empty.raise_if_failed().z.shape == (3, 0, 3)
    solution = ic.integrate(
        lambda t, z, x: -z, torch.ones(2, 3), times=GRID, solver=solver
    ).raise_if_failed()
    assert solution.z.dtype == torch.float32
    assert torch.allclose(solution.z[-1], torch.exp(torch.tensor(-1.0)), rtol=1e-2)


def test_an_error_of_the_vector_field_is_the_users():
    def field(t, z, x):
        raise ValueError("mine")

    for solver in SOLVERS:
        with pytest.raises(ValueError, match="mine"):
            ic.integrate(field, torch.ones(2, 1), times=GRID, solver=solver)


def test_what_it_cannot_do_is_a_clear_error():
    with pytest.raises(ic.InputError, match="real states, received torch.complex64"):
        ic.integrate(
            lambda t, z, x: 1j * z,
            torch.ones(1, 1, dtype=torch.complex64),
            times=GRID,
            solver=sp.RK45(),
        )
    with pytest.raises(ic.InputError, match="LSODA"):
        ic.fixed_point(
            lambda z, x: z / 2, torch.ones(1, 1), solver=ic.SteadyState(ode_solver=sp.LSODA())
        )
    with pytest.raises(ic.ConfigError, match="rtol"):
        sp.RK45(rtol=-1)


@pytest.mark.parametrize("name", ["scipy-radau", "scipy-bdf", "scipy-lsoda"])
def test_a_jacobian_that_is_not_finite_ends_the_sample_with_a_status(name):
    z0 = torch.tensor([[1.0], [4.0]], dtype=torch.float64)  # the first is empty at t = 2
    times = torch.tensor([0.0, 4.0], dtype=torch.float64)
    with torch.no_grad():
        found = ic.integrate(
            lambda t, z, x: -torch.sqrt(z),
            z0,
            times=times,
            solver={"name": name, "max_steps": 300},
            on_failure="ignore",
        )
    assert found.status[0] != ic.Status.CONVERGED or found.z[-1, 0].isfinite().all()
    assert found.z.shape == (2, 2, 1)
