"""Output times between the steps: what they cost, and how right z is there."""

from __future__ import annotations

import pytest
import torch
from support.trajectory_solvers import ADAPTIVE

import implicitcore as ic
from implicitcore.ode_solvers.dense import Interpolant
from implicitcore.testing.trajectories import driven, logistic, trajectories

each_method = pytest.mark.parametrize("method", ADAPTIVE, ids=lambda m: m.__name__)
STRATEGIES = [ic.Unrolled(), ic.Checkpointed(), ic.Checkpointed(checkpoints=2)]


def real(*values):
    return torch.tensor(values, dtype=torch.float64)


def line(count, end=1.0):
    return torch.linspace(0, end, count, dtype=torch.float64)


def swing(t, z, x):
    return torch.stack((z[:, 1], -z[:, 0]), 1)


def largest(difference):
    return difference.detach().abs().max().item()


@each_method
@pytest.mark.parametrize("rtol", [1e-3, 1e-6])
def test_the_error_between_the_steps_is_that_of_the_steps(method, rtol):
    z0, end = real(1.0, 0.0)[None], 6.0
    solver = method(rtol=rtol, atol=rtol / 100, max_steps=5000)
    with torch.no_grad():
        found = ic.integrate(swing, z0, times=line(400, end), solver=solver, dense=True)
        assert isinstance(found.interpolant, Interpolant)
        stops = found.interpolant.ends[0].unique()
        at_steps = found.interpolate(stops)[:, 0]
    exact = lambda t: torch.stack((t.cos(), -t.sin()), 1)  # noqa: E731
    between, there = largest(found.z[:, 0] - exact(found.times)), largest(at_steps - exact(stops))
    assert between < 1.5 * there + 0.2 * rtol


@each_method
def test_many_times_cost_what_two_cost_and_change_no_step(method):
    problem, solver = logistic(4), method()
    with torch.no_grad():
        two, many, hit = (
            ic.integrate(
                problem.field, problem.z0, problem.x, times=times, solver=solver, hit_times=hit
            )
            for times, hit in ((line(2, 3), False), (line(1000, 3), False), (line(100, 3), True))
        )
    assert torch.equal(many.steps, two.steps)
    assert torch.equal(many.z[-1], two.z[-1])
    extra = {ic.DOP853: 3 * int(two.steps.max())}.get(method, 1)
    assert two.evaluations <= many.evaluations <= two.evaluations + extra
    assert int(hit.steps.min()) >= 99


@pytest.mark.parametrize("gradient", STRATEGIES, ids=str)
@each_method
def test_gradients_through_interpolated_states_are_exact(method, gradient):
    """Those of the discrete integration: equal in all strategies, and near the closed form."""
    implicit = method in (ic.ESDIRK, ic.Kvaerno5)
    if implicit and isinstance(gradient, ic.Checkpointed) and gradient.checkpoints:
        pytest.skip("slow, and the same loop")
    problem, times = driven(3), real(0.0, 0.05, 0.051, 0.4, 0.77, 1.0)
    solver = method(rtol=1e-7, atol=1e-9, max_steps=3000)
    weights = torch.randn(6, 3, 4, generator=torch.Generator().manual_seed(0), dtype=times.dtype)

    def gradients(strategy):
        found = ic.integrate(
            problem.field, problem.z0, problem.x, times=times, solver=solver, gradient=strategy
        )
        return found.z, torch.autograd.grad((found.z * weights).sum(), problem.leaves)

    z, found = gradients(gradient)
    expected = problem.trajectory(times)
    assert torch.allclose(z, expected, rtol=1e-4)
    exact = torch.autograd.grad((expected * weights).sum(), problem.leaves)
    z_unrolled, unrolled = gradients(ic.Unrolled())
    assert torch.equal(z, z_unrolled)
    for a, b, c in zip(found, unrolled, exact, strict=True):
        assert torch.allclose(a, b, rtol=1e-11)
        assert ((a - c).norm() / c.norm()).item() < 1e-4


def test_the_adjoint_takes_cotangents_at_the_times():
    problem, times = logistic(4, fastest=2.0), line(9)
    solver = ic.Tsit5(rtol=1e-8, atol=1e-10)
    found = ic.integrate(
        problem.field,
        problem.z0,
        problem.x,
        times=times,
        solver=solver,
        gradient=ic.Adjoint(),
    )
    exact = problem.trajectory(times)
    wanted = torch.autograd.grad(exact.square().sum(), problem.leaves)
    for a, b in zip(
        torch.autograd.grad(found.z.square().sum(), problem.leaves), wanted, strict=True
    ):
        assert ((a - b).norm() / b.norm()).item() < 1e-5


@pytest.mark.parametrize("problem", trajectories(), ids=str)
def test_hit_times_is_right_and_so_are_decreasing_times(problem):
    solver = ic.Tsit5(rtol=1e-9, atol=1e-11, max_steps=5000)
    for times in (real(0, 0.1, 0.11, 0.6, 1), real(0, -0.1, -0.11, -0.4)):
        for hit in (False, True):
            found = ic.integrate(
                problem.field, problem.z0, problem.x, times=times, solver=solver, hit_times=hit
            )
            expected = problem.trajectory(times)
            assert torch.allclose(found.z, expected, rtol=1e-7, atol=1e-8)


def test_the_values_are_those_of_dense_output():
    problem, times = logistic(5, fastest=9.0), line(60, 2)
    with torch.no_grad():
        found = ic.integrate(problem.field, problem.z0, problem.x, times=times, dense=True)
    assert len(set(found.steps.tolist())) > 1
    assert torch.allclose(found.interpolate(times), found.z, rtol=1e-12)


