"""One step size for the batch: ``coupled=True``, beside one for each sample."""

from __future__ import annotations

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
