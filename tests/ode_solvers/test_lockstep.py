"""Equal steps, which all samples take together, give what they give one by one."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from support.operations import Operations
from torch import Tensor

import implicitcore as ic
from implicitcore.extend import Step, StepwiseODESolver, System
from implicitcore.ode_solvers.grid import Grid
from implicitcore.ode_solvers.integration import Integration
from implicitcore.ode_solvers.lockstep import EVERY, Lockstep
from implicitcore.ode_solvers.step_chooser import GridSteps
from implicitcore.ode_solvers.step_size import Fixed, StepSize
from implicitcore.ode_solvers.stops import Stops

SOLVERS = [
    ic.Euler(dt=0.02),
    ic.Midpoint(dt=0.03),
    ic.Heun(dt=0.03),
    ic.Heun3(dt=0.04),
    ic.RK4(dt=0.05),
    ic.ImplicitEuler(dt=0.05),
    ic.Trapezoid(dt=0.05),
]
GRADIENTS = [ic.Unrolled(), ic.Checkpointed(), ic.Checkpointed(checkpoints=3), ic.Adjoint()]
TIMES = {
    "two": torch.tensor([0.0, 1.0]),
    "uneven": torch.tensor([0.0, 0.11, 0.5, 0.503, 1.3], dtype=torch.float64),
    "backwards": torch.tensor([1.0, 0.6, 0.0]),
}
OTHERS = [0, 1, 2, 4]


def named(part: object) -> str:
    return type(part).__name__


def field(t: Tensor, z: Tensor, x: Tensor) -> Tensor:
    """Nonlinear, and the time matters."""
    return torch.tanh(z * x) * torch.cos(t) - 0.3 * z


def solved(solver: Any, gradient: Any, times: Tensor, **options: Any) -> tuple[Any, list[Tensor]]:
    torch.manual_seed(0)
    z0 = torch.randn(5, 3, dtype=torch.float64, requires_grad=True)
    x = torch.randn(5, 3, dtype=torch.float64, requires_grad=True)
    v = options.pop("v", field)
    found = ic.integrate(
        v, z0, x, times=times, solver=solver, gradient=gradient, **options, on_failure="ignore"
    )
    weights = torch.randn_like(found.z)
    return found, list(torch.autograd.grad((found.z * weights).sum(), (z0, x)))


def one_by_one(run: Integration, chooser: GridSteps) -> Lockstep:
    """No step is taken together."""
    together = Lockstep(run, chooser)
    together.going = False
    return together


@pytest.mark.parametrize("solver", SOLVERS, ids=named)
@pytest.mark.parametrize("gradient", GRADIENTS, ids=repr)
@pytest.mark.parametrize("times", TIMES)
@pytest.mark.parametrize("step_at", [None, [0.3, 0.5]], ids=["", "jumps"])
def test_steps_taken_together_are_those_taken_one_by_one(
    solver, gradient, times, step_at, monkeypatch
):
    found, gradients = solved(solver, gradient, TIMES[times], step_at=step_at)
    monkeypatch.setattr(Lockstep, "of", one_by_one)
    expected, others = solved(solver, gradient, TIMES[times], step_at=step_at)
    assert torch.equal(found.z, expected.z)
    assert torch.equal(found.steps, expected.steps)
    assert torch.equal(found.status, expected.status)
    assert found.evaluations == expected.evaluations
    # One by one, an implicit solver makes itself ready in an adjoint where no step follows, too.
    spare = 2 if isinstance(gradient, ic.Adjoint) and not solver.lockstep else 0
    assert 0 <= expected.backward.vjps - found.backward.vjps <= spare
    for a, b in zip(gradients, others, strict=True):
        assert torch.allclose(a, b, rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize("gradient", GRADIENTS[:3], ids=repr)
@pytest.mark.parametrize("when", [0.1, 0.52, 0.64, 0.99])
def test_a_sample_that_fails_leaves_the_others_as_they_are(gradient, when):
    """Before the first look, after it, and at the end: 100 steps have four looks."""

    def fails(t: Tensor, z: Tensor, x: Tensor) -> Tensor:
        bad = (t > when) & (torch.arange(5)[:, None] == 3)
        return field(t, z, x) + torch.where(bad, torch.inf, 0.0)

    solver, times = ic.RK4(dt=0.01), torch.tensor([0.0, 0.5, 1.0])
    clean, expected = solved(solver, gradient, times)
    found, gradients = solved(solver, gradient, times, v=fails)
    assert 100 > EVERY
    assert found.status.tolist() == [0, 0, 0, ic.Status.NON_FINITE, 0]
    assert torch.equal(found.z[:, OTHERS], clean.z[:, OTHERS])
    assert torch.equal(found.steps[OTHERS], clean.steps[OTHERS])
    assert bool(found.z.isfinite().all())
    last = int(when * 100 + 1e-9)
    assert found.steps[3] in (last, last + 1, last + 2)
    for a, b in zip(gradients, expected, strict=True):
        assert torch.allclose(a[OTHERS], b[OTHERS], rtol=1e-9)


@pytest.mark.parametrize("gradient", GRADIENTS[:3], ids=repr)
def test_the_steps_end_where_a_span_has_too_many(gradient):
    """51 steps, then 60 of the 100 to the next time."""
    solver, times = ic.Euler(dt=0.01, max_steps=60), torch.tensor([0.0, 0.51, 1.51, 2.0])
    found, gradients = solved(solver, gradient, times, hit_times=True)
    assert found.status.tolist() == [ic.Status.MAX_STEPS] * 5
    assert found.steps.tolist() == [111] * 5
    there, expected = solved(ic.Euler(dt=0.01), gradient, torch.tensor([0.0, 0.51, 1.11]))
    assert torch.allclose(found.z[:2], there.z[:2], rtol=1e-6)
    assert torch.allclose(found.z[2], there.z[2], rtol=1e-6)
    assert torch.equal(found.z[3], found.z[2])
    assert all(bool(g.isfinite().all() & (g != 0).any()) for g in (*gradients, *expected))


@pytest.mark.parametrize("gradient", GRADIENTS[:3], ids=repr)
def test_output_times_are_no_stops(gradient):
    """60 steps of the 200 for all output times together: two of them are reached."""
    solver, times = ic.Euler(dt=0.01, max_steps=60), torch.tensor([0.0, 0.295, 0.51, 1.51, 2.0])
    found, gradients = solved(solver, gradient, times)
    assert found.status.tolist() == [ic.Status.MAX_STEPS] * 5
    assert found.steps.tolist() == [60] * 5
    there, _ = solved(ic.Euler(dt=0.01), gradient, torch.tensor([0.0, 0.51, 0.6]))
    assert torch.allclose(found.z[2:4], there.z[1:], rtol=1e-6)
    assert torch.equal(found.z[3], found.z[4])
    between, _ = solved(ic.Euler(dt=0.01), gradient, torch.tensor([0.0, 0.295, 0.59, 0.6]))
    assert torch.allclose(found.z[1], between.z[1], rtol=1e-6)
    assert all(bool(g.isfinite().all() & (g != 0).any()) for g in gradients)


@dataclass(frozen=True, kw_only=True)
class Hiding(StepwiseODESolver[Tensor]):
    """Somebody's step that ends at zero where it is not finite."""

    @property
    def step_size(self) -> StepSize:
        return Fixed(0.01)

    def step(self, system: System, t: Tensor, dt: Tensor, z: Tensor, state: Tensor) -> Step:
        z_next = z + dt[:, None] * state
        return Step(torch.where((t < 0.5)[:, None], z_next.nan_to_num(), z_next))


