"""Output times between the steps: what they cost, and how right z is there."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from support.trajectory_solvers import ADAPTIVE, FIXED

import implicitcore as ic
from implicitcore.ode_solvers.dense import Interpolant
from implicitcore.ode_solvers.implicit_runge_kutta import ImplicitRungeKutta
from implicitcore.testing.trajectories import driven, logistic, trajectories

EQUAL: list[Any] = [*FIXED, ic.Leapfrog]
each_equal = pytest.mark.parametrize("method", EQUAL, ids=lambda m: m.__name__)
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


def steps_of(method: Any, dt: float) -> Any:
    """So many that the stages of an implicit method count for nothing."""
    tight = {"rtol": 1e-10, "atol": 1e-12} if issubclass(method, ImplicitRungeKutta) else {}
    options: dict[str, Any] = {"dt": dt, "max_steps": 4000, **tight}
    return method(**options)


@each_equal
def test_a_thousand_times_cost_equal_steps_one_evaluation(method):
    """And nothing where f is known at the end of a step, or not needed there."""
    solver, z0 = method(dt=0.02), real(1.0, 0.0)[None]
    with torch.no_grad():
        two, hundred, thousand, hit = (
            ic.integrate(swing, z0, times=line(count), solver=solver, hit_times=hit)
            for count, hit in ((2, False), (100, False), (1000, False), (1000, True))
        )
    extra = 0 if method is ic.Leapfrog or issubclass(method, ImplicitRungeKutta) else 1
    for many in (hundred, thousand):
        assert torch.equal(many.steps, two.steps)
        assert torch.equal(many.z[-1], two.z[-1])
        assert many.evaluations == two.evaluations + extra
    assert two.steps.tolist() == [50] and hit.steps.tolist() == [999]
    if method is ic.RK4:
        assert (two.evaluations, thousand.evaluations) == (200, 201)


@each_equal
@pytest.mark.parametrize("end", [6.0, -2.0])
def test_the_order_between_equal_steps_is_that_of_the_steps(method, end):
    z0, times, errors, order = real(1.0, 0.0)[None], line(401, end), [], getattr(method, "order", 0)
    exact = torch.stack((times.cos(), -times.sin()), 1)
    with torch.no_grad():
        for steps in (40, 80):
            solver = steps_of(method, abs(end) / steps)
            found = ic.integrate(swing, z0, times=times, solver=solver).z[:, 0] - exact
            errors.append((largest(found), largest(found[:: 400 // steps])))
    order = order or method.tableau.order
    assert math.log2(errors[0][0] / errors[1][0]) > order - 0.3
    assert errors[1][0] < (1.9 if method is ic.Trapezoid else 1.2) * errors[1][1]


@pytest.mark.parametrize("method", [m for m in FIXED if issubclass(m, ImplicitRungeKutta)])
def test_between_the_steps_a_stiff_field_is_no_larger_than_at_their_ends(method):
    """The first state is off the slow one by 1: dt dg/dz is 1000."""
    slow = lambda t, z, x: -1e4 * (z - torch.cos(t)) - torch.sin(t)  # noqa: E731
    z0, times = torch.full((1, 1), 2.0, dtype=torch.float64), line(333)
    with torch.no_grad():
        found = ic.integrate(slow, z0, times=times, solver=method(dt=0.1)).z[:, 0, 0]
    assert largest(found - torch.cos(times)) <= 2.0
    if method is not ic.Trapezoid:  # which keeps the size of what is fast
        assert largest((found - torch.cos(times))[times > 0.2]) < 0.01


@pytest.mark.parametrize("gradient", [*STRATEGIES, ic.Adjoint()], ids=str)
@pytest.mark.parametrize("own_times", [False, True], ids=["", "own times"])
@pytest.mark.parametrize(
    "method",
    [ic.Heun3, ic.RK4, ic.Leapfrog, pytest.param(ic.TRBDF2, marks=pytest.mark.slow(8))],
    ids=lambda m: m.__name__,
)
def test_gradients_between_equal_steps_are_those_of_the_closed_form(method, gradient, own_times):
    """With respect to z0, x and the times: samples forward and backward in time."""
    rate = torch.linspace(0.5, 2.0, 3, dtype=torch.float64)[:, None].requires_grad_()
    z0 = torch.linspace(-1, 1, 6, dtype=torch.float64).view(3, 2).requires_grad_()
    times = real(0.0, 0.033, 0.05, 0.4, 0.777, 1.0)
    if own_times:
        times = torch.stack((times, -times, 2 * times))
    times.requires_grad_()
    field = lambda t, z, x: x * swing(t, z, x)  # noqa: E731
    solver = steps_of(method, 0.004 if method in (ic.TRBDF2, ic.Leapfrog) else 0.02)
    found = ic.integrate(field, z0, rate, times=times, solver=solver, gradient=gradient)
    angle = rate * (times - times[..., :1])
    q, p, cos, sin = *z0.unsqueeze(2).unbind(1), angle.cos(), angle.sin()
    exact = torch.stack((q * cos + p * sin, p * cos - q * sin), 2).transpose(0, 1)
    assert torch.allclose(found.z, exact, atol=2e-5)
    weights = torch.randn(6, 3, 2, generator=torch.Generator().manual_seed(0), dtype=times.dtype)
    leaves = (z0, rate, times)
    gradients = torch.autograd.grad((found.z * weights).sum(), leaves)
    expected = torch.autograd.grad((exact * weights).sum(), leaves)
    for a, b in zip(gradients, expected, strict=True):
        assert ((a - b).norm() / b.norm()).item() < 1e-4
    if not isinstance(gradient, ic.Adjoint):
        unrolled = ic.integrate(field, z0, rate, times=times, solver=solver)
        others = torch.autograd.grad((unrolled.z * weights).sum(), leaves)
        for a, b in zip(gradients, others, strict=True):
            assert torch.allclose(a, b, rtol=1e-11, atol=1e-13)


@pytest.mark.parametrize("gradient", STRATEGIES, ids=str)
@pytest.mark.parametrize("method", [ic.Euler, ic.Midpoint, ic.RK4], ids=lambda m: m.__name__)
def test_a_field_without_a_value_at_the_end_of_a_step(method, gradient):
    """At the last it is infinite with its derivative: where no stage is, nothing tells of it."""
    x = torch.ones(2, 1, dtype=torch.float64, requires_grad=True)
    root = lambda t, z, x: (x - t).rsqrt() * torch.tensor([[0.0], [1.0]])  # noqa: E731
    z0 = torch.zeros(2, 1, dtype=torch.float64)
    found = ic.integrate(
        root, z0, x, times=line(30), solver=method(dt=0.25), gradient=gradient, on_failure="ignore"
    )
    assert bool(found.z.isfinite().all())
    assert found.converged.tolist() == [method is not ic.RK4] * 2
    gradients = torch.autograd.grad(found.z.sum(), x)[0]
    assert bool(gradients.isfinite().all())
    early = found.times < 0.75
    assert largest((found.z[:, 1, 0] - 2 * (1 - (1 - found.times).sqrt()))[early]) < 0.2


@pytest.mark.parametrize("solver", [ic.RK4(dt=0.1), ic.Leapfrog(dt=0.02), ic.TRBDF2(dt=0.02)])
def test_equal_steps_end_at_jumps_events_and_no_output_time(solver):
    times, kick = (
        line(100, 2),
        lambda t, z, x: torch.stack(  # noqa: E731
            (z[:, 1], torch.where(t[:, 0] < 0.95, -1.0, 1.0).to(z)), 1
        ),
    )
    z0 = real(1.0, 0.0)[None]
    found = ic.integrate(kick, z0, times=times, solver=solver, step_at=[0.95])
    late = (times - 0.95).clamp(min=0)
    height = 1 - times**2 / 2 + late**2
    assert torch.allclose(found.z[:, 0, 0], height, atol=2e-3)
    assert found.steps.max() <= 2 / solver.dt + 1
    event = ic.integrate(
        kick, z0, times=times, solver=solver, step_at=[0.95], event=lambda t, z, x: z[:, 0] - 0.6
    )
    assert event.event_times is not None
    end = event.event_times.item()
    assert end == pytest.approx(0.8**0.5, abs=1e-3)
    held = times.clamp(max=end)
    assert torch.allclose(event.z[:, 0, 0], 1 - held**2 / 2, atol=2e-3)


def test_equal_steps_of_complex_states():
    z0 = torch.tensor([[1 + 1j], [2j]], dtype=torch.complex128)
    turn = lambda t, z, x: 1j * z  # noqa: E731
    found = ic.integrate(turn, z0, times=line(70, -3), solver=ic.RK4(dt=0.05))
    assert torch.allclose(found.z, z0 * torch.exp(1j * found.times)[:, None, None], atol=1e-6)


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
        on_failure="ignore",
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


# docs/design/index.md, where errors are forgotten; others: that of the steps.
BETWEEN = {
    ic.Trapezoid: 1.9,
    ic.RK4: 2.1,
    ic.RK38: 3.8,
    ic.Fehlberg45: 2.2,
    ic.Dopri5: 1.8,
    ic.Tsit5: 14,
    ic.DOP853: 9,
    ic.ESDIRK: 3.2,
    ic.KenCarp3: 2.0,
    ic.KenCarp4: 4.5,
    ic.Kvaerno5: 2.6,
    ic.RadauIIA5: 7,
}


@pytest.mark.parametrize(
    "method",
    [*FIXED, ic.AdaptiveHeun, ic.Fehlberg21, *ADAPTIVE, ic.KenCarp3, ic.KenCarp4],
    ids=lambda m: m.__name__,
)
def test_where_errors_are_forgotten_the_page_says_how_much_larger_they_are_between(method):
    relax = lambda t, z, x: z * (1 - z) + 0.5 * torch.sin(3 * t)  # noqa: E731
    z0, span, share = real(0.3)[None], line(2, 6.0), line(21)[1:-1]
    options = {"dt": 0.2} if method in FIXED else {"rtol": 1e-4, "atol": 1e-4}
    with torch.no_grad():
        exact, found = (
            ic.integrate(relax, z0, times=span, solver=solver, dense=True)
            for solver in (ic.DOP853(rtol=1e-12, atol=1e-13), method(**options))
        )
        t, z = found.at_steps()
        there = largest(z - exact.interpolate(t))
        t = (t[:, :-1, None] + t.diff(dim=1)[:, :, None] * share).flatten(1)
        between = largest(found.interpolate(t) - exact.interpolate(t))
    assert between < BETWEEN.get(method, 1.2) * there
