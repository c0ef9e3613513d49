"""The clock of an integration: the dtype of the times, spans of any size, either direction."""

from __future__ import annotations

import math
import warnings

import pytest
import torch

import implicitcore as ic
from implicitcore.compat import torchdiffeq as compat

ADAPTIVE = [
    ic.Bosh3(rtol=1e-4, atol=1e-6),
    ic.Fehlberg45(rtol=1e-5, atol=1e-6),
    ic.Dopri5(rtol=1e-5, atol=1e-6),
    ic.Tsit5(rtol=1e-5, atol=1e-6),
    ic.DOP853(rtol=1e-5, atol=1e-6),
    ic.Adams(rtol=1e-5, atol=1e-6),
    ic.ESDIRK(rtol=1e-4, atol=1e-5),
    ic.Kvaerno5(rtol=1e-4, atol=1e-5),
    ic.RadauIIA5(rtol=1e-4, atol=1e-5),
]
FIXED = [ic.Midpoint, ic.Heun, ic.Heun3, ic.RK4, ic.Trapezoid]
STRATEGIES = [ic.Unrolled(), ic.Checkpointed(), ic.Adjoint(ic.Tsit5(rtol=1e-5, atol=1e-6))]
FAR = [0.0, 1e4, 1e6, -1e6]


def named(value):
    return type(value).__name__ if not isinstance(value, type) else value.__name__


def decay(t, z, x):
    return -x * z


@pytest.mark.parametrize("gradient", STRATEGIES, ids=named)
@pytest.mark.parametrize("solver", [*ADAPTIVE, *(solver(dt=0.02) for solver in FIXED)], ids=named)
@pytest.mark.parametrize("start", FAR)
def test_float64_times_of_a_float32_state_keep_their_digits(solver, gradient, start):
    times = torch.tensor([start, start + 0.4, start + 1], dtype=torch.float64)
    x = torch.ones(2, 1, requires_grad=True)
    solution = ic.integrate(
        decay, torch.ones(2, 1), x, times=times, solver=solver, gradient=gradient
    ).raise_if_failed()
    assert solution.z.dtype == torch.float32
    assert torch.equal(solution.times, times)
    for row, passed in zip(solution.z, (0, 0.4, 1), strict=True):
        assert torch.allclose(row, torch.tensor(math.exp(-passed)), atol=2e-4)
    (found,) = torch.autograd.grad(solution.z[-1].sum(), x)
    assert torch.allclose(found, torch.tensor(-math.exp(-1)), atol=1e-3)


@pytest.mark.parametrize("solver", [*ADAPTIVE, ic.RK4(dt=0.1)], ids=named)
@pytest.mark.parametrize("backwards", [False, True])
def test_the_steps_add_up_where_t_has_few_digits(solver, backwards):
    """float32 times: t moves in units of 1/16, and the solution is as exact as with any other.

    Adams begins with a step of order 1, which is to be shorter than that: it says so.
    """
    ends = [1e6, 1e6 + 8]
    times = torch.tensor(ends[::-1] if backwards else ends)
    sign = -1 if backwards else 1
    solution = ic.integrate(
        lambda t, z, x: -0.25 * sign * z,
        torch.ones(2, 1),
        times=times,
        solver=solver,
        on_failure="ignore",
    )
    if isinstance(solver, ic.Adams):
        assert solution.status.tolist() == [ic.Status.DIVERGED] * 2
        return
    solution.raise_if_failed()
    assert torch.allclose(solution.z[-1], torch.tensor(math.exp(-2)), atol=1e-3)


def test_a_field_of_t_gets_it_in_the_states_dtype_unless_asked():
    seen = []
    times = torch.tensor([1e6, 1e6 + 1], dtype=torch.float64)

    def field(t, z, x):
        seen.append(t.dtype)
        return torch.cos(t - 1e6).to(z.dtype) + 0 * z

    def solve(**options):
        seen.clear()
        z0 = torch.zeros(1, 1)
        return ic.integrate(field, z0, times=times, solver=ic.Tsit5(rtol=1e-5), **options).z[-1]

    assert abs(solve().item() - math.sin(1)) > 1e-3, "t in float32 moves in steps of 1/16"
    assert set(seen) == {torch.float32}
    assert solve(exact_time=True).item() == pytest.approx(math.sin(1), abs=1e-4)
    assert set(seen) == {torch.float64}


