"""A compiled layer at output times that are the same, and the gradient with respect to them."""

from __future__ import annotations

import pytest
import torch
from support.output_times import TIMES, cotangent, filled
from support.trajectories import inputs, layer, same
from torch import nn

import implicitcore as ic

pytestmark = pytest.mark.usefixtures("plainly")

GRIDS = {
    "repeated": TIMES[[0, 0, 1, 2, 2, 2, 6, 6]],
    "backward": TIMES.flip(0),
    "no span": TIMES[[3, 3]],
    "no span, three": TIMES[[3, 3, 3]],
    "filled up": filled(),
}
METHODS = [ic.Bosh3(), ic.Adams(), pytest.param(ic.Fehlberg45(), marks=pytest.mark.slow)]


@pytest.mark.parametrize("grid", GRIDS.values(), ids=GRIDS)
@pytest.mark.parametrize("solver", METHODS, ids=str)
def test_states_and_every_gradient_are_those_of_the_layer(solver, grid):
    eager = layer(solver)
    compiled, found = ic.compile(eager), []
    for module in (eager, compiled):
        leaf, times = inputs(3).requires_grad_(), grid.clone().requires_grad_()
        solution = module.solve(leaf, times=times)
        assert isinstance(solution, ic.Trajectory)
        assert torch.equal(solution.times, grid) and not solution.status.any()
        wanted = [leaf, times, *eager.parameters()]
        gradient = torch.autograd.grad(solution.z, wanted, cotangent(solution.z))
        found.append((solution.z, *gradient, solution.steps))
    same(*found, rtol=1e-10, atol=1e-12)
    with torch.no_grad():
        for call in (compiled, compiled.inlined[0]):
            torch.testing.assert_close(call(inputs(3), times=grid), found[0][0])


def test_the_gradient_with_respect_to_times_is_that_of_a_dense_computation():
    matrix = torch.tensor([[-1.0, 2.0], [-0.5, -0.3]], dtype=torch.float64)
    eager = layer(ic.Tsit5(rtol=1e-11, atol=1e-12), lambda t, z, x: z @ matrix.T)
    compiled = ic.compile(eager)
    generator = torch.Generator().manual_seed(0)
    leaf = torch.randn(3, 2, dtype=torch.float64, generator=generator).requires_grad_()
    for grid in (TIMES[[0, 1, 1, 4, 6]] + 0.5, filled()):
        times = grid.clone().requires_grad_()
        span = (times - times[..., :1]).expand(3, -1)
        flows = torch.linalg.matrix_exp(span[..., None, None] * matrix)
        exact = torch.einsum("btij,bj->tbi", flows, leaf)
        expected = torch.autograd.grad(exact, [leaf, times], cotangent(exact))
        z = compiled(leaf, times=times)
        torch.testing.assert_close(z, exact, rtol=1e-8, atol=1e-8)
        found = torch.autograd.grad(z, [leaf, times], cotangent(z))
        same(expected, found, rtol=1e-7, atol=1e-7)


def test_times_alone_may_have_a_gradient_and_only_a_first_one():
    eager = layer(ic.Bosh3(), lambda t, z, x: torch.sin(t) * z)
    found = []
    for module in (eager, ic.compile(eager)):
        times = TIMES.clone().requires_grad_()
        z = module(inputs(2), times=times)
        found.append(torch.autograd.grad(z.square().sum(), times, retain_graph=True))
        with pytest.raises(ic.GradientError, match="first derivative"):
            torch.autograd.grad(z.square().sum(), times, create_graph=True)
    same(*found, rtol=1e-10, atol=1e-12)


def test_a_strategy_without_the_gradient_of_its_steps_is_refused_for_times_too():
    compiled = ic.compile(layer(ic.Bosh3(), lambda t, z, x: -z, gradient=ic.Adjoint()))
    times = TIMES.clone().requires_grad_()
    with pytest.raises(ic.GradientError, match="gradient of its steps"):
        compiled(inputs(2), times=times)
    with torch.no_grad():
        assert compiled(inputs(2), times=times).shape == (7, 2, 4)


