"""Several events, directions and booleans: which happens first, and when, against closed forms."""

from __future__ import annotations

import math
import pickle

import pytest
import torch

import implicitcore as ic
from implicitcore.testing.expect import known

TIGHT = {"rtol": 1e-10, "atol": 1e-11, "max_steps": 5000}
SOLVER = ic.Tsit5(**TIGHT)
SOLVERS = [SOLVER, ic.DOP853(**TIGHT), ic.RK4(dt=0.01), ic.RadauIIA5(rtol=1e-8, atol=1e-9)]
SPAN = [0.0, 9.0]
PI = math.pi
each_solver = pytest.mark.parametrize("solver", SOLVERS, ids=lambda s: type(s).__name__)


def real(*values):
    return torch.tensor(values, dtype=torch.float64)


def swing(t, z, x):
    """z = (cos t, -sin t) from (1, 0)."""
    return torch.stack((z[:, 1], -z[:, 0]), 1)


def position(t, z, x):
    return z[:, 0]


def throw(t, z, g):
    """z = (along, height, their speeds)."""
    return torch.cat((z[:, 2:], torch.zeros_like(g), -g), 1)


def wall(t, z, g):
    return z[:, 0] - 2.0


def ground(t, z, g):
    return z[:, 1]


def thrown():
    """One hits the ground, one the wall, one neither before 1."""
    z0 = real([0.0, 1.0, 1.0, 0.0], [0.0, 1.0, 8.0, 0.0], [0.0, 9.0, 1.0, 9.0])
    return z0, real([9.81], [9.81], [9.81])


@each_solver
def test_a_sample_ends_at_the_first_event_and_is_told_which(solver):
    z0, g = thrown()
    found = ic.integrate(throw, z0, g, times=[0.0, 0.1, 1.0], event=[ground, wall], solver=solver)
    times, index = known(found.event_times), known(found.event_index)
    assert index.tolist() == [0, 1, -1]
    assert index.dtype == torch.int64
    assert times[:2].tolist() == pytest.approx([math.sqrt(2 / 9.81), 0.25], rel=1e-9)
    assert times[2].isnan()
    assert found.z[-1, 1, 0].item() == pytest.approx(2.0, rel=1e-12)
    assert found.z[1, :, 0].tolist() == pytest.approx([0.1, 0.8, 0.1])
    assert found.converged.all()
    other = ic.integrate(throw, z0, g, times=[0.0, 0.1, 1.0], event=[wall, ground], solver=solver)
    assert known(other.event_index).tolist() == [1, 0, -1]
    assert torch.equal(known(other.event_times)[:2], times[:2])


def test_of_events_at_one_time_the_first_in_the_list_counts():
    z0, g = thrown()
    same = [ground, lambda t, z, x: 3 * z[:, 1], lambda t, z, x: z[:, 1] <= 0]
    for events in (same, same[::-1], [same[1], same[0]]):
        found = ic.integrate(throw, z0[:1], g[:1], times=[0.0, 1.0], event=events, solver=SOLVER)
        assert known(found.event_index).tolist() == [0]
        assert known(found.event_times).item() == pytest.approx(math.sqrt(2 / 9.81), rel=1e-12)


def test_the_earliest_within_one_long_step():
    """The field is constant: one step passes all, in another order than that of the list."""
    rates = real([1.0], [-1.0], [1.0])
    events = [lambda t, z, x, at=at: z[:, 0] - at for at in (0.7, -0.2, 0.4)]
    found = ic.integrate(
        lambda t, z, x: rates.expand_as(z),
        real([0.0], [0.0], [0.5]),
        times=[0.0, 5.0],
        event=events,
    )
    assert known(found.event_times).tolist() == pytest.approx([0.4, 0.2, 0.2], rel=1e-12)
    assert known(found.event_index).tolist() == [2, 1, 0]


