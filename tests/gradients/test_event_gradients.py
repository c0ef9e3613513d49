"""The gradients of events with every strategy, against closed forms and finite differences."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import pytest
import torch
from support.trajectory_solvers import BlackBox, stepwise
from torch import Tensor, nn

import implicitcore as ic
from implicitcore.gradients.event_times import SpansToEvents
from implicitcore.testing.expect import known

TIGHT: dict[str, Any] = {"rtol": 1e-10, "atol": 1e-11, "max_steps": 5000}
SOLVER = ic.Tsit5(**TIGHT)
LESS = replace(SOLVER, rtol=1e-8, atol=1e-9)
EXACT = [ic.Unrolled(), ic.Checkpointed(), ic.Checkpointed(checkpoints=2)]
STRATEGIES = [*EXACT, ic.Adjoint(SOLVER)]
SPARSE, MANY = [0.0, 3.0], [0.0, 0.1, 0.3, 0.45, 0.9, 1.0, 2.0, 3.0]
SOON = [0.0, 0.1, 0.4, 0.45, 1.0]
each_strategy = pytest.mark.parametrize(
    "gradient", STRATEGIES, ids=["unrolled", "checkpointed", "two checkpoints", "adjoint"]
)
each_times = pytest.mark.parametrize("times", [SPARSE, MANY], ids=["two", "many"])


def real(*values: Any) -> Tensor:
    return torch.tensor(values, dtype=torch.float64)


def fall(t, z, g):
    return torch.cat((z[:, 1:], -g), 1)


def height(t, z, g):
    return z[:, 0]


def balls() -> tuple[Tensor, Tensor]:
    """Two hit the ground, one after most output times; the third is in the air at the end."""
    z0 = real([1.0, 0.0], [2.0, 3.0], [1.0, 90.0])
    return z0.requires_grad_(), real([9.81], [4.1], [3.0]).requires_grad_()


def landed(z0: Tensor, g: Tensor, times: Tensor) -> tuple[Tensor, Tensor]:
    """When each ball is on the ground, and the states ``[T, batch, 2]``."""
    (h, v), g = z0.unbind(1), g[:, 0]
    end = (v + torch.sqrt(v * v + 2 * g * h)) / g
    t = torch.minimum(times[:, None], end)
    return end, torch.stack((h + v * t - g * t * t / 2, v - g * t), 2)


def weighted(times: Tensor, z: Tensor) -> Tensor:
    weights = torch.randn(z.shape, generator=torch.Generator().manual_seed(0), dtype=z.dtype)
    return (z * weights).sum() + (times[:2] * real(1.0, -0.3)).sum()


def gradients(loss: Tensor, wrt: tuple[Tensor, ...]) -> Tensor:
    found = torch.autograd.grad(loss, wrt)
    return torch.cat([gradient.flatten() for gradient in found])


def close(found: Tensor, expected: Tensor, bound: float) -> bool:
    return bool((found - expected).norm() <= bound * expected.norm())


@each_times
@each_strategy
@pytest.mark.parametrize(
    "solver", [SOLVER, ic.RK4(dt=0.1), ic.RadauIIA5()], ids=lambda s: type(s).__name__
)
def test_a_falling_ball_has_the_derivatives_of_the_closed_form(solver, gradient, times):
    z0, g = balls()
    found = ic.integrate(
        fall, z0, g, times=times, event=height, solver=solver, gradient=gradient
    ).raise_if_failed()
    end, z = landed(z0, g, real(*times))
    assert torch.allclose(known(found.event_times)[:2], end[:2], rtol=1e-9)
    assert torch.allclose(found.z, z, rtol=1e-9, atol=1e-9)
    got = gradients(weighted(known(found.event_times), found.z), (z0, g))
    assert close(got, gradients(weighted(end, z), (z0, g)), 1e-8)


@each_strategy
def test_the_time_is_the_root_of_two_h_over_g(gradient):
    h, g = real(1.7).requires_grad_(), real([9.81]).requires_grad_()
    z0 = torch.stack((h, torch.zeros_like(h)), 1)
    found = ic.integrate(fall, z0, g, times=SPARSE, event=height, solver=SOLVER, gradient=gradient)
    t = known(found.event_times)
    by_h, by_g = torch.autograd.grad(t.sum(), (h, g))
    assert t.item() == pytest.approx(math.sqrt(2 * 1.7 / 9.81), rel=1e-12)
    assert by_h.item() == pytest.approx(1 / math.sqrt(2 * 1.7 * 9.81), rel=1e-9)
    assert by_g.item() == pytest.approx(-0.5 * math.sqrt(2 * 1.7) * 9.81**-1.5, rel=1e-9)


def spiral(t, z, x):
    """Not linear, and not autonomous."""
    return torch.stack((z[:, 1], -x[:, 0] * z[:, 0].sin() - 0.1 * t.flatten() * z[:, 1]), 1)


@pytest.mark.parametrize("solver", stepwise(), ids=lambda s: type(s).__name__)
def test_checkpointed_is_as_unrolled_with_every_solver(solver):
    """Up to rounding, whatever the tolerance."""
    events = [lambda t, z, x: z[:, 0] - 0.2, ic.Event(lambda t, z, x: z[:, 1] + x[:, 1], "falling")]
    losses = []
    for gradient in (ic.Unrolled(), ic.Checkpointed()):
        z0 = real([0.5, 0.0], [1.0, 0.3], [-1.0, 0.0]).requires_grad_()
        x = real([2.0, 1.5], [2.0, 0.3], [1.0, 0.4]).requires_grad_()
        found = ic.integrate(
            spiral, z0, x, times=SOON, event=events, solver=solver, gradient=gradient
        )
        assert known(found.event_index).tolist() == [0, 1, -1]
        loss = weighted(known(found.event_times), found.z)
        losses.append(gradients(loss, (z0, x)))
    assert close(losses[1], losses[0], 1e-9)


@each_times
@each_strategy
def test_finite_differences_agree(gradient, times):
    events = [ic.Event(lambda t, z, x: z[:, 0] - 0.2 * x[:, 1], "falling"), lambda t, z, x: z[:, 1]]

    def run(z0, x):
        found = ic.integrate(
            spiral, z0, x, times=times, event=events, solver=LESS, gradient=gradient
        )
        assert known(found.event_index).tolist() == [0, 1]
        return found.z, known(found.event_times)

    z0, x = real([1.0, -0.1], [0.5, 0.5]), real([2.0, 1.0], [5.0, 0.3])
    assert torch.autograd.gradcheck(
        run,
        (z0.requires_grad_(), x.requires_grad_()),
        eps=1e-5,
        atol=1e-6,
        rtol=1e-5,
        fast_mode=True,
    )


@each_strategy
@pytest.mark.parametrize("own", [False, True], ids=["shared", "of each sample"])
def test_output_times_have_their_gradient_too(gradient, own):
    """An event is as much later as the start; an output time before it moves its state alone."""
    times = real(0.0, 0.2, 3.0).expand(3, 3).clone() if own else real(0.0, 0.2, 3.0)
    z0, g = balls()
    times.requires_grad_()
    found = ic.integrate(fall, z0, g, times=times, event=height, solver=SOLVER, gradient=gradient)
    got = gradients(known(found.event_times)[:2].sum() + found.z[1, 0, 0], (times,))
    speed = -0.2 * 9.81
    expected = real([1 - speed, speed, 0], [1, 0, 0], [0, 0, 0])
    assert torch.allclose(got, (expected if own else expected.sum(0)).flatten(), atol=1e-8)


@each_strategy
def test_a_bouncing_ball_learns_its_gravity(gradient):
    z, g, total = real([1.0, 0.0]), real([9.81]).requires_grad_(), real(0.0)
    for _ in range(4):
        flight = ic.integrate(
            fall, z, g, times=SPARSE, event=height, solver=SOLVER, gradient=gradient
        )
        total = total + known(flight.event_times)
        z = flight.z[-1] * real(0.0, -0.5)
    expected = torch.sqrt(2 / g) * (1 + 2 * (0.5 + 0.25 + 0.125))
    assert total.item() == pytest.approx(expected.item(), rel=1e-9)
    got, wanted = (torch.autograd.grad(value.sum(), g)[0].item() for value in (total, expected))
    assert got == pytest.approx(wanted, rel=1e-8)


@each_strategy
def test_each_sample_in_its_own_direction(gradient):
    """Z = z0 exp(x t) reaches e forwards, and 1 / e backwards."""
    z0, x = real([1.0], [1.0]).requires_grad_(), real([1.0], [2.0]).requires_grad_()
    found = ic.integrate(
        lambda t, z, x: x * z,
        z0,
        x,
        times=[[0.0, 0.4, 3.0], [0.0, -0.1, -2.0]],
        event=[lambda t, z, x: z[:, 0] - math.e, lambda t, z, x: z[:, 0] - 1 / math.e],
        solver=SOLVER,
        gradient=gradient,
    )
    t = known(found.event_times)
    assert t.tolist() == pytest.approx([1.0, -0.5], rel=1e-9)
    assert known(found.event_index).tolist() == [0, 1]
    by_z0, by_x = torch.autograd.grad(t.sum(), (z0, x))
    assert by_z0.flatten().tolist() == pytest.approx([-1.0, -0.5], rel=1e-8)
    assert by_x.flatten().tolist() == pytest.approx([-1.0, 0.25], rel=1e-8)


@each_strategy
def test_a_complex_state(gradient):
    """Z = z0 exp(i x t): its real part is zero where x t = pi / 2 - angle(z0)."""
    z0 = torch.tensor([[2 + 0j], [1 + 1j]], dtype=torch.complex128).requires_grad_()
    x = real([1.0], [2.0]).requires_grad_()
    found = ic.integrate(
        lambda t, z, x: 1j * x * z,
        z0,
        x,
        times=[0.0, 0.2, 3.0],
        event=lambda t, z, x: z[:, 0].real,
        solver=SOLVER,
        gradient=gradient,
    )
    expected = (math.pi / 2 - z0.angle()) / x
    assert torch.allclose(known(found.event_times), expected[:, 0], rtol=1e-9)
    at = found.z[-1, :, 0].imag
    assert torch.allclose(at, z0.abs()[:, 0], rtol=1e-9)
    for got, wanted in ((known(found.event_times), expected), (at, z0.abs())):
        weights = real(1.0, -0.4)
        a = torch.autograd.grad(got @ weights, (z0, x), retain_graph=True)
        b = torch.autograd.grad(wanted[:, 0] @ weights, (z0, x), materialize_grads=True)
        assert all(torch.allclose(*pair, rtol=1e-7, atol=1e-8) for pair in zip(a, b, strict=True))


class Level(nn.Module):
    """An event with a parameter of its own."""

    def __init__(self, level: float) -> None:
        super().__init__()
        self.level = nn.Parameter(real(level))

    def forward(self, t, z, x):
        return z[:, 0] - self.level


@each_strategy
def test_parameters_of_events_whether_they_happen_or_not(gradient):
    """One that happens to no sample has a gradient of zero: a data-parallel module waits for it."""
    reached, never = Level(0.5), Level(-4.0)
    z0 = real([1.0], [0.3])
    found = ic.integrate(
        lambda t, z, x: -z,
        z0,
        times=[0.0, 0.5, 1.0],
        event=[reached, never],
        solver=SOLVER,
        gradient=gradient,
    )
    assert known(found.event_index).tolist() == [0, -1]
    levels = reached.level, never.level  # log(z0 / level) is the time, and the level the state
    for loss, wanted in ((known(found.event_times)[0], -2.0), (found.z[-1].sum(), 1.0)):
        got = torch.autograd.grad(loss, levels, retain_graph=True)
        assert got[0].item() == pytest.approx(wanted, rel=1e-8)
        assert got[1].item() == 0


@each_strategy
def test_a_boolean_event_has_the_gradient_of_a_fixed_time(gradient):
    z0, g = balls()
    found = ic.integrate(
        fall,
        z0,
        g,
        times=SPARSE,
        event=lambda t, z, x: z[:, 0] < 0,
        solver=SOLVER,
        gradient=gradient,
    )
    t = known(found.event_times)
    assert not t.requires_grad
    got = gradients(found.z[-1, 0, 0], (z0, g))
    expected = torch.zeros(9, dtype=torch.float64)
    expected[[0, 1, 6]] = real(1.0, t[0].item(), -(t[0].item() ** 2) / 2)
    assert torch.allclose(got, expected, rtol=1e-9, atol=1e-12)


@each_strategy
def test_an_event_next_to_the_start(gradient):
    """The way to it is shorter than rounding lets an adjoint divide it."""
    z0 = real([1.0], [1.0 + 1e-15], [1.5]).requires_grad_()
    x = real([1.0], [1.0], [1.0]).requires_grad_()
    found = ic.integrate(
        lambda t, z, x: -x * z,
        z0,
        x,
        times=[5.0, 5.1, 5.2, 6.0],
        event=lambda t, z, x: z[:, 0] - 1 + 1e-15,
        solver=SOLVER,
        gradient=gradient,
    )
    t = known(found.event_times)
    assert t.tolist() == pytest.approx([5.0, 5.0, 5 + math.log(1.5)], rel=1e-12)
    by_z0, by_x = torch.autograd.grad(t.sum(), (z0, x))
    assert by_z0.flatten().tolist() == pytest.approx([1.0, 1.0, 1 / 1.5], rel=1e-7)
    assert by_x.flatten().tolist() == pytest.approx([0.0, 0.0, -math.log(1.5)], rel=1e-7, abs=1e-13)


@each_strategy
@pytest.mark.parametrize("on_failure", ["ignore", "mask"])
def test_a_failed_sample_leaves_the_gradients_of_the_others(gradient, on_failure):
    """1 / z = 1 / z0 - t: sample 1 blows up at 1, sample 0 is at 0.8 before, sample 2 never."""
    z0 = real([0.5], [1.0], [0.25]).requires_grad_()
    found = ic.integrate(
        lambda t, z, x: z * z,
        z0,
        times=[0.0, 0.4, 1.9],
        event=[lambda t, z, x: z[:, 0] + 1, ic.Event(lambda t, z, x: z[:, 0] - 0.8, "rising")],
        solver=ic.Tsit5(rtol=1e-8, atol=1e-10, max_steps=200),
        gradient=gradient,
        on_failure=on_failure,
    )
    assert found.converged.tolist() == [True, False, True]
    assert known(found.event_index).tolist() == [1, -1, -1]
    assert known(found.event_times)[0].item() == pytest.approx(0.75, rel=1e-6)
    loss = known(found.event_times)[0] + found.z[:, [0, 2]].sum()
    got = torch.autograd.grad(loss, z0)[0].flatten()
    wanted = 1 + (1 - 0.4 * z0.detach().flatten()) ** -2
    wanted = wanted + real(-4.0, 0.0, (1 - 1.9 / 4) ** -2)
    assert torch.allclose(got[[0, 2]], wanted[[0, 2]], rtol=1e-5)
    assert bool(got.isfinite().all())


def test_a_second_derivative_is_refused_where_it_would_be_wrong():
    level = Level(0.5)
    for gradient in STRATEGIES[1:]:
        found = ic.integrate(
            lambda t, z, x: -z,
            real([1.0]),
            times=[0.0, 1.0],
            event=level,
            solver=SOLVER,
            gradient=gradient,
        )
        with pytest.raises(ic.GradientError, match="first derivatives only; use Unrolled"):
            torch.autograd.grad(known(found.event_times).sum(), level.level, create_graph=True)


@each_strategy
def test_an_event_that_only_touches_zero_has_no_derivative(gradient):
    z0 = real([1.0, 0.0]).requires_grad_()
    with pytest.raises(ic.GradientError, match="has no derivative"):
        ic.integrate(
            fall,
            z0,
            real([9.81]),
            times=SPARSE,
            event=lambda t, z, x: torch.sign(z[:, 0].detach()) + 0 * z[:, 0],
            solver=SOLVER,
            gradient=gradient,
        )


def test_what_an_event_costs():
    """No evaluation of the field beyond those without a gradient, and two of each event."""

    def spent(gradient: ic.GradientStrategy, graph: bool) -> tuple[int, int]:
        asked = []

        def ground(t, z, g):
            asked.append(t)
            return z[:, 0]

        z0, g = balls()
        with torch.set_grad_enabled(graph):
            found = ic.integrate(
                fall, z0, g, times=MANY, event=ground, solver=SOLVER, gradient=gradient
            )
        return found.evaluations, len(asked)

    for gradient, probes in ((ic.Checkpointed(), 1), (ic.Adjoint(), 2)):
        plain, attached = spent(gradient, False), spent(gradient, True)
        assert attached == (plain[0] + probes, plain[1] + 2)


@each_strategy
def test_without_a_graph_nothing_differs(gradient):
    z0, g = balls()
    options: dict[str, Any] = {"times": MANY, "event": height, "solver": SOLVER}
    with torch.no_grad():
        plain = ic.integrate(fall, z0, g, **options)
        found = ic.integrate(fall, z0, g, gradient=gradient, **options)
    assert torch.equal(found.z, plain.z)
    assert not known(found.event_times).requires_grad


def test_a_coupled_batch_and_a_pytree_by_every_strategy():
    """The mean of the samples decays at the rate x: it is half at log(2) / x."""

    def decay(t, z, x):
        mean = z["a"].mean(0, keepdim=True)
        return {"a": -x * mean.expand_as(z["a"])}

    for gradient in STRATEGIES:
        z0, x = {"a": real([0.5, 1.0], [1.5, 1.0])}, real(2.0).requires_grad_()
        found = ic.integrate(
            decay,
            z0,
            ic.shared(x),
            times=[0.0, 0.1, 2.0],
            event=lambda t, z, x: z["a"].mean().reshape(1) - 0.5,
            solver=SOLVER,
            gradient=gradient,
            coupled=True,
        )
        assert known(found.event_times).tolist() == pytest.approx([math.log(2) / 2] * 2, rel=1e-9)
        slope = torch.autograd.grad(known(found.event_times)[0], x)[0]
        assert slope.item() == pytest.approx(-math.log(2) / 4, rel=1e-8)


@pytest.mark.parametrize("forward", [True, False])
def test_the_clock_of_a_way_back_is_divided_only_to_be_as_long_as_others(forward):
    """Whatever the event times are: in order, with the states of the output times, and no more."""
    times = torch.arange(6.0, dtype=torch.float64) * (1 if forward else -1) + 1e3
    ends = times[0] + (times[-1] - times[0]) * real(0.31, 0.9, 1e-15, 0.0, torch.nan, 0.4)
    at = torch.where(ends.isnan(), times[-1], ends)
    reached = torch.minimum((times[:, None] - 1e3).abs(), (at - 1e3).abs())
    found = ic.Trajectory(
        z=reached.unsqueeze(2),
        start=reached[0].unsqueeze(1),
        status=torch.zeros(6, dtype=torch.int8),
        steps=torch.zeros(6, dtype=torch.int64),
        evaluations=0,
        times=times,
    )
    spans = SpansToEvents.of(found, ends)
    steps = spans.trajectory.times.diff(dim=0)
    assert bool((steps > 0).all() if forward else (steps < 0).all())
    assert torch.equal(spans.at_outputs(spans.trajectory.z), found.z)
    assert torch.equal(spans.trajectory.times[-1, [0, 1, 4, 5]], at[[0, 1, 4, 5]])
    assert spans.divided.sum(0).tolist() == [3, 0, 4, 4, 0, 3]  # the last ends at an output time
    stays = spans.at_outputs(spans.divided.unsqueeze(2).double())
    assert not bool(stays.any())
    for i in range(6):
        one = found.amended(z=found.z[:, [i]])
        assert not bool(SpansToEvents.of(one, ends[[i]]).divided.any())


def test_an_empty_batch():
    for gradient in STRATEGIES:
        z0 = torch.zeros(0, 2, dtype=torch.float64).requires_grad_()
        found = ic.integrate(
            fall, z0, z0[:, :1].detach(), times=MANY, event=[height], gradient=gradient
        )
        assert found.z.shape == (8, 0, 2)
        assert known(found.event_index).shape == (0,)


def test_float32_states_with_float64_times_far_from_zero():
    z0 = torch.tensor([[1.0]], requires_grad=True)
    start = 1e6
    for gradient in (*EXACT, ic.Adjoint()):
        found = ic.integrate(
            lambda t, z, x: -z,
            z0,
            times=[start, start + 0.3, start + 3.0],
            event=lambda t, z, x: z[:, 0] - 0.5,
            solver=ic.Tsit5(rtol=1e-5, atol=1e-6),
            gradient=gradient,
        )
        assert known(found.event_times).item() - start == pytest.approx(math.log(2), rel=1e-4)
        slope = torch.autograd.grad(known(found.event_times).sum(), z0)[0]
        assert slope.item() == pytest.approx(1.0, rel=1e-3)


def test_a_solver_that_shows_no_steps_is_refused():
    for gradient in (ic.Unrolled(), ic.Adjoint(SOLVER)):
        with pytest.raises(ic.InputError, match="BlackBox gives no values between .* event needs"):
            z0, g = balls()
            ic.integrate(
                fall, z0, g, times=SPARSE, event=height, solver=BlackBox(), gradient=gradient
            )


def test_an_event_out_of_steps_leaves_the_gradient_of_the_states():
    for gradient in STRATEGIES[:3]:
        z0, g = balls()
        found = ic.integrate(
            fall,
            z0,
            g,
            times=SPARSE,
            event=height,
            solver=replace(SOLVER, max_steps=2),
            gradient=gradient,
            on_failure="ignore",
        )
        assert not found.converged.any()
        assert known(found.event_index).tolist() == [-1, -1, -1]
        assert bool(gradients(found.z[-1].sum(), (z0, g)).isfinite().all())
