"""torchdiffeq's methods behind ODESolver: right, trainable, and honest about each sample."""

from __future__ import annotations

import warnings
from dataclasses import replace

import pytest
import torch

import implicitcore as ic
import implicitcore_torchdiffeq as td
from implicitcore.extend import Options, Packing, System
from implicitcore.testing.dense import fixed_point, implicit_gradient, relative_error
from implicitcore.testing.problems import Cell, inputs
from implicitcore.testing.trajectories import driven, linear, logistic, trajectories
from implicitcore_torchdiffeq.plugin import _METHODS

torchdiffeq = pytest.importorskip("torchdiffeq")

GRID = torch.tensor([0.0, 0.35, 1.0], dtype=torch.float64)
# Each method with options at which it is right to the number beside it.
SOLVERS = {
    td.Dopri8(): 1e-7,
    td.Dopri5(): 1e-6,
    td.Bosh3(rtol=1e-6, atol=1e-8): 1e-4,
    td.Fehlberg2(rtol=1e-6, atol=1e-8): 1e-3,
    td.AdaptiveHeun(rtol=1e-4, atol=1e-6): 1e-3,
    td.Euler(dt=0.01): 3e-2,
    td.Midpoint(dt=0.02): 1e-3,
    td.Heun2(dt=0.02): 3e-3,
    td.Heun3(dt=0.02): 1e-4,
    td.RK4(dt=0.02): 1e-6,
    td.ExplicitAdams(dt=0.02): 1e-4,
    td.ImplicitAdams(dt=0.02): 1e-6,
    td.FixedAdams(dt=0.02): 1e-6,
    td.ScipySolver(): 1e-5,
}
GRAPHS = {
    solver: error for solver, error in SOLVERS.items() if not isinstance(solver, td.ScipySolver)
}
ADAPTIVE = [td.Dopri8(), td.Dopri5(), td.Fehlberg2(rtol=1e-4, atol=1e-5)]
name = lambda value: type(value).__name__ if isinstance(value, Options) else str(value)  # noqa: E731
each_solver = pytest.mark.parametrize("solver", SOLVERS, ids=name)
each_adaptive = pytest.mark.parametrize("solver", ADAPTIVE, ids=name)


def test_every_method_of_the_installed_version_is_registered():
    from torchdiffeq._impl.odeint import SOLVERS as theirs

    assert {method for method, _, _ in _METHODS} == set(theirs)
    assert {type(solver).method for solver in SOLVERS} == set(theirs)
    for method, target, _ in _METHODS:
        cls = getattr(td, target.partition(":")[2])
        assert (cls.method, cls.kind) == (method, "ode_solver")


@each_solver
@pytest.mark.parametrize("times", [GRID, GRID.flip(0)], ids=["onwards", "back"])
def test_trajectories_in_closed_form(solver, times):
    for problem in trajectories():
        start = problem.trajectory(times[:1])[0].detach()
        with torch.no_grad():
            solution = ic.integrate(
                problem.field, start, problem.x, times=times, solver=solver
            ).raise_if_failed()
        assert solution.z.shape == (3, *start.shape)
        assert (solution.z - problem.trajectory(times)).abs().max() < SOLVERS[solver]


@pytest.mark.parametrize("solver", GRAPHS, ids=name)
def test_gradients_by_unrolling(solver):
    problem = driven()
    solution = ic.integrate(problem.field, problem.z0, problem.x, times=GRID, solver=solver)
    found = torch.autograd.grad(solution.z.square().sum(), problem.leaves)
    expected = torch.autograd.grad(problem.trajectory(GRID).square().sum(), problem.leaves)
    assert relative_error(found, expected) < GRAPHS[solver]


