"""Implicit methods: right to their order, stable, per sample, and solved by any root solver."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, ClassVar

import pytest
import torch
from torch import Tensor

import implicitcore as ic
from implicitcore.ode_solvers import implicit_tableaus as tableaus
from implicitcore.ode_solvers.implicit_runge_kutta import FixedImplicitRungeKutta
from implicitcore.ode_solvers.implicit_tableaus import ImplicitTableau
from implicitcore.ode_solvers.newton_step import NewtonStep
from implicitcore.tensors import host
from implicitcore.testing.trajectories import logistic


@dataclass(frozen=True, kw_only=True)
class FixedESDIRK(FixedImplicitRungeKutta):
    """The method of ESDIRK in equal steps."""

    tableau: ClassVar[ImplicitTableau] = tableaus.ESDIRK436


FIXED = [ic.ImplicitEuler, ic.Trapezoid, FixedESDIRK]
NEWTON = ic.Newton(tol=0.01)
ROBERTSON = [
    [0.9851721138609898, 3.386395378974946e-05, 0.014794022185218789],
    [0.7158270687194033, 9.185534764558074e-06, 0.2841637457458296],
    [0.1073004285378054, 4.800166972571747e-07, 0.892699091445494],
]
VAN_DER_POL = {
    100: [-1.366060491993742, 0.015765221372681156],
    1000: [-1.3547459194865916, 0.0016217887275974503],
}
each_adaptive = pytest.mark.parametrize(
    "method", [ic.ESDIRK, ic.Kvaerno5, ic.RadauIIA5], ids=lambda method: method.__name__
)
each_dense = pytest.mark.parametrize("dense_below", [64, 0], ids=["dense", "matrix-free"])


def times(*values, dtype=torch.float64) -> Tensor:
    return torch.tensor(values, dtype=dtype)


def run(field, z0, grid, solver, x=None):
    with torch.no_grad():
        return ic.integrate(field, z0, x, times=grid, solver=solver, on_failure="ignore")


def prothero_robinson(t, z, x):
    """The solution from 0 is sin t, whatever the rate -x."""
    return torch.cos(t) - x * (z - torch.sin(t))


def robertson(t, z, x):
    a, b, c = z.unbind(1)
    return torch.stack(
        (-0.04 * a + 1e4 * b * c, 0.04 * a - 1e4 * b * c - 3e7 * b * b, 3e7 * b * b), 1
    )


def van_der_pol(t, z, x):
    return torch.stack((z[:, 1], x[:, 0] * (1 - z[:, 0] ** 2) * z[:, 1] - z[:, 0]), 1)


@pytest.mark.parametrize("method", FIXED)
def test_the_error_falls_with_the_order(method):
    problem = logistic()
    exact = problem.trajectory(times(2))[0]
    errors = []
    for parts in (16, 32, 64):
        solver = method(dt=2 / parts, rtol=1e-12, atol=1e-12)
        solution = run(problem.field, problem.z0, times(0, 2), solver, problem.x).raise_if_failed()
        errors.append((solution.z[-1] - exact).norm().item())
    slopes = [math.log2(a / b) for a, b in zip(errors, errors[1:], strict=False)]
    assert slopes[-1] == pytest.approx(method.tableau.order, abs=0.15)


def test_there_and_back_again():
    problem = logistic(fastest=1.0)
    solver = ic.ESDIRK(rtol=1e-8, atol=1e-10)
    end = run(problem.field, problem.z0, times(0, 1), solver, problem.x).z[-1]
    back = run(problem.field, end, times(1, 0), solver, problem.x).raise_if_failed()
    assert torch.allclose(back.z[-1], problem.z0, rtol=1e-6)


@each_dense
def test_a_smaller_tolerance_gives_a_smaller_error(dense_below):
    problem = logistic()
    exact, errors = problem.trajectory(times(1))[0], []
    for rtol in (1e-3, 1e-5, 1e-7):
        solver = ic.ESDIRK(rtol=rtol, atol=rtol, dense_below=dense_below)
        errors.append(
            (run(problem.field, problem.z0, times(0, 1), solver, problem.x).z[-1] - exact)
            .abs()
            .max()
            .item()
        )
        assert errors[-1] < 20 * rtol
    assert errors == sorted(errors, reverse=True)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_steps_follow_the_solution_and_not_the_fastest_rate(dtype):
    rate = torch.tensor([[1.0], [1e3], [1e6]], dtype=dtype)
    z0, grid = torch.zeros(3, 2, dtype=dtype), times(0, 10, dtype=dtype)
    solution = run(prothero_robinson, z0, grid, ic.ESDIRK(), rate).raise_if_failed()
    assert solution.z.dtype == dtype
    assert (solution.z[-1] - math.sin(10)).abs().max() < 1e-3
    assert int(solution.steps.max()) < 60
    explicit = run(prothero_robinson, z0, grid, ic.Tsit5(), rate)
    assert explicit.status.tolist() == [
        ic.Status.CONVERGED,
        explicit.status[1],
        ic.Status.MAX_STEPS,
    ]
    assert explicit.steps[1] > 10 * solution.steps[1]


@each_adaptive
def test_robertson(method):
    """Reference: scipy.integrate.solve_ivp, Radau, rtol=1e-12, atol=1e-18."""
    solver = method(rtol=1e-7, atol=1e-12)
    solution = run(
        robertson, times(1, 0, 0)[None], times(0, 0.4, 40, 1e4), solver
    ).raise_if_failed()
    expected = torch.tensor(ROBERTSON, dtype=torch.float64)
    assert torch.allclose(solution.z[1:, 0], expected, rtol=1e-5, atol=0)
    assert torch.allclose(
        solution.z.sum(2), torch.ones(4, 1, dtype=torch.float64), rtol=0, atol=1e-12
    )
    assert int(solution.steps[0]) < 350


@each_adaptive
@pytest.mark.parametrize("rate", [100, 1000])
def test_van_der_pol(rate, method):
    """Reference: scipy.integrate.solve_ivp, Radau, rtol=1e-12, atol=1e-14; the time is one and a
    half jumps."""
    x = torch.tensor([[float(rate)]], dtype=torch.float64)
    solver = method(rtol=1e-6, atol=1e-8, max_steps=3000)
    solution = run(
        van_der_pol, times(2, 0)[None], times(0, 1.5 * rate), solver, x
    ).raise_if_failed()
    expected = torch.tensor(VAN_DER_POL[rate], dtype=torch.float64)
    assert torch.allclose(solution.z[-1, 0], expected, rtol=1e-3)
    assert int(solution.steps[0]) < 500


@pytest.mark.parametrize("method", FIXED)
def test_one_step_across_a_hundred_million_time_scales(method):
    solution = run(
        lambda t, z, x: -1e8 * z, torch.ones(2, 3, dtype=torch.float64), times(0, 1), method(dt=1.0)
    ).raise_if_failed()
    size = solution.z[-1].abs().max().item()
    assert size == pytest.approx(1, abs=1e-6) if method is ic.Trapezoid else size < 1e-6


@pytest.mark.parametrize("batch", [1, 5])
@pytest.mark.parametrize(
    "root_solver",
    [
        ic.Newton(tol=1e-6),
        ic.Newton(tol=1e-6, dense_below=0),
        ic.Broyden(tol=1e-6),
        ic.Broyden(tol=1e-6, compact=True),
        ic.Anderson(tol=1e-6),
        ic.Picard(tol=1e-6),
        ic.GMRES(tol=1e-6),
        ic.PseudoTransient(tol=1e-6),
        ic.SteadyState(tol=1e-6),
        ic.Chain((ic.Picard(tol=1e-6, max_steps=3), ic.Newton(tol=1e-6))),
    ],
    ids=lambda solver: type(solver).__name__,
)
def test_every_root_solver_solves_the_same_stages(root_solver, batch):
    """By the matrix of the step all of them contract; without it those do that need no contraction,
    on what is hardly stiff."""
    x = torch.logspace(0, 5, batch, dtype=torch.float64)[:, None]
    field = lambda t, z, x: torch.cos(t) - x * (0.1 * z**3 + z)  # noqa: E731
    z0, grid = torch.ones(batch, 3, dtype=torch.float64), times(0, 0.5, 1)
    expected = run(
        field, z0, grid, FixedESDIRK(dt=0.1, root_solver=ic.Newton(tol=1e-10)), x
    ).raise_if_failed()
    found = run(field, z0, grid, FixedESDIRK(dt=0.1, root_solver=root_solver), x).raise_if_failed()
    assert torch.allclose(found.z, expected.z, rtol=1e-6, atol=1e-8)
    mild = FixedESDIRK(dt=0.1, root_solver=root_solver, dense_below=0)
    assert torch.allclose(
        run(field, z0[:1], grid, mild, x[:1]).raise_if_failed().z,
        expected.z[:, :1],
        rtol=1e-6,
        atol=1e-8,
    )


@pytest.mark.parametrize(
    "solver",
    [ic.ESDIRK(root_solver=NEWTON), ic.ESDIRK(), ic.ESDIRK(dense_below=200)],
    ids=["newton-krylov", "default", "factors-of-earlier-steps"],
)
def test_a_large_stiff_system(solver):
    """The heat equation on 140 points, with and without a matrix: rates from 10 to 8e4."""
    n = 140
    lattice = torch.arange(1, n + 1, dtype=torch.float64) / (n + 1)
    z0 = torch.sin(math.pi * lattice)[None]
    heat = lambda t, z, x: torch.nn.functional.pad(z, (1, 1)).diff(n=2) * (n + 1) ** 2  # noqa: E731
    solution = run(heat, z0, times(0, 0.2), solver).raise_if_failed()
    exact = z0 * math.exp(-0.2 * 4 * (n + 1) ** 2 * math.sin(math.pi / (2 * (n + 1))) ** 2)
    assert (solution.z[-1] - exact).abs().max() < 1e-3
    assert int(solution.steps[0]) < 30


def test_evaluations_are_all_counted():
    seen = []

    def field(t, z, x):
        seen.append(1)
        return -z * z

    z0, grid = torch.ones(2, 3, dtype=torch.float64), times(0, 1)
    solution = run(field, z0, grid, ic.ImplicitEuler(dt=0.25, root_solver=ic.Broyden(tol=0.01)))
    assert solution.steps.tolist() == [4, 4]
    assert solution.evaluations == len(seen) + 4 * 3  # the Jacobian of a step is n products
    seen.clear()
    free = run(
        field, z0, grid, ic.ImplicitEuler(dt=0.25, root_solver=ic.Broyden(tol=0.01), dense_below=0)
    )
    assert free.evaluations == len(seen)


def test_a_stage_costs_few_evaluations():
    """The matrix of a step serves its five stages: three evaluations each where z is smooth, n = 2
    products and one a step."""
    solution = run(
        van_der_pol,
        times(2, 0)[None],
        times(0, 50),
        ic.ESDIRK(rtol=1e-5),
        torch.full((1, 1), 100.0, dtype=torch.float64),
    )
    assert solution.raise_if_failed().evaluations / solution.steps.item() < 22


@each_dense
@pytest.mark.parametrize("method", [ic.ImplicitEuler, ic.Trapezoid])
def test_a_stage_without_a_solution_is_a_failed_sample(method, dense_below):
    """z = z0 + dt (z^2 + 1) has no real root at this dt."""
    x = times(1, 0, 0)[:, None]
    field = lambda t, z, x: x * (z * z + 1) - z * (1 - x)  # noqa: E731
    solver = method(dt=1.0, dense_below=dense_below)
    solution = run(field, torch.ones(3, 1, dtype=torch.float64), times(0, 1), solver, x)
    assert solution.status.tolist() == [
        ic.Status.NON_FINITE,
        ic.Status.CONVERGED,
        ic.Status.CONVERGED,
    ]
    assert solution.z[-1, 0, 0] == 1  # the last state that was reached
    alone = run(field, torch.ones(2, 1, dtype=torch.float64), times(0, 1), solver, x[1:])
    assert torch.equal(solution.z[:, 1:], alone.z)


def test_a_stage_that_is_not_solved_shortens_the_step():
    """One iteration is too few for a long step, and enough for a short one."""
    weak = ic.ESDIRK(root_solver=ic.Picard(tol=0.01, max_steps=4), dense_below=0, first_step=1.0)
    problem = logistic()
    solution = run(problem.field, problem.z0, times(0, 1), weak, problem.x).raise_if_failed()
    strong = run(problem.field, problem.z0, times(0, 1), ic.ESDIRK(first_step=1.0), problem.x)
    assert bool((solution.steps > strong.steps).any())
    assert (solution.z[-1] - problem.trajectory(times(1))[0]).abs().max() < 1e-2


@each_adaptive
def test_a_solver_itself_refuses_a_complex_state(method):
    """``integrate`` gives it real and imaginary parts; the way back of an adjoint is not packed."""
    z0 = torch.ones(1, 1, dtype=torch.complex128, requires_grad=True)
    gradient = ic.Adjoint(solver=method())
    found = ic.integrate(
        lambda t, z, x: 1j * z, z0, times=times(0, 1), solver=ic.Tsit5(), gradient=gradient
    )
    said = f"{method.__name__}: expected a real state, received torch.complex128"
    with pytest.raises(ic.InputError, match=said):
        found.z.abs().sum().backward()


@pytest.mark.parametrize(
    ("dtype", "error"), [(torch.bfloat16, 3e-2), (torch.float16, 1e-2), (torch.float32, 2e-3)]
)
@pytest.mark.parametrize(
    "solver",
    [ic.Trapezoid(dt=0.1), ic.ESDIRK(), ic.Kvaerno5(), ic.RadauIIA5()],
    ids=lambda s: type(s).__name__,
)
def test_every_dtype_keeps_its_own(solver, dtype, error):
    z0 = torch.tensor([[1.0, 2.0], [0.5, -1.0]], dtype=dtype)
    solution = run(lambda t, z, x: -z, z0, times(0, 0.5, 1), solver).raise_if_failed()
    assert solution.z.dtype == dtype
    assert (solution.z[-1].double() - z0.double() * math.exp(-1)).abs().max() < error


def test_a_long_step_to_a_steady_state_is_a_newton_iteration():
    field = lambda z, x: torch.stack((x[:, 0] - z[:, 0] ** 3, 1e4 * (z[:, 0] - z[:, 1])), 1)  # noqa: E731
    x = torch.tensor([[8.0], [27.0]], dtype=torch.float64)
    solver = ic.SteadyState(ode_solver=ic.ImplicitEuler(dt=1e6), tol=1e-8, max_steps=20)
    solution = ic.find_root(
        field, torch.ones(2, 2, dtype=torch.float64), x, solver=solver
    ).raise_if_failed()
    assert torch.allclose(
        solution.z, torch.tensor([[2.0, 2.0], [3.0, 3.0]], dtype=torch.float64), rtol=1e-6
    )
    assert int(solution.steps.max()) <= 4


def test_built_from_a_config():
    config = {"name": "esdirk", "rtol": 1e-4, "root_solver": {"name": "newton", "tol": 0.1}}
    assert ic.create("ode_solver", config) == ic.ESDIRK(rtol=1e-4, root_solver=ic.Newton(tol=0.1))
    with pytest.raises(ic.ConfigError, match="root_solver.toll"):
        ic.create(
            "ode_solver", {"name": "implicit_euler", "root_solver": {"name": "newton", "toll": 0.1}}
        )
    solver = {"name": "steady_state", "ode_solver": {"name": "trapezoid", "dt": 1.0}}
    assert ic.create("root_solver", solver) == ic.SteadyState(ode_solver=ic.Trapezoid(dt=1.0))


def test_the_way_between_the_steps():
    rate = torch.tensor([[10.0], [1e5]], dtype=torch.float64)
    for dense_below in (64, 0):
        solver = ic.ESDIRK(rtol=1e-6, root_solver=NEWTON, dense_below=dense_below)
        z0, grid = torch.zeros(2, 2, dtype=torch.float64), times(0, 3)
        with torch.no_grad():
            solution = ic.integrate(
                prothero_robinson, z0, rate, times=grid, solver=solver, dense=True
            ).raise_if_failed()
        assert (solution.interpolate(times(1.3)) - math.sin(1.3)).abs().max() < 1e-3


@pytest.mark.parametrize("n", [1, 3])
def test_a_field_that_does_not_depend_on_the_state(n):
    x = torch.ones(2, n, dtype=torch.float64, requires_grad=True)
    grid = torch.tensor([0.0, 1.0, 2.0], dtype=torch.float64)
    found = ic.integrate(lambda t, z, x: t * x, x * 0, x, times=grid, solver=ic.ESDIRK())
    assert torch.allclose(found.z, (grid**2 / 2)[:, None, None].expand(3, 2, n), atol=1e-9)
    slope = torch.autograd.grad(found.z[-1].sum(), x)[0]
    assert torch.allclose(slope, torch.full_like(slope, 2.0))


@each_adaptive
def test_a_field_that_ends_is_told_in_few_evaluations(method):
    """z' = -sqrt(z) reaches zero at t = 2, and is NaN below it."""
    solution = run(
        lambda t, z, x: -torch.sqrt(z), torch.ones(1, 1).double(), times(0, 3), method(rtol=1e-4)
    )
    assert solution.status.tolist() == [ic.Status.NON_FINITE]
    assert solution.z[-1].abs().max() < 1e-6
    assert solution.evaluations < 8000


