"""What the loop promises to every ODE solver: per sample, honest status, clear errors."""

from __future__ import annotations

import itertools
import math

import pytest
import torch

import implicitcore as ic
from implicitcore.testing.trajectories import logistic

FIXED = [ic.Euler(), ic.Midpoint(), ic.Heun(), ic.Heun3(), ic.RK4()]
ADAPTIVE = [
    ic.Bosh3(),
    ic.Fehlberg45(),
    ic.Dopri5(),
    ic.Tsit5(),
    ic.Tsit5(first_step=1e-3),
    ic.Tsit5(controller="i"),
    ic.Tsit5(controller="pid"),
    ic.DOP853(),
    ic.Adams(),
]
IMPLICIT = [ic.ImplicitEuler(), ic.Trapezoid(), ic.ESDIRK(), ic.Kvaerno5(), ic.RadauIIA5()]
SOLVERS = [*FIXED, *ADAPTIVE]
each_solver = pytest.mark.parametrize("solver", [*SOLVERS, *IMPLICIT], ids=str)
each_adaptive = pytest.mark.parametrize("solver", ADAPTIVE, ids=str)
GRID = torch.tensor([0.0, 0.35, 1.0], dtype=torch.float64)
OTHERS = [0, 1, 2, 4, 5, 6, 7]


def run(field, z0, x, solver, gradient=None, **options):
    z0, x = z0.detach().clone().requires_grad_(), x.detach().clone().requires_grad_()
    solution = ic.integrate(
        field, z0, x, times=GRID, solver=solver, gradient=gradient, **options, on_failure="ignore"
    )
    return solution, torch.autograd.grad(solution.z.square().sum(), [z0, x])


@each_solver
@pytest.mark.parametrize(
    "gradient", [ic.Unrolled(), ic.Adjoint(drift=10)], ids=lambda g: type(g).__name__
)
def test_a_batch_of_eight_equals_eight_single_solves(solver, gradient):
    # Fast contraction spreads the steps of the samples, and makes the way back unstable.
    problem = logistic(
        fastest=20.0 if solver in ADAPTIVE and isinstance(gradient, ic.Unrolled) else 4.0
    )
    if isinstance(solver, ic.Adams) and isinstance(gradient, ic.Adjoint):
        gradient = ic.Adjoint(ic.Tsit5(), drift=10)
    together, gradients = run(problem.field, problem.z0, problem.x, solver, gradient)
    if solver in ADAPTIVE:
        assert len(set(together.steps.tolist())) > 1, (
            "the samples of this test need different numbers of steps"
        )
    for i in range(8):
        single, single_gradients = run(
            problem.field, problem.z0[i : i + 1], problem.x[i : i + 1], solver, gradient
        )
        assert torch.allclose(single.z[:, 0], together.z[:, i], rtol=1e-12)
        assert single.steps[0] == together.steps[i]
        assert single.status[0] == together.status[i]
        for alone, among in zip(single_gradients, gradients, strict=True):
            assert torch.allclose(alone[0], among[i], rtol=1e-10, atol=1e-14)


@each_solver
@pytest.mark.parametrize("where", ["z0", "x"])
def test_one_nan_sample_leaves_the_other_seven_unchanged(solver, where):
    problem = logistic()
    z0, x = problem.z0.detach().clone(), problem.x.detach().clone()
    clean, clean_gradients = run(problem.field, z0, x, solver)
    (z0 if where == "z0" else x)[3, 0] = torch.nan
    found, gradients = run(problem.field, z0, x, solver)
    assert found.status.tolist() == [
        ic.Status.NON_FINITE if i == 3 else ic.Status.CONVERGED for i in range(8)
    ]
    assert torch.equal(found.z[:, OTHERS], clean.z[:, OTHERS])
    assert torch.equal(found.steps[OTHERS], clean.steps[OTHERS])
    for a, b in zip(gradients, clean_gradients, strict=True):
        assert torch.equal(a[OTHERS], b[OTHERS])
    assert found.steps[3] <= 1, "a NaN from the start is not stepped on"


@each_solver
@pytest.mark.parametrize("hit_times", [True, False])
def test_a_nan_on_the_way_ends_that_sample_with_its_last_finite_state(solver, hit_times):
    field = lambda t, z, x: torch.where((t > 0.5) & (x > 0), torch.nan, 0 * x - z)  # noqa: E731
    x = torch.zeros(8, 1, dtype=torch.float64)
    clean, _ = run(field, torch.ones(8, 2, dtype=torch.float64), x, solver, hit_times=hit_times)
    x[3] = 1
    found, _ = run(field, torch.ones(8, 2, dtype=torch.float64), x, solver, hit_times=hit_times)
    assert found.status.tolist() == [
        ic.Status.NON_FINITE if i == 3 else ic.Status.CONVERGED for i in range(8)
    ]
    assert torch.equal(found.z[:, OTHERS], clean.z[:, OTHERS])
    assert bool(found.z.isfinite().all())
    # The output before it is there; its steps near the NaN are others, and what they interpolate.
    rtol = 1e-5 if hit_times else 2e-3
    assert torch.allclose(found.z[1, 3], clean.z[1, 0], rtol=rtol)
    # Euler's last step ends where the field has no value any more.
    last = 0.6 if isinstance(solver, ic.Euler) and not hit_times else 0.5
    assert found.z[2, 3, 0].item() == pytest.approx(math.exp(-last), rel=0.1)


