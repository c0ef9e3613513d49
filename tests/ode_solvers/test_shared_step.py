"""One step size for the batch: ``coupled=True``, ``shared_error``; and one for each sample."""

from __future__ import annotations

import math

import pytest
import torch
from support.trajectory_solvers import ADAPTIVE

import implicitcore as ic
from implicitcore.testing.trajectories import logistic

TIMES = torch.tensor([0.0, 1.0, 3.0], dtype=torch.float64)


@pytest.mark.parametrize("method", ADAPTIVE, ids=lambda m: m.__name__)
def test_a_coupled_batch_takes_one_step_with_one_norm(method):
    """That of a single sample whose state is all of theirs."""
    problem, solver = logistic(6), method(rtol=1e-5, atol=1e-7)
    rate, z0 = problem.x.detach(), problem.z0.detach()

    def joined(t, z, x):
        return problem.field(t, z.view(6, 3), rate).reshape(1, 18)

    with torch.no_grad():
        apart, shared = (
            ic.integrate(problem.field, z0, rate, times=TIMES, solver=solver, coupled=coupled)
            for coupled in (False, True)
        )
        one = ic.integrate(joined, z0.view(1, 18), times=TIMES, solver=solver)
        exact = problem.trajectory(TIMES)
    assert len(set(apart.steps.tolist())) > 1
    assert len(set(shared.steps.tolist())) == 1
    assert int(shared.steps[0]) == int(one.steps)
    assert torch.allclose(shared.z.reshape(3, 1, 18), one.z, rtol=1e-12)
    for found in (apart, shared):
        assert found.raise_if_failed().status.shape == (6,)
        assert torch.allclose(found.z, exact, rtol=1e-3)


EXPLICIT = [ic.Bosh3, ic.Tsit5, ic.DOP853]


@pytest.mark.parametrize("gradient", [ic.Unrolled(), ic.Checkpointed()], ids=["unrolled", "lean"])
@pytest.mark.parametrize("method", EXPLICIT, ids=lambda m: m.__name__)
def test_the_worst_error_makes_one_step_that_is_within_the_tolerance_for_each(method, gradient):
    """More of them than any sample takes alone: who is the worst changes on the way."""
    problem, options = logistic(6, 20.0), {"rtol": 1e-5, "atol": 1e-7}
    apart, shared = (
        ic.integrate(
            problem.field,
            problem.z0,
            problem.x,
            times=TIMES,
            solver=method(**options, norm=norm),
            gradient=gradient,
        )
        for norm in (None, ic.shared_error)
    )
    assert len(set(apart.steps.tolist())) > 1
    assert set(shared.steps.tolist()) == {int(shared.steps[0])}
    assert int(apart.steps.max()) <= int(shared.steps[0]) <= 1.4 * int(apart.steps.max())
    expected = problem.trajectory(TIMES)
    assert torch.allclose(shared.z, expected, rtol=1e-4, atol=1e-6)
    found, closed = (
        torch.autograd.grad(z.square().sum(), problem.leaves) for z in (shared.z, expected)
    )
    for one, other in zip(found, closed, strict=True):
        assert ((one - other).norm() / other.norm()).item() < 1e-3


def test_with_the_worst_error_all_else_is_of_each_sample():
    """A NaN, an event, output times: those of its sample, and no other has steps from it."""
    rate = torch.tensor([[1.0], [torch.nan], [3.0]], dtype=torch.float64)
    z0, solver = torch.ones_like(rate), ic.Tsit5(rtol=1e-6, norm=ic.shared_error)
    decay = lambda t, z, rate: -rate * z  # noqa: E731
    low = lambda t, z, rate: z[:, 0] - 0.1  # noqa: E731
    options = {"times": TIMES, "solver": solver, "event": low, "on_failure": "ignore"}
    found = ic.integrate(decay, z0, rate, **options)
    assert found.status.tolist() == [0, ic.Status.NON_FINITE, 0]
    assert found.event_times is not None
    assert found.event_times[[0, 2]].tolist() == pytest.approx(
        [math.log(10), math.log(10) / 3], rel=1e-5
    )
    own = torch.tensor([[0.0, 1.0], [0.0, 1.0], [2.0, 0.0]], dtype=torch.float64)
    each = ic.integrate(decay, z0, rate.nan_to_num(2.0), times=own, solver=solver)
    exact = torch.exp(-rate.nan_to_num(2.0)[:, 0] * (own[:, 1] - own[:, 0]))
    assert torch.allclose(each.z[-1, :, 0], exact, rtol=1e-5)
    empty = ic.integrate(decay, z0[:0], rate[:0], times=TIMES, solver=solver)
    assert empty.z.shape == (3, 0, 1)


def test_what_the_page_says_was_measured():
    """docs/migrate.md: evaluations and steps on 64 logistic equations."""
    rows = [
        (4.0, ic.Tsit5(rtol=1e-5, atol=1e-7), (128, 6, 21), (110, 18, 18)),
        (20.0, ic.Tsit5(rtol=1e-5, atol=1e-7), (206, 14, 34), (194, 32, 32)),
        (4.0, ic.Bosh3(rtol=1e-4, atol=1e-6), (107, 12, 35), (89, 29, 29)),
    ]
    for fastest, solver, *expected in rows:
        problem = logistic(64, fastest)
        for coupled, wanted in zip((False, True), expected, strict=True):
            with torch.no_grad():
                found = ic.integrate(
                    problem.field,
                    problem.z0,
                    problem.x,
                    times=TIMES[[0, 2]],
                    solver=solver,
                    coupled=coupled,
                )
            steps = int(found.steps.min()), int(found.steps.max())
            assert (found.evaluations, *steps) == pytest.approx(wanted, rel=0.1)