def test_stages_beyond_the_step_do_not_meet_a_jump():
    z0, field = torch.ones(1, 1, dtype=torch.float64), lambda t, z, x: -z * (t < 0.5)
    for gradient in (None, ic.Checkpointed()):
        with pytest.raises(ic.InputError, match="step_at: a stage of Kvaerno5 lies beyond"):
            ic.integrate(
                field, z0, times=times(0, 1), solver=ic.Kvaerno5(), step_at=[0.5], gradient=gradient
            )


def test_radau_refuses_a_state_that_is_too_large():
    with pytest.raises(ic.InputError, match="n <= dense_below=64, received n = 65; use ESDIRK"):
        run(lambda t, z, x: -z, torch.ones(1, 65).double(), times(0, 1), ic.RadauIIA5())


def stiff_pair(t, z, x):
    return torch.stack((z[:, 1] - z[:, 0], x[:, 0] * (torch.cos(z[:, 0]) - z[:, 1])), 1)


@each_adaptive
def test_a_field_that_captures_a_tensor_of_each_sample(method):
    """It cannot be called with each sample several times: the numbers are those of one that can."""
    rate = torch.tensor([[10.0], [1e3], [1e5]], dtype=torch.float64)
    z0, grid = torch.ones(3, 2, dtype=torch.float64), times(0, 2)
    found = run(lambda t, z, x: stiff_pair(t, z, rate), z0, grid, method()).raise_if_failed()
    expected = run(stiff_pair, z0, grid, method(), rate).raise_if_failed()
    assert torch.allclose(found.z, expected.z, rtol=1e-12, atol=0)
    assert torch.equal(found.steps, expected.steps)


