"""SteadyState: when a sample stops."""

from __future__ import annotations

import pytest
import torch

import implicitcore as ic
from implicitcore.ode_solvers.step_size import Adaptive
from implicitcore.testing.problems import Cell, inputs

# Entries that differ in size by six orders.
SIZES = torch.logspace(-4, 2, 6, dtype=torch.float64)


def shifted(z, x):
    return 0.5 * torch.sin(z / SIZES) * SIZES + x * SIZES


def solve(f, x, **options):
    with torch.no_grad():
        return ic.fixed_point(
            f, torch.zeros_like(x), x, solver=ic.SteadyState(**options), on_failure="ignore"
        )


@pytest.mark.parametrize(
    ("options", "rule"),
    [
        ({"tol": 1e-3}, lambda g, fz: g.norm(dim=1) <= 1e-3 * fz.norm(dim=1)),
        ({"tol": 0.0, "atol": 1e-3}, lambda g, fz: g.norm(dim=1) <= 1e-3),
        ({"tol": 1e-3, "measure": "entries"}, lambda g, fz: (g.abs() <= 1e-3 * fz.abs()).all(1)),
        ({"tol": 0.0, "atol": 1e-3, "measure": "entries"}, lambda g, fz: (g.abs() <= 1e-3).all(1)),
        (
            {"tol": 1e-3, "atol": 1e-6, "measure": "entries"},
            lambda g, fz: (g.abs() <= 1e-3 * fz.abs() + 1e-6).all(1),
        ),
    ],
    ids=["rel_norm", "abs_norm", "rel", "abs", "both"],
)
@pytest.mark.parametrize(
    "ode_solver", [ic.Adams(), ic.Bosh3(), ic.Euler(dt=0.5)], ids=lambda s: type(s).__name__
)
def test_a_sample_stops_where_its_rule_is_met_and_not_before(options, rule, ode_solver):
    x = inputs()
    solution = solve(shifted, x, ode_solver=ode_solver, max_steps=500, **options).raise_if_failed()
    fz = shifted(solution.z, x)
    assert bool(rule(fz - solution.z, fz).all())
    assert torch.allclose(solution.residual, (fz - solution.z).norm(dim=1))
    early = solve(
        shifted,
        x,
        ode_solver=ode_solver,
        max_steps=max(int(solution.steps.min()) - 2, 1),
        **options,
    )
    if int(solution.steps.min()) > 3:
        assert not early.converged.any()


def test_the_largest_entries_do_not_speak_for_the_others():
    x = inputs()
    by_norm, by_entries = (
        solve(shifted, x, tol=1e-3, measure=measure).raise_if_failed()
        for measure in ("norm", "entries")
    )
    error = (shifted(by_norm.z, x) - by_norm.z).abs() / by_norm.z.abs()
    assert (
        error.max()
        > 1e-3
        > ((shifted(by_entries.z, x) - by_entries.z).abs() / shifted(by_entries.z, x).abs()).max()
    )


@pytest.mark.parametrize("measure", ["norm", "entries"])
def test_each_sample_by_itself(measure):
    x = inputs()
    together = solve(shifted, x, measure=measure)
    for i in range(8):
        alone = solve(shifted, x[i : i + 1], measure=measure)
        assert torch.allclose(alone.z[0], together.z[i], rtol=1e-12)
        assert alone.steps[0] == together.steps[i]


@pytest.mark.parametrize("measure", ["norm", "entries"])
def test_rounding_is_found_out(measure):
    """No float32 residual falls to 1e-9: the sample stops long before its steps are spent, with
    what there is."""
    cell, x = Cell(dtype=torch.float32), inputs(dtype=torch.float32)
    solution = solve(cell, x, tol=1e-9, measure=measure, max_steps=1000)
    assert set(solution.status.tolist()) <= {ic.Status.STALLED, ic.Status.CONVERGED}
    assert ic.Status.STALLED in solution.status
    assert int(solution.steps.max()) <= 200
    assert solution.residual.max() < 1e-6


@pytest.mark.parametrize(
    "ode_solver",
    [ic.Bosh3(rtol=0.1, atol=0.1), ic.Tsit5(rtol=0.1, atol=0.1), ic.Adams(rtol=0.5, atol=0.5)],
    ids=str,
)
def test_a_residual_that_cannot_fall_below_the_error_of_the_steps_is_found_out(
    ode_solver, monkeypatch
):
    """Without the bound on the error of a settling step, the residual stays where the stepping
    tolerance leaves it."""
    monkeypatch.setattr(Adaptive, "steady_state", lambda self: self)
    x = inputs()
    solution = solve(
        lambda z, x: z - 3 * (z - x), x, ode_solver=ode_solver, tol=1e-10, max_steps=5000
    )
    assert solution.status.tolist() == [ic.Status.STALLED] * 8
    assert int(solution.steps.max()) < 500


def test_a_swing_stalls_alone():
    """Steps of two turn the sign of z - 1 for ever; half a step away, the others converge."""
    rate = torch.tensor([[0.5], [1.0], [0.2]], dtype=torch.float64)
    swing = lambda z, x: z - x * (z - 1)  # noqa: E731
    solution = solve(swing, rate, ode_solver=ic.Euler(dt=2.0), max_steps=1000)
    assert solution.status.tolist() == [ic.Status.CONVERGED, ic.Status.STALLED, ic.Status.CONVERGED]
    assert int(solution.steps[1]) == 60
    spun = solve(swing, rate, ode_solver=ic.Euler(dt=2.0), max_steps=1000, patience=None)
    assert spun.status.tolist() == [ic.Status.CONVERGED, ic.Status.MAX_STEPS, ic.Status.CONVERGED]


def test_a_transient_is_no_stagnation():
    """From near the root that repels, the residual rises a million times before it falls."""
    z0 = torch.full((2, 1), 1e-6, dtype=torch.float64)
    for ode_solver in (ic.Adams(), ic.Euler(dt=0.5)):
        solver = ic.SteadyState(ode_solver=ode_solver, tol=1e-12, max_steps=400)
        solution = ic.fixed_point(lambda z, x: z + z * (1 - z), z0, solver=solver).raise_if_failed()
        assert torch.allclose(solution.z, torch.ones(2, 1, dtype=torch.float64))


def test_a_layer_tells_of_stagnation():
    layer = ic.ImplicitLayer(
        ic.FixedPoint(Cell(dtype=torch.float32)), solver=ic.SteadyState(tol=1e-9, max_steps=1000)
    )
    with pytest.warns(ic.ConvergenceWarning, match="stalled"):
        layer(inputs(dtype=torch.float32))
