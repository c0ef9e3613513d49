"""The loop of a graph against the eager one: the same steps, statuses and iterates."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

import implicitcore as ic
from implicitcore.graph.layer import in_graph

SOLVERS = [
    ic.Picard(tol=1e-6),
    ic.Picard(tol=0.0, atol=1e-6, damping=0.7, max_steps=30),
    ic.Picard(tol=1e-3, min_steps=20),
    ic.Anderson(tol=1e-6),
    ic.Anderson(tol=1e-6, depth=2, damping=0.9, max_steps=30),
    ic.Anderson(tol=1e-6, plain_rate=0.5),
    ic.Anderson(tol=1e-6, depth=2, plain_rate=0.7),
    ic.Anderson(tol=1e-6, compact=True, regularization=1e-8),
    ic.Broyden(tol=1e-6),
    ic.Broyden(tol=1e-6, memory=3),
    ic.Broyden(tol=1e-6, variant="bad", memory=4),
]


class Cell(nn.Module):
    """tanh(W z + x), a contraction at gain 0.5 and far from one at 3."""

    def __init__(self, gain: float, n: int = 16) -> None:
        super().__init__()
        self.linear = nn.Linear(n, n)
        with torch.no_grad():
            self.linear.weight.mul_(2 * gain)

    def forward(self, z, x):
        return torch.tanh(self.linear(z) + x)


def same(layer: ic.ImplicitLayer, x, *, extra: int = 0, **tolerances) -> ic.Solution:
    with torch.no_grad():
        eager, graph = layer.solve(x), in_graph(copy.deepcopy(layer)).solve(x)  # pyright: ignore
    assert isinstance(eager, ic.Solution)
    assert torch.equal(graph.steps, eager.steps)
    assert torch.equal(graph.status, eager.status)
    assert graph.evaluations == eager.evaluations - extra
    torch.testing.assert_close(graph.z, eager.z, equal_nan=True, **tolerances)
    torch.testing.assert_close(graph.residual, eager.residual, **tolerances)
    return eager


@pytest.mark.usefixtures("plainly")
@pytest.mark.parametrize("gain", [0.5, 0.9, 1.6, 3.0])
@pytest.mark.parametrize("solver", SOLVERS, ids=str)
def test_each_solver_takes_its_steps(solver, gain):
    torch.manual_seed(1)
    layer = ic.ImplicitLayer(ic.FixedPoint(Cell(gain)), solver=solver, on_failure="ignore").double()
    same(layer, torch.randn(9, 16, dtype=torch.float64), rtol=1e-7, atol=1e-8)


@pytest.mark.usefixtures("plainly")
@pytest.mark.parametrize("solver", [ic.Picard(), ic.Anderson(), ic.Broyden()], ids=str)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_every_end_of_a_sample_has_its_status(solver, dtype):
    rate = torch.tensor([0.3, 0.9, 1.5, -40.0, float("nan"), 0.0], dtype=dtype)

    def f(z, x):
        return x[0].unsqueeze(1) * z + x[1]

    x = (rate, torch.ones(6, 3, dtype=dtype))
    layer = ic.ImplicitLayer(
        ic.FixedPoint(f), solver=solver, start=ic.Zeros((3,)), on_failure="ignore"
    )
    loose = 0.1 if dtype == torch.bfloat16 else 1e-4
    found = same(layer, x, rtol=loose, atol=loose)
    assert found.status[[0, 4, 5]].tolist() == [0, 3, 0]


@pytest.mark.usefixtures("plainly")
def test_a_state_without_a_fixed_point_has_not_converged():
    layer = ic.ImplicitLayer(
        ic.FixedPoint(lambda z, x: 1.5 * z + x),
        solver=ic.Picard(tol=0.4, max_steps=200),
        on_failure="ignore",
    )
    assert same(layer, torch.ones(2, 3)).status.tolist() == [2, 2]


@pytest.mark.usefixtures("plainly")
@pytest.mark.parametrize("scale", [1e-25, 1e25])
def test_norms_neither_under_nor_overflow(scale):
    layer = ic.ImplicitLayer(
        ic.FixedPoint(lambda z, x: 0.5 * z + x), solver=ic.Picard(tol=1e-5), on_failure="ignore"
    )
    # The eager loop evaluates f once more, to take other units.
    same(layer, torch.full((2, 3), scale), extra=1, rtol=1e-5, atol=0.0)


@pytest.mark.usefixtures("plainly")
def test_a_vector_field_stops_by_its_own_residual():
    layer = ic.ImplicitLayer(
        ic.VectorField(lambda z, x: x - z - z**3, autonomous=True), solver=ic.Anderson(tol=1e-6)
    ).double()
    same(layer, torch.randn(4, 5, dtype=torch.float64), rtol=1e-6, atol=1e-7)


@pytest.mark.usefixtures("plainly")
@pytest.mark.parametrize("coupled", [False, True])
def test_states_of_any_shape(coupled):
    conv = nn.Conv2d(3, 3, 3, padding=1).double()
    layer = ic.ImplicitLayer(
        ic.FixedPoint(lambda z, x: torch.tanh(0.4 * conv(z) + x)),
        solver=ic.Anderson(tol=1e-6),
        coupled=coupled,
    )
    same(layer, torch.randn(4, 3, 5, 5, dtype=torch.float64), rtol=1e-6, atol=1e-7)


@pytest.mark.usefixtures("plainly")
def test_states_of_several_tensors():
    layer = ic.ImplicitLayer(
        ic.FixedPoint(lambda z, x: (0.5 * z[1].sin() + x, 0.5 * z[0].cos() * x)),
        solver=ic.Broyden(tol=1e-6),
        start=ic.Zeros(((4,), (4,))),
    )
    with torch.no_grad():
        x = torch.randn(3, 4, dtype=torch.float64)
        eager, graph = layer.solve(x), in_graph(copy.deepcopy(layer)).solve(x)  # pyright: ignore
    for found, expected in zip(graph.z, eager.z, strict=True):
        torch.testing.assert_close(found, expected)


def test_a_solver_without_a_loop_is_named_with_those_that_have_one():
    layer = ic.ImplicitLayer(ic.FixedPoint(Cell(0.5)), solver=ic.Newton())
    with pytest.raises(ic.ConfigError, match=r"solver: Newton .* use Picard, Anderson, Broyden"):
        in_graph(layer)


def test_a_complex_state_is_refused():
    layer = in_graph(ic.ImplicitLayer(ic.FixedPoint(lambda z, x: x), solver=ic.Picard()))
    with pytest.raises(ic.InputError, match="real states"):
        z = torch.ones(2, 3, dtype=torch.complex64)
        layer(z, z)