def test_a_step_may_hide_what_is_not_finite():
    def fails(t: Tensor, z: Tensor, x: None) -> Tensor:
        return torch.where((z > 2) & (t < 0.6), torch.nan, z)

    z0 = torch.tensor([[1.0], [1.5]])
    found = ic.integrate(fails, z0, times=torch.tensor([0.0, 0.7]), solver=Hiding())
    assert found.status.tolist() == [ic.Status.CONVERGED, ic.Status.CONVERGED]
    late = ic.integrate(
        fails, z0 * 1.2, times=torch.tensor([0.0, 0.7]), solver=Hiding(), on_failure="ignore"
    )
    assert late.status.tolist() == [ic.Status.NON_FINITE, ic.Status.CONVERGED]


@pytest.mark.parametrize(("solver", "most"), [(ic.Euler, 4), (ic.RK4, 17)])
def test_a_step_costs_its_stages(solver, most):
    """Two views a stage for t and the state, and what the method is made of: no mask, no look."""
    counts = []
    for steps in (64, 64 + 10 * EVERY):
        with Operations() as mode, torch.no_grad():
            ic.integrate(
                lambda t, z, x: -z,
                torch.ones(2, 3),
                times=torch.tensor([0.0, 1.0]),
                solver=solver(dt=1 / steps),
            )
        counts.append(Counter(mode.names))
    more = counts[1] - counts[0]
    assert more["_local_scalar_dense"] == 10
    assert more.total() <= 10 * EVERY * most + 40


def stops(times, hit=False, step_at=None):
    return Stops.of(times, torch.zeros(1, 1), hit_times=hit, step_at=step_at)


@pytest.mark.parametrize("start", [0.0, 1e6])
def test_a_grid_is_exact_at_its_stops(start):
    times = start + torch.tensor([0.0, 0.3, 1.0], dtype=torch.float64)
    grid = Grid.equal(stops(times, hit=True), 0.1, 1000)
    assert grid.stops == [visit.step for visit in grid.visits] == [3, 10]
    assert torch.equal(grid.end[[2, 9]], times[1:])
    assert torch.equal(grid.t[1:], grid.end[:-1])
    assert grid.stops_before(2) == 0 and grid.stops_before(3) == 1 and grid.stops_before(10) == 2


@pytest.mark.parametrize("sign", [1, -1])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("start", [0.0, 7.0])
def test_output_times_change_no_step(sign, dtype, start):
    """Those that a step passes, those at its end up to rounding, and one just behind it."""
    given = torch.tensor([0.0, 0.02, 0.03, 0.3, 0.31, 0.7, 0.95, 1.0], dtype=torch.float64)
    times = (sign * (start + given)).to(dtype)
    grid, plain = (Grid.equal(stops(t), 0.1, 1000) for t in (times, times[[0, -1]]))
    assert torch.equal(grid.size, plain.size)
    torch.testing.assert_close(grid.end, plain.end)
    assert torch.equal(grid.end[[2, 6, 9]], times[[3, 5, 7]])
    assert torch.equal(grid.t[1:], grid.end[:-1])
    expected = [(1, 3, False), (3, 4, True), (4, 5, False), (7, 6, True), (10, 7, False)]
    assert [visit[:3] for visit in grid.visits] == [*expected, (10, 8, True)]
    assert grid.stops == [10] and [visit.stops for visit in grid.visits] == [False] * 5 + [True]


def test_a_grid_that_is_cut_off_reaches_the_times_before():
    times = torch.tensor([0.0, 0.15, 0.4, 0.45, 1.0], dtype=torch.float64)
    grid = Grid.equal(stops(times), 0.1, 4)
    assert len(grid) == 4 and grid.stops == []
    assert [visit[:3] for visit in grid.visits] == [(2, 2, False), (4, 3, True)]