@pytest.mark.parametrize("start", FAR)
def test_events_and_dense_output_far_from_zero(start):
    times = torch.tensor([start, start + 1], dtype=torch.float64)
    z0 = torch.ones(2, 1)
    found = ic.integrate(
        lambda t, z, x: -z,
        z0,
        times=times,
        solver=ic.Tsit5(rtol=1e-6),
        event=lambda t, z, x: z[:, 0] - 0.5,
        dense=True,
    )
    assert found.event_times is not None
    assert (found.event_times - start).tolist() == pytest.approx([math.log(2)] * 2, abs=1e-5)
    middle = found.interpolate(times[:1] + 0.3)
    assert torch.allclose(middle, torch.tensor(math.exp(-0.3)), atol=1e-5)
    timed = ic.integrate(
        lambda t, z, x: -z,
        z0,
        times=times,
        event=lambda t, z, x: (t[:, 0] - (start + 0.3)).to(z.dtype),
        exact_time=True,
    )
    assert timed.event_times is not None
    assert (timed.event_times - start).tolist() == pytest.approx([0.3] * 2, abs=1e-6)


@pytest.mark.parametrize(
    "interface", [compat.odeint, compat.odeint_adjoint], ids=lambda f: f.__name__
)
@pytest.mark.parametrize("start", FAR)
def test_the_functions_of_torchdiffeq_far_from_zero(interface, start):
    times = torch.tensor([start, start + 1], dtype=torch.float64)
    y = interface(lambda t, y: -y, torch.ones(3), times, rtol=1e-5, atol=1e-6)
    assert torch.allclose(y[-1], torch.tensor(math.exp(-1)), atol=1e-5)
    at, y = compat.odeint_event(
        lambda t, y: -y,
        torch.ones(3),
        times[0],
        event_fn=lambda t, y: y[0] - 0.5,
        odeint_interface=interface,
        rtol=1e-5,
        atol=1e-6,
    )
    assert at.item() - start == pytest.approx(math.log(2), abs=1e-4)
    assert torch.allclose(y[-1], torch.tensor(0.5), atol=1e-4)


@pytest.mark.parametrize("exponent", [-12, -9, -6, 0, 6, 12])
@pytest.mark.parametrize("sign", [1, -1])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_spans_of_any_size_are_integrated_alike(dtype, sign, exponent):
    """dz/ds = cos 2s - 3 z in s = t / span."""
    span = sign * 10.0**exponent
    times = torch.tensor([0.0, span], dtype=dtype)
    z0 = torch.tensor([[1.0], [0.0]], dtype=dtype)

    def settled(s):
        return (3 * math.cos(2 * s) + 2 * math.sin(2 * s)) / 13

    expected = [settled(1) + (y - settled(0)) * math.exp(-3) for y in (1.0, 0.0)]
    for solver in [*ADAPTIVE, *(kind(dt=abs(span) / 100) for kind in FIXED)]:
        solution = ic.integrate(
            lambda t, z, x: (torch.cos(2 * t / span) - 3 * z) / span, z0, times=times, solver=solver
        ).raise_if_failed()
        assert solution.z[-1].flatten().tolist() == pytest.approx(expected, abs=5e-4), solver


@pytest.mark.parametrize("exponent", [-12, -9, 0, 9])
@pytest.mark.parametrize("solver", [ic.Tsit5(), ic.Adams(), ic.ESDIRK()], ids=named)
def test_layers_have_spans_of_any_size(solver, exponent):
    horizon = 10.0**exponent
    layer = ic.ImplicitLayer(
        ic.VectorField(lambda z, x: -z / horizon, autonomous=True),
        solver=solver,
        start=ic.Identity(),
        horizon=horizon,
        on_failure="raise",
    )
    assert layer(torch.ones(2, 3)).mean().item() == pytest.approx(math.exp(-1), abs=2e-3)


def test_a_sample_that_no_step_resolves_is_still_given_up_on_a_short_span():
    times = torch.tensor([0.0, 1e-9])
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        solution = ic.integrate(
            lambda t, z, x: torch.where(t > 5e-10, torch.nan, 0 * z),
            torch.ones(1, 1),
            times=times,
            on_failure="ignore",
        )
    assert solution.status.tolist() == [ic.Status.NON_FINITE]
    assert bool((solution.z == 1).all())


def test_whole_numbers_far_from_zero_are_exact():
    times = torch.tensor([10**8, 10**8 + 1])
    z = ic.integrate(lambda t, z, x: -z, torch.ones(1, 1), times=times).z[-1]
    assert z.item() == pytest.approx(math.exp(-1), abs=1e-3)


def test_times_that_are_no_numbers():
    with pytest.raises(ic.InputError, match=r"expected real numbers, received shape"):
        ic.integrate(lambda t, z, x: -z, torch.ones(1, 1), times=torch.tensor([False, True]))