@each_solver
def test_theirs_forward_and_ours_back(solver):
    problem = linear()
    back = ic.Adjoint(ic.Tsit5(rtol=1e-9, atol=1e-11))
    solution = ic.integrate(
        problem.field, problem.z0, problem.x, times=GRID, solver=solver, gradient=back
    )
    found = torch.autograd.grad(solution.z.square().sum(), problem.leaves)
    expected = torch.autograd.grad(problem.trajectory(GRID).square().sum(), problem.leaves)
    assert relative_error(found, expected) < SOLVERS[solver]


def test_it_cannot_integrate_the_adjoint_itself():
    problem = linear()
    solution = ic.integrate(
        problem.field, problem.z0, problem.x, times=GRID, solver=td.Dopri5(), gradient=ic.Adjoint()
    )
    with pytest.raises(
        ic.GradientError, match=r"cannot integrate backwards: give Adjoint\(solver="
    ):
        torch.autograd.grad(solution.z.sum(), problem.z0)


@pytest.mark.parametrize("leaf", [0, 1, 2], ids=["z0", "x", "captured"])
def test_scipy_solver_never_returns_a_detached_trajectory(leaf):
    problem = linear()
    tensors = [tensor.detach() for tensor in problem.leaves]
    tensors[leaf].requires_grad_()
    z0, x, weight = tensors
    with pytest.raises(ic.GradientError, match="no graph"):
        ic.integrate(lambda t, z, x: z @ weight.T + x, z0, x, times=GRID, solver=td.ScipySolver())


@pytest.mark.parametrize(
    "solver",
    [td.Dopri5(), td.Bosh3(rtol=1e-5, atol=1e-7), td.RK4(dt=0.5), td.ImplicitAdams(dt=0.5)],
    ids=name,
)
@pytest.mark.parametrize("gradient", [ic.Implicit(ic.GMRES(tol=1e-9)), ic.Unrolled()], ids=name)
def test_steady_states_and_their_gradients(solver, gradient):
    cell, x = Cell(contraction=0.4), inputs().requires_grad_()
    steady = ic.SteadyState(ode_solver=solver, tol=1e-5, max_steps=2000)
    solution = ic.fixed_point(
        cell, torch.zeros_like(x), x, solver=steady, gradient=gradient
    ).raise_if_failed()
    z = fixed_point(lambda z: cell(z, x), torch.zeros_like(x))
    assert torch.allclose(solution.z, z, atol=3e-4)
    assert len(set(solution.steps.tolist())) > 1, "each sample stops by itself"
    wrt = [*cell.parameters(), x]
    found = torch.autograd.grad(solution.z.sum(), wrt)
    assert (
        relative_error(found, implicit_gradient(lambda z: cell(z, x), z, torch.ones_like(z), wrt))
        < 1e-3
    )


def test_a_steady_state_takes_no_more_steps_than_it_may():
    x = inputs()
    steady = ic.SteadyState(ode_solver=td.Dopri5(), tol=1e-12, max_steps=7)
    solution = ic.fixed_point(Cell(), torch.zeros_like(x), x, solver=steady, on_failure="ignore")
    assert solution.status.tolist() == [ic.Status.MAX_STEPS] * 8
    assert solution.evaluations <= 7 * 6 + 4


def test_the_states_told_to_stop_have_their_own_velocity():
    """Also those of a sample that stopped, and of a method whose last stage is not the end of its
    step."""
    cell, x = Cell(), inputs()
    for solver in (td.Dopri8(), td.Midpoint(dt=0.3)):
        seen = []

        def stop(t, z, velocity, seen=seen):
            seen.append((z, velocity))
            return velocity.norm(dim=1) > 1e-2

        system = System.of(ic.FixedPoint(cell), x, Packing.of(x))
        with torch.no_grad():
            solution = solver.solve(
                system, torch.zeros_like(x), torch.tensor([0.0, torch.inf]), stop
            )
            for z, velocity in seen:
                assert torch.allclose(velocity, cell(z, x) - z, atol=1e-13)
            assert torch.equal(solution.z[-1], seen[-1][0])
            assert bool((seen[-1][1].norm(dim=1) <= 1e-2).all())
            assert bool((seen[-1][1].norm(dim=1) > 1e-4).all()), "a sample is left where it stopped"


