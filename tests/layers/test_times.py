"""A layer that integrates returns the states at the times it is asked for."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

import implicitcore as ic
from implicitcore_layers import DEQ, HomoODE, NeuralODE

TIMES = [0.0, 0.3, 0.7, 1.5]
GRADIENTS = [ic.Unrolled(), ic.Checkpointed(), ic.Adjoint()]
SOLVERS = [ic.RK4(dt=0.05), ic.Tsit5(rtol=1e-9, atol=1e-11)]


class Decay(nn.Module):
    """dz/dt = -rate z."""

    def __init__(self) -> None:
        super().__init__()
        self.rate = nn.Parameter(torch.tensor([0.5, 1.0, 2.0], dtype=torch.float64))

    def forward(self, z: Tensor, x: Any) -> Tensor:
        return -self.rate * z


def exact(rate: Tensor, x: Tensor) -> Tensor:
    """[T, batch, 3]."""
    t = torch.tensor(TIMES, dtype=torch.float64)[:, None, None]
    return x * torch.exp(-rate * t)


@pytest.mark.parametrize("gradient", GRADIENTS, ids=repr)
@pytest.mark.parametrize("solver", SOLVERS, ids=lambda part: type(part).__name__)
@pytest.mark.parametrize("given", [list, tuple, torch.tensor], ids=["list", "tuple", "tensor"])
def test_a_neural_ode_at_several_times_is_the_closed_form_with_its_gradient(
    gradient, solver, given
):
    cell = Decay()
    layer = NeuralODE(cell, ode_solver=solver, gradient=gradient)
    x = torch.randn(4, 3, dtype=torch.float64, requires_grad=True)
    z = layer(x, times=given(TIMES))
    expected = exact(cell.rate, x)
    assert z.shape == (4, 4, 3)
    assert torch.equal(z[0], x)
    assert torch.allclose(z, expected, rtol=1e-5)
    weights = torch.randn_like(z)
    found = torch.autograd.grad((z * weights).sum(), (x, cell.rate))
    wanted = torch.autograd.grad((expected * weights).sum(), (x, cell.rate))
    for a, b in zip(found, wanted, strict=True):
        assert torch.allclose(a, b, rtol=1e-4, atol=1e-6)


def test_the_last_of_the_times_is_the_horizon_without_them():
    layer = NeuralODE(Decay(), ode_solver=ic.RK4(), horizon=1.5)
    x = torch.randn(4, 3, dtype=torch.float64)
    assert torch.allclose(layer(x, times=[0.0, 1.5])[-1], layer(x), rtol=1e-12)
    assert isinstance(layer.solve(x, times=TIMES), ic.Trajectory)
    assert isinstance(layer.solve(x), ic.FinalState)


def test_homoode_is_fitted_to_the_last_of_the_times():
    layer = HomoODE(lambda z, c: c - z, channels=3, ode_solver=ic.RK4())
    c = torch.randn(4, 3)
    found = layer.solve(c, times=[0.0, 0.5, 1.0])
    assert found.z.shape == (3, 4, 3)
    assert torch.allclose(layer.regularizer(found), layer.regularizer(layer.solve(c)))


def test_integrate_takes_numbers_too():
    z0 = torch.ones(2, 1, dtype=torch.float64)
    found = ic.integrate(lambda t, z, x: -z, z0, times=[0.0, 0.5, 1.0])
    assert torch.equal(
        found.z,
        ic.integrate(
            lambda t, z, x: -z, z0, times=torch.tensor([0.0, 0.5, 1.0], dtype=torch.float64)
        ).z,
    )


@pytest.mark.parametrize("wrong", [[1.0], "soon", [0.0, "soon"], [1.0, 2.0, 1.5], 3.0])
def test_what_are_no_times_is_an_error(wrong):
    with pytest.raises(ic.InputError, match="times"):
        NeuralODE(Decay())(torch.ones(2, 3, dtype=torch.float64), times=wrong)


def test_an_equilibrium_has_no_times():
    with pytest.raises(ic.InputError, match="root solver"):
        DEQ(lambda z, x: 0.5 * z + x)(torch.ones(2, 3), times=TIMES)