def test_an_event_cuts_the_times_off():
    fall = lambda t, z, x: torch.stack((z[:, 1], -torch.ones_like(z[:, 1])), 1)  # noqa: E731
    z0 = torch.tensor([[0.5, 0.0], [2.0, 0.0]], dtype=torch.float64, requires_grad=True)
    found = ic.integrate(fall, z0, times=line(41, 4), event=lambda t, z, x: z[:, 0])
    assert found.event_times is not None
    assert found.event_times.tolist() == pytest.approx([1.0, 2.0])
    for i, (height, end) in enumerate(((0.5, 1.0), (2.0, 2.0))):
        t = found.times.clamp(max=end)
        assert torch.allclose(found.z[:, i, 0], height - t * t / 2, atol=1e-9)


def test_steps_are_counted_from_stop_to_stop():
    decay = lambda t, z, x: -z  # noqa: E731
    found = ic.integrate(decay, torch.ones(1, 1), times=torch.linspace(0, 1, 1101))
    assert found.raise_if_failed().z[-1].item() == pytest.approx(0.3679, abs=1e-3)
    for solver in (ic.Tsit5(max_steps=5), ic.RK4(dt=0.0005, max_steps=5)):
        times = torch.linspace(0, 1, 1101)
        found = ic.integrate(
            decay, torch.ones(2, 1), times=times, solver=solver, hit_times=True
        ).raise_if_failed()
        assert int(found.steps.min()) >= 1100
    lone = ic.integrate(
        lambda t, z, x: -x * z,
        torch.ones(2, 1),
        real(1.0, 300.0).float()[:, None],
        times=real(0.0, 0.1, 2.0),
        solver=ic.Bosh3(max_steps=25),
        hit_times=True,
    )
    assert lone.status.tolist() == [ic.Status.CONVERGED, ic.Status.MAX_STEPS]


JUMPS = [0.3, 1.1]


def jumping(t, z, x):
    rate = torch.where(t < JUMPS[0], 1.0, torch.where(t < JUMPS[1], -3.0, 2.0))
    return rate.to(z.dtype).expand_as(z) * x


def jumped(t):
    a, b = JUMPS
    return t.clamp(max=a) - 3 * (t.clamp(min=a, max=b) - a) + 2 * (t.clamp(min=b) - b)


@pytest.mark.parametrize("gradient", [ic.Unrolled(), ic.Checkpointed(), ic.Adjoint(ic.Tsit5())])
@pytest.mark.parametrize("method", [ic.Tsit5, ic.Bosh3, ic.Adams, ic.ESDIRK, ic.RK4])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_no_stage_sees_the_other_side_of_a_jump(method, gradient, dtype):
    z0, x = torch.zeros(2, 1, dtype=dtype), torch.ones(2, 1, dtype=dtype, requires_grad=True)
    times = real(0.0, 0.1, 0.3, 0.9, 1.5, 2.0)
    found = ic.integrate(
        jumping, z0, x, times=times, step_at=JUMPS, solver=method(), gradient=gradient
    ).raise_if_failed()
    exact = jumped(times).to(dtype)
    rounding = 200 * torch.finfo(dtype).eps
    assert largest(found.z[:, 0, 0] - exact) < rounding
    assert torch.equal(found.z[:, 0], found.z[:, 1])
    slope = torch.autograd.grad(found.z[:, 0].sum(), x)[0]
    assert slope[0].item() == pytest.approx(exact.sum().item(), abs=10 * rounding)
    if method is ic.Tsit5:
        free = ic.integrate(jumping, z0, x, times=times, solver=method())
        assert found.steps.max() < free.steps.max()


@pytest.mark.parametrize("step_at", [[0.0, 2.0], [2.0], [-1.0, 0.5, 3.0], []], ids=str)
def test_jumps_at_the_ends_and_beyond_them(step_at):
    z0 = torch.ones(2, 1, dtype=torch.float64)
    field = lambda t, z, x: torch.where((t > 0) & (t < 2), -z, torch.nan)  # noqa: E731
    inside = lambda t, z, x: -z  # noqa: E731
    sharp = 2.0 in step_at and 0.0 in step_at
    found = ic.integrate(
        field if sharp else inside,
        z0,
        times=line(5, 2),
        step_at=torch.tensor(step_at, dtype=torch.float64),
        solver=ic.Tsit5(rtol=1e-9, atol=1e-9),
        dense=True,
    ).raise_if_failed()
    assert torch.allclose(found.z[:, 0, 0], torch.exp(-found.times), rtol=1e-8)
    assert torch.allclose(found.interpolate(found.times), found.z, rtol=1e-8)


@pytest.mark.parametrize(
    ("step_at", "complaint"),
    [
        ("soon", "expected a tensor of times, received 'soon'"),
        (torch.zeros(2, 2), r"shape \[2, 2\]"),
        ([0.5, torch.nan], "finite"),
        ([0.5, 0.5 + 1e-15], "further from each other"),
    ],
)
def test_jumps_that_cannot_be_used(step_at, complaint):
    with pytest.raises(ic.InputError, match=complaint):
        ic.integrate(
            lambda t, z, x: -z,
            torch.ones(1, 1, dtype=torch.float64),
            times=line(3),
            step_at=step_at,
        )


@pytest.mark.parametrize("options", [{"hit_times": True}, {"step_at": [0.5]}], ids=str)
def test_a_black_box_shows_no_steps(options):
    class BlackBox(ic.ODESolver):
        def solve(self, system, z0, times, stop=None):
            raise AssertionError

    with pytest.raises(ic.InputError, match="BlackBox does not show its steps"):
        ic.integrate(
            lambda t, z, x: -z, torch.ones(1, 1), times=line(3), solver=BlackBox(), **options
        )