@each_solver
@pytest.mark.parametrize(
    ("direction", "forward", "backward"),
    [("any", PI / 2, -PI / 2), ("falling", PI / 2, -PI / 2), ("rising", 1.5 * PI, -1.5 * PI)],
)
def test_a_direction_is_along_the_integration(solver, direction, forward, backward):
    """Cos t from its top falls first, whichever way time goes."""
    event, z0 = ic.Event(position, direction), real([1.0, 0.0], [1.0, 0.0])
    for times, expected in (
        ([0.0, 9.0], [forward, forward]),
        ([0.0, -9.0], [backward, backward]),
        ([[0.0, 9.0], [0.0, -9.0]], [forward, backward]),
    ):
        found = ic.integrate(swing, z0, times=times, event=event, solver=solver)
        assert known(found.event_times).tolist() == pytest.approx(expected, rel=1e-8)


def test_directions_of_several_events():
    """From the top: x falls at pi/2, dx/dt rises at pi, x rises at 3 pi/2."""
    slope = lambda t, z, x: z[:, 1]  # noqa: E731
    rises, falls = ic.Event(position, "rising"), ic.Event(position, "falling")
    for events, index, time in (
        ([rises, falls], 1, PI / 2),
        ([rises, ic.Event(slope, "rising")], 1, PI),
        ([rises, ic.Event(slope, "falling")], 0, 1.5 * PI),
        ([ic.Event(slope, "falling")], 0, 2 * PI),
    ):
        found = ic.integrate(swing, real([1.0, 0.0]), times=SPAN, event=events, solver=SOLVER)
        assert known(found.event_index).tolist() == [index]
        assert known(found.event_times).item() == pytest.approx(time, rel=1e-8)


def test_a_touch_is_no_change_of_sign():
    """E = max(z, 0) falls to zero and rises from there: never from a negative value."""
    touch = ic.Event(lambda t, z, x: z[:, 0].clamp(min=0), "rising")
    found = ic.integrate(swing, real([1.0, 0.0]), times=SPAN, event=touch, solver=SOLVER)
    assert known(found.event_index).tolist() == [-1]
    back = ic.Event(lambda t, z, x: z[:, 0].clamp(min=0), "falling")
    found = ic.integrate(swing, real([1.0, 0.0]), times=SPAN, event=back, solver=ic.RK4(dt=0.01))
    assert known(found.event_times).item() == pytest.approx(PI / 2, abs=1e-6)


def test_what_holds_at_the_start_is_no_event():
    """The third root of a cosine is the second that rises: the first is where it begins."""
    z0 = real([0.0, 1.0])  # sin t
    for event, time in (
        (position, PI),
        (ic.Event(position, "rising"), 2 * PI),
        (lambda t, z, x: z[:, 0] >= 0, 2 * PI),
        (ic.Event(lambda t, z, x: z[:, 0] >= 0, "falling"), PI),
    ):
        found = ic.integrate(swing, z0, times=SPAN, event=event, solver=SOLVER)
        assert known(found.event_times).item() == pytest.approx(time, rel=1e-8)


@each_solver
@pytest.mark.parametrize("direction", ["any", "rising", "falling"])
def test_a_boolean_event_is_located_to_rounding(solver, direction):
    def low(t, z, x):
        return z[:, 0] < 0

    z0 = real([1.0, 0.0], [-1.0, 0.0])
    found = ic.integrate(swing, z0, times=SPAN, event=ic.Event(low, direction), solver=solver)
    expected = [1.5 * PI, PI / 2] if direction == "falling" else [PI / 2, 1.5 * PI]
    assert known(found.event_times).tolist() == pytest.approx(expected, rel=1e-8)
    # The state returned is one at which it has happened, and a hair from where it has not.
    assert low(0, found.z[-1], None).tolist() == [direction != "falling"] * 2
    assert found.z[-1, :, 0].abs().max().item() < 1e-14
    roots = ic.integrate(
        swing,
        z0,
        times=SPAN,
        event=ic.Event(position, "rising" if direction == "falling" else "falling"),
        solver=solver,
    )
    assert torch.allclose(known(roots.event_times), known(found.event_times), rtol=1e-14)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_boolean_event_costs_as_many_evaluations_as_the_state_has_bits(dtype):
    asked = []

    def late(t, z, x):
        asked.append(t)
        return t.flatten() > 1.2345

    z0 = torch.zeros(1, 1, dtype=dtype)
    found = ic.integrate(
        lambda t, z, x: torch.ones_like(z), z0, times=[0.0, 9.0], event=late, exact_time=True
    )
    eps = torch.finfo(dtype).eps
    assert known(found.event_times).item() == pytest.approx(1.2345, abs=20 * eps)
    bits = round(-math.log2(eps))
    assert len(asked) - int(found.steps) == bits + 2  # one at the start, and one at the end