@pytest.mark.parametrize("failed", [[1], [0, 1, 2]])
@pytest.mark.parametrize("on_failure", ["ignore", "mask"])
def test_a_failed_sample_leaves_no_nan_in_the_gradient_of_times(on_failure, failed):
    def field(t, z, x):
        return torch.where((x > 5) & (t > 1), torch.nan, -z) + 0.1 * x

    eager, x, found = layer(ic.Bosh3(), field, on_failure=on_failure), inputs(3).clamp(max=4), []
    x[failed, 2] = 9.0
    for module in (eager, ic.compile(eager)):
        times = TIMES.expand(3, -1).clone().requires_grad_()
        z = module(x, times=times)
        gradient = torch.zeros_like(times)
        if z.requires_grad:
            (gradient,) = torch.autograd.grad(z, times, cotangent(z))
        assert gradient.isfinite().all()
        found.append((z, gradient))
    same(*found, rtol=1e-10, atol=1e-12)


def test_a_start_that_is_not_finite_is_masked_at_every_time():
    eager, found = layer(ic.Bosh3(), lambda t, z, x: -z, on_failure="mask"), []
    z0 = inputs(3)
    z0[1, 0] = torch.nan
    for module in (eager, ic.compile(eager)):
        leaf, times = z0.clone().requires_grad_(), TIMES[[0, 1, 1, 3]].clone().requires_grad_()
        z = module(inputs(3), leaf, times=times)
        found.append((z, *torch.autograd.grad(z, [leaf, times], cotangent(z))))
    assert all(value.isfinite().all() for value in found[1])
    assert not found[1][0][:, 1, 0].any()
    same(*found, rtol=1e-10, atol=1e-12)


class Timed(nn.Module):
    def __init__(self, inner) -> None:
        super().__init__()
        torch.manual_seed(1)
        self.first, self.layer = nn.Linear(4, 4).double(), inner

    def forward(self, x, times):
        found = self.layer.solve(self.first(x), times=times)
        return found.z.sin(), found.status, found.steps


@pytest.mark.slow(40)
@pytest.mark.parametrize("solver", [ic.Bosh3(), ic.Adams()], ids=str)
def test_a_model_in_one_graph_has_the_gradient_with_respect_to_times(solver):
    torch._dynamo.reset()
    eager = Timed(layer(solver))
    fast = Timed(ic.compile(eager.layer))
    whole = torch.compile(fast, fullgraph=True, backend="aot_eager")
    for grid in (TIMES, *GRIDS.values()):
        found = []
        for call, model in ((eager, eager), (whole, fast)):
            leaf, times = inputs(3).requires_grad_(), grid.clone().requires_grad_()
            z, status, steps = call(leaf, times)
            wanted = [leaf, times, *model.parameters()]
            found.append((z, status, steps, *torch.autograd.grad(z, wanted, cotangent(z))))
        same(*found, rtol=1e-10, atol=1e-12)
    torch._dynamo.reset()


@pytest.mark.parametrize("failed", [[1], [0, 1, 2]])
@pytest.mark.parametrize("on_failure", ["ignore", "mask"])
def test_a_failed_sample_in_one_graph_leaves_no_nan_in_the_gradient_of_times(on_failure, failed):
    def field(t, z, x):
        return torch.where((x > 5) & (t > 1), torch.nan, -z) + 0.1 * x

    torch._dynamo.reset()
    eager, x, found = layer(ic.Bosh3(), field, on_failure=on_failure), inputs(3).clamp(max=4), []
    x[failed, 2] = 9.0
    compiled = ic.compile(eager)
    whole = torch.compile(
        lambda x, times: compiled(x, times=times), fullgraph=True, backend="aot_eager"
    )
    for call in (lambda x, times: eager(x, times=times), whole):
        times = TIMES.expand(3, -1).clone().requires_grad_()
        z = call(x, times)
        gradient = torch.zeros_like(times)
        if z.requires_grad:
            (gradient,) = torch.autograd.grad(z, times, cotangent(z))
        assert gradient.isfinite().all()
        found.append((z.detach(), gradient))
    same(*found, rtol=1e-10, atol=1e-12)
    torch._dynamo.reset()
