"""The controllers of the step, its bounds, and tolerances that cannot be met."""

from __future__ import annotations

import warnings

import pytest
import torch
from torch import Tensor

import implicitcore as ic
from implicitcore.extend import Packing, System
from implicitcore.ode_solvers.step_size import Adaptive, Controller
from implicitcore.testing.trajectories import logistic

CONTROLLERS: list[Controller] = ["i", "pi", "pid"]
SPAN = torch.tensor([0.0, 10.0], dtype=torch.float64)


def brusselator(t: Tensor, z: Tensor, x: Tensor) -> Tensor:
    """Hairer, Norsett, Wanner, Solving Ordinary Differential Equations I (1993), section II.4,
    (4.15)."""
    a, b = z.unbind(1)
    return torch.stack((1 + a * a * b - 4 * a, 3 * a - a * a * b), 1)


def solve(solver: ic.ODESolver, z0: Tensor | None = None, **options) -> ic.Trajectory:
    z0 = torch.tensor([[1.5, 3.0]], dtype=torch.float64) if z0 is None else z0
    with torch.no_grad():
        return ic.integrate(brusselator, z0, times=SPAN, solver=solver, **options)


@pytest.mark.parametrize("cls", [ic.Bosh3, ic.Fehlberg45, ic.Dopri5, ic.Tsit5, ic.DOP853])
def test_every_controller_keeps_the_error_near_the_tolerance_at_a_like_cost(cls):
    exact = solve(ic.DOP853(rtol=1e-12, atol=1e-12)).z[-1]
    costs = []
    for controller in CONTROLLERS:
        found = solve(cls(rtol=1e-6, atol=1e-6, controller=controller)).raise_if_failed()
        assert (found.z[-1] - exact).abs().max() < 1e-4
        costs.append(found.evaluations)
    assert max(costs) < 1.35 * min(costs), costs


def sizes(controller: Controller, errors: list[float]) -> list[float]:
    """The factors of the step after each error, at order 1: safety is 0.9."""
    control = Adaptive(1.0, 0.0, 1, controller=controller)
    one, last, found = torch.ones(1, dtype=torch.float64), torch.ones(1, dtype=torch.float64), []
    system = System.of(ic.VectorField(brusselator), None, Packing.of(one[:, None]))
    for error in errors:
        decision = control.accept(
            system, one[:, None], one[:, None], error * one[:, None], one, last
        )
        last = control.remember(decision.accept, decision.error, last)
        found.append(decision.size.item() / 0.9)
    return found


def test_the_controllers_are_the_published_formulas():
    errors = [0.5, 0.8, 2.0, 0.4]
    assert sizes("i", errors) == pytest.approx([2, 1.25, 0.5, 2.5])
    assert sizes("pi", errors) == pytest.approx(
        [2**0.7, 0.8**-0.7 * 0.5**0.4, 0.5, 0.4**-0.7 * 0.8**0.4]
    )
    pid = [2**0.49, 0.8**-0.49 * 0.5**0.34, 0.5, 0.4**-0.49 * 0.8**0.34 * 0.5**-0.1]
    assert sizes("pid", errors) == pytest.approx(pid)


def test_more_memory_means_fewer_rejections_where_stability_limits_the_step():
    """A linear decay much faster than the span: the step settles at the border of stability."""
    field = lambda t, z, x: -1000 * (z - torch.cos(t))  # noqa: E731
    steps = {}
    for controller in CONTROLLERS:
        solver = ic.Dopri5(rtol=1e-4, atol=1e-4, controller=controller)
        steps[controller] = ic.integrate(
            field, torch.ones(1, 1, dtype=torch.float64), times=SPAN / 10, solver=solver
        ).steps.item()
    assert steps["pi"] < steps["i"]


def test_no_step_is_longer_than_max_step():
    seen = []

    def field(t, z, x):
        seen.append(t.item())
        return torch.ones_like(z)

    solver = ic.Tsit5(max_step=0.25, first_step=3.0)
    solution = ic.integrate(
        field, torch.zeros(1, 1, dtype=torch.float64), times=SPAN, solver=solver
    ).raise_if_failed()
    assert solution.steps.item() == 40
    assert max(b - a for a, b in zip(seen, seen[1:], strict=False)) < 0.25


def test_a_sample_that_needs_a_shorter_step_than_min_step_has_diverged():
    problem = logistic()
    with torch.no_grad():
        free = ic.integrate(
            problem.field,
            problem.z0,
            problem.x,
            times=SPAN / 10,
            solver=ic.Tsit5(rtol=1e-10, atol=1e-10),
        )
        solver = ic.Tsit5(rtol=1e-10, atol=1e-10, min_step=0.05)
        bound = ic.integrate(
            problem.field,
            problem.z0,
            problem.x,
            times=SPAN / 10,
            solver=solver,
            on_failure="ignore",
        )
    assert bool(free.converged.all())
    assert set(bound.status.tolist()) == {ic.Status.CONVERGED, ic.Status.DIVERGED}
    assert torch.equal(
        bound.converged, problem.x.flatten() < problem.x.flatten()[bound.status.argmax()]
    )  # the slow ones made it


@pytest.mark.parametrize("option", ["min_step", "max_step", "controller"])
def test_bad_options_say_what_is_expected(option):
    with pytest.raises(ic.ConfigError, match=option):
        ic.Tsit5(**{option: -1})  # pyright: ignore[reportArgumentType]


@pytest.mark.parametrize(
    ("dtype", "rtol", "warned"),
    [
        (torch.float32, 1e-9, True),
        (torch.float32, 1e-6, False),
        (torch.complex64, 1e-9, True),
        (torch.float64, 1e-17, True),
    ]
    + [(torch.float64, 1e-12, False), (torch.bfloat16, 1e-3, False), (torch.float16, 1e-9, True)],
)
def test_a_tolerance_below_the_precision_is_named(dtype, rtol, warned):
    solver = ic.Tsit5(rtol=rtol, atol=rtol, max_steps=3)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        ic.integrate(
            lambda t, z, x: -z,
            torch.ones(1, 1, dtype=dtype),
            times=SPAN,
            solver=solver,
            on_failure="ignore",
        )
    assert [f"below the precision of {dtype}" in str(warning.message) for warning in caught] == [
        True
    ] * warned
    assert all(issubclass(warning.category, ic.ConvergenceWarning) for warning in caught)
