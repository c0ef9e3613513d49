"""Events: their time, the state there, and the gradient of both, against closed forms."""

from __future__ import annotations

import math

import pytest
import torch

import implicitcore as ic
from implicitcore.testing.expect import known

TIGHT = {"rtol": 1e-11, "atol": 1e-12, "max_steps": 5000}
SOLVERS = [ic.RK4(dt=0.004), ic.Dopri5(**TIGHT), ic.Tsit5(**TIGHT), ic.DOP853(**TIGHT)]
each_solver = pytest.mark.parametrize("solver", SOLVERS, ids=lambda s: type(s).__name__)
SPAN = torch.tensor([0.0, 4.0], dtype=torch.float64)


def real(*values):
    return torch.tensor(values, dtype=torch.float64)


def fall(t, z, g):
    """A ball: z = (height, speed)."""
    return torch.cat((z[:, 1:], -g.expand(len(z), 1)), 1)


def height(t, z, x):
    return z[:, 0]


def swing(t, z, omega):
    """z = (position, speed), position = a cos(omega t) + (b / omega) sin(omega t)."""
    return torch.cat((z[:, 1:], -(omega**2) * z[:, :1]), 1)


def relative(found, expected):
    return max(((a - b).norm() / b.norm()).item() for a, b in zip(found, expected, strict=True))


@each_solver
def test_the_ball_hits_the_ground(solver):
    z0, g = (
        real([1.0, 0.0], [2.0, 3.0], [0.5, -1.0]).requires_grad_(),
        real([9.81]).requires_grad_(),
    )
    solution = ic.integrate(
        fall, z0, ic.shared(g), times=SPAN, solver=solver, event=height
    ).raise_if_failed()
    h, v = z0.unbind(1)
    t = (v + torch.sqrt(v * v + 2 * g[0] * h)) / g[0]
    z = torch.stack((torch.zeros_like(t), v - g[0] * t), 1)
    assert torch.allclose(known(solution.event_times), t, rtol=1e-10)
    assert torch.allclose(solution.z[-1], z, rtol=1e-9, atol=1e-10)
    weights = real(1.0, -0.3, 0.7)
    for found, expected in ((known(solution.event_times), t), (solution.z[-1, :, 1], z[:, 1])):
        gradients = torch.autograd.grad(found, [z0, g], weights, retain_graph=True)
        assert (
            relative(gradients, torch.autograd.grad(expected, [z0, g], weights, retain_graph=True))
            < 1e-6
        )
    # The height at the event is zero whatever the start: so is its gradient.
    still = torch.autograd.grad(solution.z[-1, :, 0].sum(), [z0, g])
    assert max(gradient.abs().max().item() for gradient in still) < 1e-7


@each_solver
def test_the_oscillator_crosses_zero(solver):
    z0, omega = (
        real([1.0, 0.5], [0.7, -1.0], [2.0, 0.0]).requires_grad_(),
        real([1.0], [1.7], [2.3]).requires_grad_(),
    )
    solution = ic.integrate(
        swing, z0, omega, times=SPAN, solver=solver, event=height
    ).raise_if_failed()
    a, b, w = z0[:, 0], z0[:, 1], omega[:, 0]
    t = (math.pi - torch.atan2(a * w, b)) / w
    speed = -torch.sqrt((a * w) ** 2 + b * b)
    assert torch.allclose(known(solution.event_times), t, rtol=1e-9)
    assert torch.allclose(solution.z[-1, :, 1], speed, rtol=1e-9)
    for found, expected in ((known(solution.event_times), t), (solution.z[-1, :, 1], speed)):
        gradients = torch.autograd.grad(found.square().sum(), [z0, omega], retain_graph=True)
        assert (
            relative(
                gradients,
                torch.autograd.grad(expected.square().sum(), [z0, omega], retain_graph=True),
            )
            < 1e-6
        )


def test_the_second_derivative_too():
    z0, g = real([1.0, 0.0]), real([9.81]).requires_grad_()
    drop = ic.integrate(fall, z0, ic.shared(g), times=SPAN, solver=ic.Tsit5(**TIGHT), event=height)
    t = known(drop.event_times)
    first = torch.autograd.grad(t.sum(), g, create_graph=True)[0]
    second = torch.autograd.grad(first.sum(), g)[0]
    assert first.item() == pytest.approx(-0.5 * math.sqrt(2) * 9.81**-1.5, rel=1e-7)
    assert second.item() == pytest.approx(0.75 * math.sqrt(2) * 9.81**-2.5, rel=1e-6)