def test_a_coupled_batch_has_one_event():
    def mean(t, z, x):
        return -z.mean(0, keepdim=True).expand_as(z)

    def half(t, z, x):
        return z.mean(0) - 0.5

    z0 = real([0.5], [1.5])
    options = {"times": [0.0, 3.0], "solver": SOLVER, "coupled": True}
    found = ic.integrate(mean, z0, event=[lambda t, z, x: half(t, z, x) - 1, half], **options)
    assert known(found.event_times).tolist() == pytest.approx([math.log(2)] * 2, rel=1e-9)
    assert known(found.event_index).tolist() == [1, 1]


def test_an_event_that_becomes_nan_behind_another_is_not_asked():
    """The height ends at the ground; its root is NaN below."""
    z0, g = thrown()
    root = lambda t, z, x: z[:, 1].sqrt() + 1  # noqa: E731
    found = ic.integrate(throw, z0, g, times=[0.0, 1.0], event=[root, ground], solver=SOLVER)
    assert found.status.tolist() == [0, 0, 0]
    assert known(found.event_index).tolist() == [1, 1, -1]
    alone = ic.integrate(
        throw, z0, g, times=[0.0, 1.0], event=root, solver=SOLVER, on_failure="ignore"
    )
    assert alone.status.tolist() == [ic.Status.NON_FINITE, ic.Status.NON_FINITE, 0]


def test_a_sample_has_the_event_that_it_has_alone():
    z0, g = thrown()
    events = [ic.Event(ground, "falling"), wall, lambda t, z, x: z[:, 3] < -8]
    together = ic.integrate(throw, z0, g, times=[0.0, 2.5], event=events)
    for i in range(3):
        alone = ic.integrate(throw, z0[[i]], g[[i]], times=[0.0, 2.5], event=events)
        assert torch.allclose(
            known(alone.event_times), known(together.event_times)[[i]], rtol=1e-14, equal_nan=True
        )
        assert torch.equal(known(alone.event_index), known(together.event_index)[[i]])
        assert torch.allclose(alone.z[:, 0], together.z[:, i], rtol=1e-13, atol=1e-14)


def test_no_event_and_no_index_without_a_function():
    found = ic.integrate(swing, real([1.0, 0.0]), times=SPAN)
    assert found.event_index is None
    assert found.event_times is None


def test_an_event_is_a_frozen_part_of_a_call():
    event = ic.Event(position, direction="rising")
    assert pickle.loads(pickle.dumps(event)) == event  # noqa: S301
    assert event != ic.Event(position)
    with pytest.raises(AttributeError):
        event.direction = "any"  # pyright: ignore[reportAttributeAccessIssue]
    with pytest.raises(ic.InputError, match="did you mean 'rising'"):
        ic.Event(position, "risng")  # pyright: ignore[reportArgumentType]
    with pytest.raises(ic.InputError, match="one of any, rising, falling, received None"):
        ic.Event(position, None)  # pyright: ignore[reportArgumentType]
    with pytest.raises(ic.InputError, match="expected a function of .* received 1.0"):
        ic.Event(1.0)  # pyright: ignore[reportArgumentType]
