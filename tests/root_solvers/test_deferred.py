"""The stop test of an accelerator, run on a CPU: what a CPU finds, a few evaluations later."""

from __future__ import annotations

import pytest
import torch

import implicitcore as ic
from implicitcore.root_solvers.stop_criterion import CHECK_EVERY
from implicitcore.tensors import host
from implicitcore.testing.problems import inputs

OPTIONS = {"tol": 1e-9, "max_steps": 203}
SOLVERS = [ic.Picard(**OPTIONS), ic.Anderson(**OPTIONS), ic.Broyden(**OPTIONS)]
each_solver = pytest.mark.parametrize("solver", SOLVERS, ids=lambda s: type(s).__name__)
RATES = torch.linspace(0.1, 0.9, 6, dtype=torch.float64)
N = 5


def cell(z, x):
    value, rate = x
    return rate[:, None] * torch.sin(z.roll(1, 1)) + value


def solved(f, x, solver, monkeypatch, *, on_host):
    with monkeypatch.context() as patch, torch.no_grad():
        patch.setattr(host, "on_host", lambda tensor: on_host)
        return ic.fixed_point(
            f,
            torch.zeros(len(RATES), N, dtype=torch.float64),
            x,
            solver=solver,
            on_failure="ignore",
        )


def both(f, x, solver, monkeypatch):
    return (solved(f, x, solver, monkeypatch, on_host=on_host) for on_host in (True, False))


@each_solver
def test_it_finds_what_a_cpu_finds(solver, monkeypatch):
    x = inputs(len(RATES), N), RATES
    here, there = both(lambda z, x: cell(z, x), x, solver, monkeypatch)
    assert len(here.steps.unique()) > 1
    assert torch.equal(here.steps, there.steps)
    assert torch.allclose(here.z, there.z, rtol=1e-12, atol=0)
    assert torch.allclose(here.residual, there.residual, rtol=1e-3, atol=1e-14)
    assert here.converged.all()
    assert there.converged.all()
    late = there.evaluations - here.evaluations
    assert 0 <= late <= CHECK_EVERY  # the next look, and one more that asks whether samples mix


@each_solver
def test_samples_that_fail_have_the_same_status(solver, monkeypatch):
    """One is lost at once, one has no root within its steps, and the others do not see it."""
    rates = RATES.clone()
    rates[1], rates[3] = torch.nan, 1e3
    x = inputs(len(RATES), N), rates
    here, there = both(cell, x, solver, monkeypatch)
    assert torch.equal(here.status, there.status)
    assert torch.equal(here.steps, there.steps)
    assert here.status[1] == ic.Status.NON_FINITE
    assert here.status[3] != ic.Status.CONVERGED
    good = [0, 2, 4, 5]
    assert there.converged[good].all()
    assert torch.allclose(here.z[good], there.z[good], rtol=1e-12, atol=0)


@each_solver
def test_a_start_at_the_root_costs_one_evaluation(solver, monkeypatch):
    x = torch.zeros(len(RATES), N, dtype=torch.float64), RATES
    assert solved(cell, x, solver, monkeypatch, on_host=False).evaluations == 1


@pytest.mark.parametrize(("share", "asked"), [(0.0, 1), (1e-6, 2)], ids=["apart", "mixing"])
def test_f_is_asked_until_its_samples_are_apart_to_the_bit(share, asked, monkeypatch):
    """In two solves; that a mixing f stays within a loose tolerance says nothing of a tight one."""
    x = inputs(len(RATES), N) * torch.logspace(0, -3, len(RATES), dtype=torch.float64)[:, None]
    rates = torch.linspace(0.4, 0.55, len(RATES), dtype=torch.float64)[:, None]
    solver = ic.Picard(tol=3e-2)

    def f(z, x):
        return rates * torch.sin(z.roll(1, 1)) + x + share * z.mean(0, keepdim=True)

    found = [solved(f, x, solver, monkeypatch, on_host=False) for _ in range(2)]
    steps = found[0].steps
    assert len(steps[steps > CHECK_EVERY].unique()) > 1  # some stop apart between the last looks
    assert steps.max() <= 2 * CHECK_EVERY
    spent = sum(solution.evaluations for solution in found)
    assert spent == 2 * 2 * CHECK_EVERY + asked
