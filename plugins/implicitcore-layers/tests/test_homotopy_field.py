"""HomoODE with the velocity of a homotopy ends at the equilibria of a DEQ."""

# Options that are wrong on purpose are among these.
# pyright: reportArgumentType=false, reportCallIssue=false

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import nn
from torch.utils import _pytree as pytree

import implicitcore as ic

N = 6
FINE = ic.Tsit5(rtol=1e-9, atol=1e-11)
X = torch.randn(8, N, generator=torch.Generator().manual_seed(1), dtype=torch.float64)


class Cell(nn.Module):
    """tanh(W z + x), whose Jacobian has no eigenvalue on the real axis beyond 1.

    With a scale above 1 Picard's iteration does not converge.
    """

    def __init__(self, scale: float) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(0)
        mix = torch.randn(N, N, generator=generator, dtype=torch.float64)
        skew = mix - mix.T
        self.weight = nn.Parameter(scale * skew / torch.linalg.matrix_norm(skew, 2))

    def forward(self, z: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
        return torch.tanh(z @ self.weight.T + x)


def homoode(cell: Any, **options: Any) -> Any:
    field = ic.HomotopyField(cell, **options)
    layer = ic.build("homoode", field, channels=N, autonomous=False, ode_solver=FINE)
    return layer.double()


@pytest.mark.parametrize("dense_below", [64, pytest.param(0, marks=pytest.mark.slow)])
@pytest.mark.parametrize("scale", [0.5, 2.0, 8.0])
@pytest.mark.parametrize("init", ["signs", 0.0, 3.0])
def test_it_ends_at_the_equilibria_of_the_cell(scale, init, dense_below):
    cell = Cell(scale)
    layer = homoode(cell, dense_below=dense_below)
    with torch.no_grad():
        layer.get_parameter("start.value").copy_(ic.LearnedInitialGuess(N, init=init).value)
    z = layer.solve(X).raise_if_failed().z
    equilibrium = ic.build("deq", cell, root_solver=ic.Newton(tol=1e-13, max_steps=100))(X)
    assert (z - cell(z, X)).abs().max() <= 1e-7
    assert (z - equilibrium).abs().max() <= 1e-7


def test_on_its_way_it_is_on_the_zero_path():
    cell, rate = Cell(2.0), 5.0
    a = torch.full_like(X, 0.5)
    times = torch.tensor([0.0, 0.1, 0.4, 1.0], dtype=torch.float64)
    z = ic.integrate(ic.HomotopyField(cell, rate=rate), a, X, times=times, solver=FINE).z
    for t, point in zip(times.tolist(), z, strict=True):
        s = 1 - math.exp(-rate * t)
        path = s * (point - cell(point, X)) + (1 - s) * (point - a)
        assert path.abs().max() <= 1e-7
    residual = (cell(z[-1], X) - z[-1]).norm(dim=1)
    expected = math.exp(-rate) * (cell(z[-1], X) - a).norm(dim=1)
    torch.testing.assert_close(residual, expected, rtol=1e-4, atol=0)


@pytest.mark.parametrize(("gradient", "dense_below"), [("unrolled", 64), ("checkpointed", 64)])
def test_its_gradient_is_the_implicit_one(gradient, dense_below):
    cell = Cell(0.8)
    x = X[:2].clone().requires_grad_()
    layer = homoode(cell, dense_below=dense_below, rate=12.0)
    layer.solver, layer.gradient = ic.Tsit5(rtol=1e-5, atol=1e-7), gradient
    found = torch.autograd.grad(layer(x).pow(3).sum(), [x, cell.weight])
    deq = ic.build(
        "deq",
        cell,
        root_solver=ic.Newton(tol=1e-13, max_steps=100),
        gradient=ic.Implicit(ic.GMRES(tol=1e-12)),
    )
    expected = torch.autograd.grad(deq(x).pow(3).sum(), [x, cell.weight])
    for mine, theirs in zip(found, expected, strict=True):
        assert (mine - theirs).norm() <= 2e-4 * theirs.norm()


def test_a_state_of_several_tensors():
    def f(z, x):
        return {"a": torch.tanh(-2 * z["b"] + x), "b": torch.tanh(2 * z["a"])}

    z0 = {"a": torch.zeros_like(X), "b": torch.ones_like(X)}
    times = torch.tensor([0.0, 1.0])
    z = ic.integrate(ic.HomotopyField(f), z0, X, times=times, solver=FINE).z
    end = pytree.tree_map(lambda leaf: leaf[-1], z)
    for name, value in f(end, X).items():
        assert (value - end[name]).abs().max() <= 1e-7


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"rate": 0.0}, "rate: expected a number greater than 0"),
        ({"dense_below": -1}, "dense_below: expected a number"),
        ({"rat": 1.0}, "rat: unknown option.*'rate'"),
    ],
)
def test_a_wrong_option_is_told(options, message):
    with pytest.raises(ic.ConfigError, match=message):
        ic.HomotopyField(Cell(0.5), **options)
    with pytest.raises(ic.ConfigError, match="expected a module or function of"):
        ic.HomotopyField(Cell)
