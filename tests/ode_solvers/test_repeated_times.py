"""Output times of which some are the same."""

from __future__ import annotations

from typing import Any

import pytest
import torch

import implicitcore as ic
from implicitcore.extend import check_times
from implicitcore.ode_solvers.times import distinct

SOLVERS: list[Any] = [
    ic.Tsit5(rtol=1e-8, atol=1e-10),
    ic.DOP853(rtol=1e-8, atol=1e-10),
    ic.Adams(rtol=1e-8, atol=1e-10),
    ic.RK4(dt=0.02),
    ic.ESDIRK(rtol=1e-7, atol=1e-9),
    ic.RadauIIA5(rtol=1e-7, atol=1e-9),
]
GRADIENTS = [ic.Unrolled(), ic.Checkpointed(), ic.Adjoint()]
FILLED = [[0.0, 0.5, 1.0, 1.0], [0.0, 0.0, 0.0, 2.0], [3.0, 3.0, 3.0, 3.0], [1.0, 0.5, 0.5, 0.0]]
EACH = pytest.mark.parametrize("solver", SOLVERS, ids=lambda solver: type(solver).__name__)


def decay(t, z, x):
    return -x * z


def checked(solver, gradient, times):
    """Values and every gradient against z0 exp(-x (t - t0))."""
    times = torch.tensor(times, dtype=torch.float64, requires_grad=True)
    z0 = torch.tensor([[1.0, -2.0], [0.5, 3.0], [2.0, 1.0], [1.0, 1.5]], dtype=torch.float64)
    x = torch.tensor([[0.5, 1.0], [1.5, 0.2], [1.0, 1.0], [0.3, 0.8]], dtype=torch.float64)
    leaves = z0.requires_grad_(), x.requires_grad_(), times
    if isinstance(solver, ic.Adams) and isinstance(gradient, ic.Adjoint):  # it shows no stages
        gradient = ic.Adjoint(solver=SOLVERS[0])
    found = ic.integrate(decay, z0, x, times=times, solver=solver, gradient=gradient)
    on = times.T if times.ndim > 1 else times[:, None].expand(-1, 4)
    exact = z0 * torch.exp(-x * (on - on[:1])[:, :, None])
    assert found.converged.all()
    assert found.times.shape == times.shape
    weights = torch.randn(exact.shape, generator=torch.Generator().manual_seed(0)).double()
    got, wanted = (torch.autograd.grad((z * weights).sum(), leaves) for z in (found.z, exact))
    for one, other in zip((found.z, *got), (exact, *wanted), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-6)
    return found


@EACH
@pytest.mark.parametrize("gradient", GRADIENTS, ids=lambda gradient: type(gradient).__name__)
def test_series_filled_up_with_their_last_time(solver, gradient):
    found = checked(solver, gradient, FILLED)
    assert torch.equal(found.z[2, 0], found.z[3, 0])
    assert torch.equal(found.z[:, 2], found.start[2].expand(4, -1))


@EACH
@pytest.mark.parametrize("times", [[0.0, 0.0, 1.0], [0.0, 1.0, 1.0, 2.0, 2.0], [2.0, 1.0, 1.0]])
def test_one_clock(solver, times):
    for gradient in GRADIENTS:
        checked(solver, gradient, times)


@EACH
def test_where_all_times_are_one_z_stays(solver):
    for gradient in GRADIENTS:
        found = checked(solver, gradient, [1.5, 1.5])
        assert torch.equal(found.z, found.start.expand(2, -1, -1))


def test_repeated_times_cost_no_evaluation():
    z0 = torch.ones(2, 2)
    plain = ic.integrate(decay, z0, 1.0, times=[0.0, 0.5, 1.0])
    again = ic.integrate(decay, z0, 1.0, times=[0.0, 0.5, 0.5, 1.0])
    assert again.evaluations == plain.evaluations
    assert torch.equal(again.z, plain.z[[0, 1, 1, 2]])


def test_a_solver_that_knows_nothing_of_it():
    class Exact(ic.ODESolver):
        def solve(self, system, z0, times, stop=None):
            grid = check_times(times, z0)
            z = z0 * torch.exp(-(grid - grid[0]))[:, None, None]
            none = torch.zeros(len(z0), dtype=torch.int64)
            status = none.to(torch.int8)
            return ic.Trajectory(
                z=z, start=z0, status=status, steps=none, evaluations=0, times=grid
            )

    z0, times = torch.ones(2, 1, dtype=torch.float64), torch.tensor([0.0, 1.0, 1.0, 2.0])
    found = ic.integrate(decay, z0, 1.0, times=times, solver=Exact()).z
    assert torch.allclose(found[:, 0, 0], torch.exp(-times).double())


def test_layers_float32_dense_output_and_events():
    layer = ic.build("neural_ode", lambda z, x: -z)
    z0 = torch.ones(3, 2)
    assert torch.equal(layer(z0, times=[0.0, 0.0]), z0.expand(2, -1, -1))
    found = layer(z0, times=[0.0, 1.0, 1.0])
    assert torch.equal(found[1], found[2])
    dense = ic.integrate(lambda z, x: -z, z0, times=[0.0, 1.0, 1.0], dense=True)
    half = dense.interpolate(torch.tensor([0.5]))
    assert torch.allclose(half, z0.expand(1, -1, -1) * torch.exp(torch.tensor(-0.5)), rtol=1e-3)
    fall = ic.integrate(
        lambda t, z, x: -torch.ones_like(z),
        z0,
        times=[0.0, 0.5, 0.5, 2.0, 2.0],
        event=lambda t, z, x: z[:, 0],
    )
    assert fall.event_times is not None
    assert torch.allclose(fall.event_times.float(), torch.ones(3))
    assert torch.equal(fall.z[1], fall.z[2])


def test_times_that_go_back_are_still_an_error():
    for times in ([0.0, 1.0, 1.0, 0.5], [[0.0, 1.0, 1.0], [0.0, 1.0, 0.5]]):
        with pytest.raises(ic.InputError, match="increasing or decreasing"):
            ic.integrate(decay, torch.ones(2, 1), 1.0, times=times)


def test_distinct_times_and_the_places_of_all():
    times, index = distinct(torch.tensor([0.0, 0.0, 1.0, 1.0]))
    assert (times.tolist(), index.tolist()) == ([0.0, 1.0], [0, 0, 1, 1])
    given = torch.tensor(FILLED, dtype=torch.float64).T
    times, index = distinct(given)
    steps = times.diff(dim=0)
    assert ((steps > 0).all(0) | (steps < 0).all(0)).all()
    assert torch.equal(times.gather(0, index), given)
    assert (times[-1] - times[0]).abs()[2] < 1e-12