@each_solver
@pytest.mark.parametrize("where", ["z0", "x"])
def test_one_nan_sample_leaves_the_others_alone(solver, where):
    problem = logistic()
    z0, x = problem.z0.detach().clone(), problem.x.detach().clone()
    (z0 if where == "z0" else x)[3, 0] = torch.nan
    found = ic.integrate(
        problem.field, z0, x, times=GRID, solver=solver, gradient=ic.Adjoint(), on_failure="ignore"
    )
    others = [i for i in range(8) if i != 3]
    with torch.no_grad():
        clean = ic.integrate(problem.field, z0[others], x[others], times=GRID, solver=solver)
    assert found.status.tolist() == [
        ic.Status.NON_FINITE if i == 3 else ic.Status.CONVERGED for i in range(8)
    ]
    assert torch.allclose(found.z[:, others], clean.z, rtol=0, atol=1e-13)


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
    if not isinstance(solver, td.ScipySolver):
        assert torch.allclose(found.z[1, 2], found.z[1, 0], rtol=1e-4)
    assert torch.equal(found.z[2, 2], found.z[1, 2])
    assert torch.allclose(found.z[2, 0], torch.exp(-GRID[2:]), rtol=2e-2)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_scipy_ends_where_its_steps_could_not_take_as_many_evaluations(dtype):
    """LSODA creeps towards a blow-up for ever."""
    z0, times = torch.tensor([[5.0]], dtype=dtype), torch.tensor([0.0, 0.5])
    solver = td.ScipySolver(rtol=1e-5, atol=1e-8, max_steps=100)
    found = ic.integrate(lambda t, z, x: z * z, z0, times=times, solver=solver, on_failure="ignore")
    assert found.status.tolist() == [ic.Status.MAX_STEPS]
    assert torch.equal(found.z[-1], z0)  # the last output time that it reached
    assert found.evaluations <= 100 * 21


@each_adaptive
def test_a_blow_up_is_a_status_of_its_sample_alone(solver):
    z0 = torch.tensor([[0.5], [4.0], [0.9]], dtype=torch.float64)
    solution = ic.integrate(
        lambda t, z, x: z * z, z0, times=GRID, solver=solver, on_failure="ignore"
    )
    assert solution.status.tolist() == [0, ic.Status.DIVERGED, 0]
    assert bool(solution.z.isfinite().all())
    assert torch.allclose(
        solution.z[-1, [0, 2]],
        1 / (1 / z0[[0, 2]] - 1),
        rtol=0.2 if isinstance(solver, td.Fehlberg2) else 1e-4,
    )


@pytest.mark.parametrize(
    "solver", [*ADAPTIVE, td.Euler(), td.RK4(), td.ExplicitAdams(), td.ImplicitAdams()], ids=name
)
def test_out_of_steps_is_the_batchs_status(solver):
    solution = ic.integrate(
        lambda t, z, x: -20 * z,
        torch.ones(2, 1),
        times=GRID,
        solver=replace(solver, max_steps=2),
        on_failure="ignore",
    )
    assert solution.status.tolist() == [ic.Status.MAX_STEPS] * 2
    assert solution.steps.tolist() == [2, 2]
    assert bool(solution.z.isfinite().all())


def test_a_corrector_that_stops_short_is_a_status_and_no_warning():
    z0 = torch.ones(2, 1, dtype=torch.float64)
    loose = ic.integrate(
        lambda t, z, x: -5 * z,
        z0,
        times=GRID,
        solver=td.ImplicitAdams(max_iters=1),
        on_failure="ignore",
    )
    assert loose.status.tolist() == [ic.Status.MAX_STEPS] * 2
    with pytest.warns(UserWarning, match="mine"):  # those of others pass
        ic.integrate(
            lambda t, z, x: _warning(-z), z0, times=GRID, solver=td.ImplicitAdams()
        ).raise_if_failed()


