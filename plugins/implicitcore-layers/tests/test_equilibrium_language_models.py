"""What equilibrium language models need: a causal cell, carried states, depths, the start alone."""

# pyright: reportArgumentType=false, reportAttributeAccessIssue=false

import pytest
import torch
from torch import nn

import implicitcore as ic
from implicitcore_layers import CausalTransformerCell

BATCH, LENGTH, N = 3, 7, 8


def cell_and_x(dtype=torch.float64):
    torch.manual_seed(0)
    cell = CausalTransformerCell(N, heads=2, expansion=2)
    with torch.no_grad():  # a contraction: x counts for more than z
        cell.after.weight.fill_(0.3)
    x = torch.randn(BATCH, LENGTH, N, generator=torch.Generator().manual_seed(1))
    return cell.to(dtype), x.to(dtype)


@pytest.mark.parametrize("solver", ["picard", "anderson", "broyden", "newton"])
def test_the_equilibrium_at_a_position_does_not_depend_on_later_ones(solver):
    cell, x = cell_and_x()
    layer = ic.build("deq", cell, root_solver={"name": solver, "tol": 1e-10}, on_failure="raise")
    z = layer(x)
    torch.testing.assert_close(cell(z, x), z, rtol=1e-8, atol=1e-8)
    later = x.clone()
    later[:, 4:, 0] += 1
    changed = layer(later)
    torch.testing.assert_close(changed[:, :4], z[:, :4], rtol=1e-7, atol=1e-7)
    assert (changed[:, 4:] - z[:, 4:]).abs().amax(2).min() > 1e-3
    torch.testing.assert_close(layer(x[:, :4]), z[:, :4], rtol=1e-7, atol=1e-7)


def test_the_implicit_gradient_is_that_of_the_steps():
    cell, x = cell_and_x()
    picard = ic.Picard(tol=1e-12, max_steps=300)
    found = []
    for gradient in (ic.Implicit(ic.GMRES(tol=1e-12)), ic.Unrolled()):
        layer = ic.build("deq", cell, root_solver=picard, gradient=gradient)
        found.append(torch.autograd.grad(layer(x).pow(3).sum(), list(cell.parameters())))
    for mine, theirs in zip(*found, strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-7, atol=1e-9)


def test_the_jacobian_regularizer_trains_the_cell():
    cell, x = cell_and_x()
    layer = ic.build("deq", cell)
    solution = layer.solve(x)
    ic.jacobian_regularizer(layer, solution, x).backward()
    grad = cell.mix.weight.grad
    assert grad is not None
    assert grad.isfinite().all()
    assert grad.any()


def test_features_that_heads_cannot_share_are_an_error():
    with pytest.raises(ic.ConfigError, match="features: expected a multiple of 4 heads, got 6"):
        CausalTransformerCell(6)


def test_a_carried_state_goes_on_where_the_last_call_ended():
    """Truncated supervision: a loss after each few steps, the state carried without its graph."""
    cell, x = cell_and_x()
    steps = ic.build("deq", cell, root_solver=ic.Picard(tol=0, max_steps=4), on_failure="ignore")
    steps.gradient = ic.Unrolled()
    z, plain = torch.zeros_like(x), torch.zeros_like(x)
    for _ in range(3):
        state = steps.solve(x, z)
        for _ in range(3):
            plain = cell(plain, x)
        expected = torch.autograd.grad(plain.sum(), cell.mix.weight)[0]
        found = torch.autograd.grad(state.z.sum(), cell.mix.weight)[0]
        torch.testing.assert_close(found, expected)
        z, plain = state.z.detach(), plain.detach()
        torch.testing.assert_close(z, plain)


def test_the_depth_may_be_drawn_at_each_step():
    cell, x = cell_and_x()
    layer = ic.build("deq", cell, gradient="unrolled", on_failure="ignore")
    expected = torch.zeros_like(x)
    for depth in range(1, 5):
        layer.solver = ic.Picard(tol=0, min_steps=depth, max_steps=depth)
        assert set(layer.solve(x).steps.tolist()) == {depth}
        expected = cell(expected, x)
        layer.solver = ic.Picard(tol=0, max_steps=depth + 1)
        layer.gradient = ic.Unrolled(iterates=(depth,))
        torch.testing.assert_close(layer.solve(x).iterates[0], expected)
        layer.gradient = "unrolled"


def test_the_start_alone_is_the_layer_without_its_solve():
    cell, x = cell_and_x()
    predictor = nn.Linear(N, N).double()
    layers = {
        "deq": (ic.build("deq", cell), torch.zeros_like(x)),
        "skip_deq": (ic.build("skip_deq", cell, predictor=predictor), predictor(x)),
        "skip_reg_deq": (ic.build("skip_reg_deq", cell), cell(torch.zeros_like(x), x)),
    }
    for layer, expected in layers.values():
        assert torch.equal(layer.explicit(x), expected)
        assert torch.equal(layer.solve(x).start, expected)
    skip, _ = layers["skip_deq"]
    skip.explicit(x).sum().backward()
    assert predictor.weight.grad is not None