def test_a_bouncing_ball():
    """Each flight begins where the last ended, at the ground: a zero at the start is no event."""
    z, g, total = (
        real([1.0, 0.0]),
        real([9.81]).requires_grad_(),
        torch.zeros(1, dtype=torch.float64),
    )
    for _ in range(4):
        flight = ic.integrate(
            fall, z, ic.shared(g), times=SPAN, solver=ic.Tsit5(**TIGHT), event=height
        )
        total = torch.add(total, known(flight.event_times))
        z = flight.z[-1] * real(0.0, -0.5)
    expected = torch.sqrt(2 / g) * (1 + 2 * (0.5 + 0.25 + 0.125))
    assert total.item() == pytest.approx(expected.item(), rel=1e-9)
    gradients = [torch.autograd.grad(value.sum(), g)[0].item() for value in (total, expected)]
    assert gradients[0] == pytest.approx(gradients[1], rel=1e-6)


def test_where_nothing_happens_the_integration_goes_on_to_the_end():
    z0 = real([1.0, 0.0], [1.0, 100.0])
    times = real(0.0, 0.2, 1.0, 1.5)
    solution = ic.integrate(
        fall,
        z0,
        ic.shared(real([9.81])),
        times=times,
        event=height,
        solver=ic.Tsit5(**TIGHT),
        dense=True,
    ).raise_if_failed()
    assert known(solution.event_times).isnan().tolist() == [False, True]
    # Before the event the states at their times, after it the state at the event.
    assert solution.z[1, 0, 0].item() == pytest.approx(1 - 9.81 / 2 * 0.04)
    assert torch.equal(solution.z[2, 0], solution.z[3, 0])
    assert solution.z[3, 1, 0].item() == pytest.approx(1 + 150 - 9.81 / 2 * 2.25)
    assert solution.interpolate(real(0.4, 1.2)).isnan().all(2).tolist() == [
        [False, False],
        [True, False],
    ]
    assert torch.allclose(
        solution.interpolate(known(solution.event_times)[:1].detach())[0, 0],
        solution.z[-1, 0],
        atol=1e-9,
    )


def test_a_batch_equals_single_solves_and_a_nan_stays_alone():
    z0, omega = (
        torch.randn(8, 2, generator=torch.Generator().manual_seed(0), dtype=torch.float64),
        torch.linspace(1, 9, 8).double()[:, None],
    )

    def run(z0, omega):
        return ic.integrate(swing, z0, omega, times=SPAN, event=height, on_failure="ignore")

    together = run(z0, omega)
    assert bool(known(together.event_times).isfinite().all())
    for i in range(8):
        alone = run(z0[i : i + 1], omega[i : i + 1])
        assert known(alone.event_times).item() == pytest.approx(
            known(together.event_times)[i].item(), rel=1e-11
        )
        assert alone.steps[0] == together.steps[i]
    sick = z0.clone()
    sick[3] = torch.nan
    sick.requires_grad_()
    found = run(sick, omega)
    others = [0, 1, 2, 4, 5, 6, 7]
    assert found.status.tolist() == [
        ic.Status.NON_FINITE if i == 3 else ic.Status.CONVERGED for i in range(8)
    ]
    # With a gradient too: Newton's steps in the graph may move the last bit.
    healthy = run(z0.clone().requires_grad_(), omega)
    assert torch.equal(known(found.event_times)[others], known(healthy.event_times)[others])
    assert bool(
        torch.autograd.grad(known(found.event_times)[others].sum(), sick)[0][others]
        .isfinite()
        .all()
    )