def test_a_field_that_normalises_over_the_batch_is_not_called_with_copies():
    """One sample: its batch norm sees the state alone, and no other stage."""
    field = lambda t, z, x: 1 - z + (z - z.mean((0, 2), keepdim=True))  # noqa: E731
    z0 = torch.rand(1, 2, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    tight: dict[str, Any] = {"rtol": 1e-8, "atol": 1e-10}
    found = run(field, z0, times(0, 2), ic.RadauIIA5(**tight)).raise_if_failed()
    expected = run(field, z0, times(0, 2), ic.DOP853(**tight)).raise_if_failed()
    assert torch.allclose(found.z, expected.z, rtol=1e-6)


@each_adaptive
def test_the_device_is_looked_at_once_a_step(method, monkeypatch):
    """By the solver; a second look where the iterations were too few."""
    looks = []
    monkeypatch.setattr(
        NewtonStep, "_look", lambda self, own=NewtonStep._look: (looks.append(1), own(self))[1]
    )
    solution = run(robertson, times(1, 0, 0)[None], times(0, 40), method(rtol=1e-4, atol=1e-8))
    assert len(looks) <= 2 * solution.raise_if_failed().steps.item()


@each_adaptive
def test_iterations_end_where_they_are_done(method, monkeypatch):
    """On the host each stage gets what it needs. An accelerator guesses the number and looks at all
    stages once: it makes more of them, and the same numbers."""
    rate = torch.tensor([[1.0], [30.0], [1e3]], dtype=torch.float64)
    z0, grid = torch.tensor([[2.0, 0.0]] * 3).double(), times(0, 5)
    found = {}
    for looks in (True, False):
        monkeypatch.setattr(host, "on_host", lambda tensor, looks=looks: looks)
        found[looks] = run(van_der_pol, z0, grid, method(rtol=1e-5), rate).raise_if_failed()
    assert torch.equal(found[True].z, found[False].z)
    assert torch.equal(found[True].steps, found[False].steps)
    assert found[True].evaluations < found[False].evaluations
