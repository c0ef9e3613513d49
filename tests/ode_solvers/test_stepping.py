"""A loop of one's own: one step at a time."""

from __future__ import annotations

import pytest
import torch
from support import trajectory_solvers
from support.trajectory_solvers import BlackBox, stepwise

import implicitcore as ic
from implicitcore.ode_solvers.implicit_method import ImplicitMethod
from implicitcore.testing.trajectories import driven, logistic

ADAPTIVE = (*trajectory_solvers.ADAPTIVE, ic.AdaptiveHeun, ic.Fehlberg21)
DTYPES = [torch.float32, torch.float64, torch.complex128]
CASES = [
    pytest.param(solver, dtype, id=f"{type(solver).__name__}-{dtype}")
    for solver in stepwise()
    for dtype in DTYPES
    if not (dtype.is_complex and isinstance(solver, ImplicitMethod))
]


def real(*values, **options):
    return torch.tensor(values, dtype=torch.float64, **options)


def to_the_end(now, end, most=2000):
    """The loop that a user writes."""
    steps = 0
    while bool((now.t != end).any()):
        now, steps = now.step(until=end), steps + 1
        assert steps < most
    return now, steps


@pytest.mark.parametrize(("solver", "dtype"), CASES)
def test_a_loop_by_hand_is_integrate(solver, dtype):
    """Values, gradients, steps and evaluations, of samples with step sizes of their own."""
    problem = logistic(4)
    z0 = problem.z0.detach().to(dtype).requires_grad_()
    rate = problem.x.detach().to(z0.real.dtype)
    capacity = problem.captured[0].detach().to(z0.real.dtype)
    field = lambda t, z, x: rate * z * (1 - z / capacity) * (1 + t)  # noqa: E731
    times = real(0.25, 1.0)
    expected = ic.integrate(field, z0, times=times, solver=solver)
    now, steps = to_the_end(ic.stepping(field, z0, t=0.25, solver=solver), 1.0)
    low = 50 * torch.finfo(dtype).eps
    assert now.z.dtype is dtype
    assert torch.allclose(now.z, expected.z[-1], rtol=low, atol=low)
    assert steps == int(expected.steps.max())
    got = torch.autograd.grad(now.z.abs().sum(), z0)[0]
    wanted = torch.autograd.grad(expected.z[-1].abs().sum(), z0)[0]
    assert torch.allclose(got, wanted, rtol=100 * low, atol=100 * low)


def test_it_costs_what_integrate_costs():
    problem, times = driven(3), real(0.0, 1.0)
    for solver in (ic.Tsit5(), ic.RK4(dt=0.1), ic.Adams(), ic.Bosh3()):
        with torch.no_grad():
            expected = ic.integrate(
                problem.field, problem.z0, problem.x, times=times, solver=solver
            )
            start = ic.stepping(problem.field, problem.z0, problem.x, solver=solver)
            spent = to_the_end(start, 1.0)[0].evaluations
            # integrate may ask f once more, whether it mixes samples.
            assert spent in (expected.evaluations, expected.evaluations - 1)


def test_steps_of_a_size_of_ones_own():
    z0, dt = real([1.0], [2.0]), real(0.1, -0.2)
    now = ic.stepping(lambda t, z, x: -z, z0, t=real(0.0, 5.0), solver="rk4")
    before = now
    for _ in range(10):
        now = now.step(dt)
    assert torch.allclose(now.t, real(1.0, 3.0))
    assert torch.allclose(now.z, z0 * torch.exp(-10 * dt)[:, None], rtol=1e-4)
    assert before.t.tolist() == [0.0, 5.0]
    assert torch.equal(before.z, z0)
    stays = now.step(real(0.1, 0.0))
    assert stays.accepted.tolist() == [True, False]
    assert torch.equal(stays.z[1], now.z[1])


@pytest.mark.parametrize(
    "solver", [s for s in stepwise() if isinstance(s, ADAPTIVE)], ids=lambda s: type(s).__name__
)
def test_a_step_that_is_too_long_is_refused_by_the_sample_that_it_is_too_long_for(solver):
    rate = real([0.01], [40.0])
    now = ic.stepping(
        lambda t, z, x: -x * (z - torch.cos(x * t)), real([1.0], [0.0]), rate, solver=solver
    )
    tried = now.step(1.0)
    assert tried.accepted.tolist() == [True, False]
    assert tried.t.tolist() == [1.0, 0.0]
    assert torch.equal(tried.z[1], now.z[1])
    assert tried.error[0] <= 1 < tried.error[1]
    assert tried.size is not None
    assert tried.size[1] < 1.0
    assert now.step(1.0, control=False).accepted.tolist() == [True, True]


def test_a_sample_that_is_not_finite_stays_and_leaves_the_others():
    field = lambda t, z, x: torch.where(z > 1.5, torch.nan, -z)  # noqa: E731
    z0 = real([1.0], [2.0], requires_grad=True)
    now = ic.stepping(field, z0, solver=ic.RK4()).step(0.1)
    assert now.accepted.tolist() == [True, False]
    assert now.z.isfinite().all()


@pytest.mark.parametrize(
    "solver", [ic.RK4(), ic.Tsit5(rtol=0.1, atol=0.1), ic.Adams(rtol=0.1, atol=0.1)], ids=str
)
def test_what_f_gives_beyond_its_domain_is_in_no_gradient(solver):
    theta, z0 = real(1.0, requires_grad=True), real([4.0], [1e-4])
    now = ic.stepping(lambda t, z, x: -theta * z.sqrt(), z0, solver=solver).step(0.5)
    assert now.accepted.tolist() == [True, False]
    slope = torch.autograd.grad(now.z.sum(), theta)[0]  # z = (2 - theta t / 2)^2
    assert slope.item() == pytest.approx(-0.5 * (2 - 0.25), rel=0.2)


def test_a_state_may_be_changed_between_steps_and_be_any_pytree():
    swing = lambda t, z, x: {"q": z["p"], "p": -z["q"]}  # noqa: E731
    z0 = {"q": torch.ones(2, 1), "p": torch.zeros(2, 1)}
    now = ic.stepping(swing, z0, solver={"name": "rk4"})
    for _ in range(5):
        now = now.step(0.1)
    kicked = {"q": now.z["q"], "p": now.z["p"] + 1}
    on = ic.stepping(swing, kicked, t=now.t, solver="rk4").step(0.1)
    assert on.z["q"].shape == (2, 1)
    assert on.t.tolist() == pytest.approx([0.6, 0.6])


@pytest.mark.parametrize(
    ("call", "error", "complaint"),
    [
        (lambda now: now.step(), ic.InputError, "either dt or until"),
        (lambda now: now.step(0.1, until=1.0), ic.InputError, "either dt or until"),
        (lambda now: now.step(torch.ones(3)), ic.InputError, r"dt: .*shape \[2\], received shape"),
        (lambda now: now.step("soon"), ic.InputError, "dt: .*received 'soon'"),
        (lambda now: again(now, solver=BlackBox()), ic.InputError, "BlackBox shows no steps"),
        (lambda now: again(now, solver="tsit6"), ic.ConfigError, "tsit5"),
        (lambda now: again(now, t=torch.ones(3)), ic.InputError, r"t: .*shape \[2\]"),
    ],
)
def test_what_cannot_be_stepped(call, error, complaint):
    now = ic.stepping(lambda t, z, x: -z, torch.ones(2, 1))
    with pytest.raises(error, match=complaint):
        call(now)


def again(now, **options):
    return ic.stepping(lambda t, z, x: -z, now.z, **options)