def test_a_pytree_state_and_a_per_sample_input():
    z0 = {
        "at": torch.ones(3, 1, 2, dtype=torch.float64),
        "speed": torch.zeros(3, 1, 2, dtype=torch.float64),
    }
    level = real(0.9, 0.5, 0.1)

    def field(t, z, x):
        return {"at": z["speed"], "speed": -z["at"]}

    def event(t, z, x):
        return z["at"].mean((1, 2)) - x

    solution = ic.integrate(
        field, z0, level, times=SPAN, solver=ic.Tsit5(**TIGHT), event=event, dense=True
    ).raise_if_failed()
    assert torch.allclose(known(solution.event_times), torch.arccos(level), rtol=1e-9)
    assert torch.allclose(solution.z["at"][-1].mean((1, 2)), level, rtol=1e-12)
    assert torch.allclose(
        solution.interpolate(real(0.2))["at"], torch.cos(real(0.2)).expand(1, 3, 1, 2), rtol=1e-9
    )


def test_backwards_in_time_and_by_the_time_itself():
    z0 = real([1.0, 0.0]).requires_grad_()
    back = ic.integrate(
        swing, z0, real([1.0]), times=real(0.0, -4.0), solver=ic.Tsit5(**TIGHT), event=height
    )
    assert known(back.event_times).item() == pytest.approx(-math.pi / 2, rel=1e-9)
    clock = ic.integrate(
        swing,
        z0,
        real([1.0]),
        times=SPAN,
        solver=ic.Tsit5(**TIGHT),
        event=lambda t, z, x: (t - 1.25).flatten(),
    )
    assert known(clock.event_times).item() == pytest.approx(1.25, rel=1e-14)
    assert clock.z[-1, 0, 0].item() == pytest.approx(math.cos(1.25), rel=1e-8)


def test_a_parameter_of_the_event_alone():
    """When does cos reach c? At arccos(c)."""
    c = real(0.3).requires_grad_()
    solution = ic.integrate(
        swing,
        real([1.0, 0.0]),
        real([1.0]),
        times=SPAN,
        solver=ic.Tsit5(**TIGHT),
        event=lambda t, z, x: z[:, 0] - c,
    )
    assert torch.autograd.grad(known(solution.event_times).sum(), c)[0].item() == pytest.approx(
        -1 / math.sqrt(1 - 0.09), rel=1e-7
    )


def test_no_graph_where_nothing_wants_one():
    solution = ic.integrate(swing, real([1.0, 0.0]), real([1.0]), times=SPAN, event=height)
    assert not known(solution.event_times).requires_grad
    assert not solution.z.requires_grad


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_without_a_graph(dtype):
    with torch.no_grad():
        solution = ic.integrate(
            swing,
            torch.tensor([[1.0, 0.0]], dtype=dtype),
            torch.ones(1, dtype=dtype),
            times=SPAN,
            event=height,
        )
    assert not known(solution.event_times).requires_grad
    assert known(solution.event_times).item() == pytest.approx(math.pi / 2, rel=2e-3)


def test_an_event_in_a_long_step_is_missed_and_max_step_finds_it():
    """A constant field takes steps that grow tenfold; e is negative for a moment only."""

    def moment(t, z, x):
        return ((t - 2.0) ** 2 - 1e-2).flatten()

    def field(t, z, x):
        return torch.ones_like(z)

    z0 = torch.zeros(1, 1, dtype=torch.float64)
    missed = ic.integrate(field, z0, times=SPAN, solver=ic.Tsit5(), event=moment)
    assert bool(known(missed.event_times).isnan().all())
    found = ic.integrate(field, z0, times=SPAN, solver=ic.Tsit5(max_step=0.05), event=moment)
    assert known(found.event_times).item() == pytest.approx(1.9, rel=1e-12)


def test_an_event_that_becomes_nan_is_a_status():
    z0 = real([1.0, 0.0], [1.0, 100.0])

    def broken(t, z, x):
        return torch.sqrt(z[:, 0] - 0.5)

    solution = ic.integrate(
        fall, z0, ic.shared(real([9.81])), times=SPAN / 8, event=broken, on_failure="ignore"
    )
    assert solution.status.tolist() == [ic.Status.NON_FINITE, ic.Status.CONVERGED]
    from_the_start = ic.integrate(
        fall,
        z0,
        ic.shared(real([9.81])),
        times=SPAN,
        event=lambda t, z, x: z[:, 0] * torch.nan,
        on_failure="ignore",
    )
    assert from_the_start.status.tolist() == [ic.Status.NON_FINITE] * 2