def _warning(value):
    warnings.warn("mine", stacklevel=1)
    return value


def test_the_worst_sample_meets_the_tolerance_among_a_thousand_still_ones():
    z0 = torch.zeros(1000, 1, dtype=torch.float64)
    z0[0] = 1
    rate = torch.tensor(5.0, dtype=torch.float64)
    swing = lambda t, z, x: z * torch.cos(rate * t) * rate  # noqa: E731
    solution = ic.integrate(swing, z0, times=GRID, solver=td.Dopri5(rtol=1e-10, atol=1e-6))
    mean = torchdiffeq.odeint(
        lambda t, z: swing(t, z, None), z0, GRID, rtol=1e-10, atol=1e-6, method="dopri5"
    )
    exact = torch.exp(torch.sin(rate * GRID))
    error = lambda z: (z[:, 0, 0] - exact).abs().max().item()  # noqa: E731
    assert error(solution.z) < 1e-5 < error(mean)


def test_one_sample_is_torchdiffeqs_own_answer():
    problem = driven(1)
    times = torch.tensor([0.0, 1.0], dtype=torch.float64)
    solution = ic.integrate(
        problem.field, problem.z0, problem.x, times=times, solver=td.RK4(dt=0.25)
    )
    expected = torchdiffeq.odeint(
        lambda t, z: problem.field(t, z, problem.x),
        problem.z0,
        times,
        method="rk4",
        options={"step_size": 0.25},
    )
    assert torch.allclose(solution.z, expected, rtol=1e-14)


def test_evaluations_are_counted_and_never_repeated():
    for solver, expected in ((td.Euler(dt=0.25), 4), (td.RK4(dt=0.25), 16)):
        calls = []

        def field(t, z, x, calls=calls):
            calls.append(t)
            return -z

        solution = ic.integrate(
            field, torch.ones(2, 1), times=torch.tensor([0.0, 1.0]), solver=solver
        )
        assert solution.evaluations == len(calls) == expected


@each_solver
def test_an_empty_batch_and_float32(solver):
    empty = ic.integrate(lambda t, z, x: -z, torch.zeros(0, 3), times=GRID, solver=solver)
    assert empty.raise_if_failed().z.shape == (3, 0, 3)
    loose = (
        replace(solver, rtol=1e-4, atol=1e-6)
        if isinstance(solver, td.Dopri5 | td.ScipySolver)
        else solver
    )
    solution = ic.integrate(lambda t, z, x: -z, torch.ones(2, 3), times=GRID, solver=loose)
    assert solution.z.dtype == torch.float32
    assert torch.allclose(solution.z[-1], torch.exp(torch.tensor(-1.0)), rtol=2e-2)


def test_an_error_of_the_vector_field_is_the_users():
    def field(t, z, x):
        raise AssertionError("mine")

    for solver in (td.Dopri5(), td.RK4(), td.ScipySolver()):
        with pytest.raises(AssertionError, match="mine"):
            ic.integrate(field, torch.ones(2, 1), times=GRID, solver=solver)


def test_what_it_cannot_do_is_a_clear_error():
    def stop(t, z, v):
        return torch.ones(len(z), dtype=torch.bool)

    system = System.of(ic.VectorField(lambda t, z, x: -z), None, Packing.of(torch.ones(2, 1)))
    with pytest.raises(ic.InputError, match="infinite time"):
        td.Dopri5().solve(system, torch.ones(2, 1), torch.tensor([0.0, 1.0]), stop)
    with pytest.raises(ic.InputError, match="scipy-bdf"):
        td.ScipySolver().solve(system, torch.ones(2, 1), torch.tensor([0.0, torch.inf]), stop)
    with pytest.raises(ic.ConfigError, match="max_order"):
        td.ExplicitAdams(max_order=13)
    with pytest.raises(AttributeError, match="Dopri9"):
        td.Dopri9  # noqa: B018  # pyright: ignore[reportAttributeAccessIssue]