@each_adaptive
def test_a_blow_up_is_a_status_of_its_sample_alone(solver):
    """dz/dt = z^2 is infinite at t = 1 / z0."""
    z0 = torch.tensor([[0.5], [4.0], [0.9]], dtype=torch.float64)
    solution = ic.integrate(
        lambda t, z, x: z * z,
        z0,
        times=torch.tensor([0.0, 1.0]),
        solver=solver,
        on_failure="ignore",
    )
    assert solution.status.tolist()[::2] == [ic.Status.CONVERGED] * 2
    assert solution.status[1] in (ic.Status.DIVERGED, ic.Status.NON_FINITE)
    assert bool(solution.z.isfinite().all())
    assert torch.allclose(solution.z[-1, [0, 2]], 1 / (1 / z0[[0, 2]] - 1), rtol=3e-2)


@each_adaptive
def test_a_field_that_no_step_resolves_is_called_divergence(solver):
    """Every value is finite and none is like the last."""
    signs = itertools.cycle((1e30, -1e30, 3e30))
    field = lambda t, z, x: torch.full_like(z, next(signs))  # noqa: E731
    solution = ic.integrate(
        field,
        torch.zeros(1, 1, dtype=torch.float64),
        times=torch.tensor([0.0, 1.0]),
        solver=solver,
        on_failure="ignore",
    )
    assert solution.status.tolist() == [ic.Status.DIVERGED]
    assert bool(solution.z.isfinite().all())


@each_adaptive
def test_stiff_dynamics_spend_the_steps_and_say_so(solver):
    few = type(solver)(**{**vars(solver), "max_steps": 60})
    z0 = torch.ones(2, 1, dtype=torch.float64)
    rate = torch.tensor([[1.0], [1e6]], dtype=torch.float64)
    solution = ic.integrate(
        lambda t, z, x: x * (torch.cos(t) - z),
        z0,
        rate,
        times=GRID,
        solver=few,
        on_failure="ignore",
    )
    assert solution.status.tolist() == [ic.Status.CONVERGED, ic.Status.MAX_STEPS]
    assert solution.steps[1] == 60
    assert (
        solution.z[1, 1] == solution.z[2, 1]
    )  # the last accepted state, where the times were not reached
    with pytest.raises(
        ic.SolveError, match="1 max_steps.*implicit method where the dynamics are stiff"
    ):
        solution.raise_if_failed()


@each_solver
def test_too_few_steps_keep_the_last_state(solver):
    few = type(solver)(**{**vars(solver), "max_steps": 2})
    solution = ic.integrate(
        lambda t, z, x: -20 * z, torch.ones(2, 1), times=GRID, solver=few, on_failure="ignore"
    )
    assert solution.status.tolist() == [ic.Status.MAX_STEPS] * 2
    assert solution.steps.tolist() == [2, 2]
    assert bool(solution.z.isfinite().all())


@each_solver
def test_an_empty_batch_is_no_work(solver):
    for gradient in (ic.Unrolled(), ic.Adjoint()):
        z0 = torch.zeros(0, 3, requires_grad=True)
        solution = ic.integrate(
            lambda t, z, x: -z, z0, times=GRID, solver=solver, gradient=gradient
        ).raise_if_failed()
        assert solution.z.shape == (3, 0, 3)
        assert torch.autograd.grad(solution.z.sum(), z0)[0].shape == (0, 3)


@pytest.mark.parametrize(
    ("grid", "complaint"),
    [
        ([0.0, "x"], "received a list"),
        (torch.tensor([0.0]), r"received a tensor of shape \[1\]"),
        (torch.tensor(1.0), r"received a tensor of shape \[\]"),
        (torch.zeros(2, 2, 2), r"received a tensor of shape \[2, 2, 2\]"),
        (
            torch.tensor([0.0, 1.0, 0.5]),
            r"increasing or decreasing values in torch.float32 .*, received \[0.0, 1.0, 0.5\]",
        ),
        (torch.tensor([0.0, float("nan")]), "times: expected increasing or decreasing values"),
        (torch.tensor([0.0, float("inf")]), "finite"),
        (torch.tensor([float("-inf"), 0.0]), "finite"),
        (torch.tensor([0.0, 1j]), "real"),
    ],
    ids=str,
)
def test_times_that_cannot_be_used(grid, complaint):
    with pytest.raises(ic.InputError, match=complaint):
        ic.integrate(lambda t, z, x: -z, torch.ones(2, 2), times=grid, solver=ic.Tsit5())


def test_whole_numbers_are_times():
    solution = ic.integrate(
        lambda t, z, x: z, torch.ones(1, 1), times=torch.tensor([0, 1]), solver=ic.Tsit5()
    )
    assert solution.z[-1].item() == pytest.approx(2.71828, rel=1e-3)