@pytest.mark.parametrize("event", [lambda z, x: z[:, 0] - x, lambda t, z, x: z[:, 0] - x])
def test_an_event_is_called_as_its_signature_says(event):
    """Exponential decay from 1 to x."""
    z0, x = real([1.0], [1.0]), real(0.5, 0.25)
    given = {"times": SPAN, "solver": ic.Tsit5(**TIGHT)}
    for each in (event, ic.Event(event, "falling"), [height, event]):
        found = ic.integrate(lambda t, z, x: -z, z0, x, event=each, **given)
        assert torch.allclose(known(found.event_times), -x.log(), rtol=1e-9)


@pytest.mark.parametrize(
    ("event", "complaint"),
    [
        (
            lambda t, z, x: z,
            r"event: expected it to return real numbers or booleans of shape \[2\], received "
            r"shape \[2, 2\], torch.float64",
        ),
        (lambda t, z, x: (z[:, 0] > 0).int(), "received shape .* torch.int32"),
        (lambda t, z, x: z[:, 0] * 1j, "received shape .* torch.complex128"),
        (lambda t, z, x: 1.0, "received a float"),
        ([height, lambda t, z, x: z > 0], r"event\[1\]: expected it .* torch.bool"),
        ([height, 1.0], r"event\[1\]: expected a function of .* received 1.0"),
        ([], r"expected an event or several, received none"),
        ("height", "expected a function of .* received 'height'"),
        (lambda t, z: z[:, 0], r"event is called as f\(t, z, x\), and <lambda> takes \(t, z\)"),
        ([height, lambda z: z[:, 0]], r"event\[1\] is called as f\(t, z, x\), and .* \(z\)"),
    ],
)
def test_events_that_cannot_be_used(event, complaint):
    with pytest.raises(ic.InputError, match=complaint):
        ic.integrate(
            swing, real([1.0, 0.0], [1.0, 1.0]), ic.shared(real([1.0])), times=SPAN, event=event
        )


@pytest.mark.parametrize(
    ("gradient", "options", "complaint"),
    [
        (ic.Adjoint(), {"dense": True}, "dense output needs gradient=Unrolled"),
        (ic.Checkpointed(), {"event": height, "dense": True}, "dense output needs"),
        (ic.Implicit(), {"event": height}, "expected Unrolled, Checkpointed or Adjoint"),
        (ic.ReversibleGradient(), {"event": height}, "gives no gradient to an event"),
        (ic.Adjoint(), {"event": height, "step_at": [0.5]}, "use Checkpointed, or Unrolled"),
    ],
    ids=["dense", "dense and event", "implicit", "reversible", "jumps"],
)
def test_what_has_no_gradient_is_refused(gradient, options, complaint):
    z0 = real([1.0, 0.0]).requires_grad_()
    with pytest.raises(ic.GradientError, match=complaint):
        ic.integrate(swing, z0, real([1.0]), times=SPAN, gradient=gradient, **options)


@pytest.mark.filterwarnings("ignore:.torch.jit.script.:DeprecationWarning")  # torch.func.jvp itself
def test_function_transforms_agree():
    z0, g = real([1.0, 0.0]), real([9.81])

    def when(g):
        drop = ic.integrate(
            fall, z0, ic.shared(g), times=SPAN, solver=ic.Tsit5(**TIGHT), event=height
        )
        return known(drop.event_times).sum()

    expected = -0.5 * math.sqrt(2) * 9.81**-1.5
    assert torch.func.grad(when)(g).item() == pytest.approx(expected, rel=1e-7)
    assert torch.func.jvp(when, (g,), (torch.ones_like(g),))[1].item() == pytest.approx(
        expected, rel=1e-7
    )


def test_an_event_without_a_derivative_has_no_gradient():
    def step(t, z, x):
        return torch.sign(z[:, 0].detach())

    z0 = real([1.0, 0.0]).requires_grad_()
    with pytest.raises(ic.GradientError, match="has no derivative"):
        ic.integrate(swing, z0, real([1.0]), times=SPAN, event=step)
    with torch.no_grad():
        solution = ic.integrate(
            swing, z0, real([1.0]), times=SPAN, solver=ic.Tsit5(**TIGHT), event=step
        )
    assert known(solution.event_times).item() == pytest.approx(math.pi / 2, rel=1e-9)
