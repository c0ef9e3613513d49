"""A strategy that is one method, an estimate of (I - J)^-T v."""

from dataclasses import dataclass

import pytest
import torch

import implicitcore as ic
from implicitcore.extend import ApproximateGradient
from implicitcore.testing.problems import Cell, inputs


@dataclass(frozen=True)
class Dense(ApproximateGradient):
    """u itself, by a dense solve: an estimate without an error."""

    def estimate(self, jacobian, v):
        matrix = torch.eye(v.shape[1], dtype=v.dtype) - jacobian.matrix()
        return torch.linalg.solve(matrix.mT, v)


def solve(gradient):
    cell, x = Cell(), inputs().requires_grad_()
    solution = ic.fixed_point(
        cell, torch.zeros_like(x), x, solver=ic.Anderson(tol=1e-12), gradient=gradient
    )
    return solution, [x, *cell.parameters()]


def test_an_exact_estimate_gives_the_exact_gradient_and_its_products_are_counted():
    (found, wrt), (reference, others) = solve(Dense()), solve(ic.Implicit(ic.GMRES(tol=1e-12)))
    for a, b in zip(
        torch.autograd.grad(found.z.square().sum(), wrt),
        torch.autograd.grad(reference.z.square().sum(), others),
        strict=True,
    ):
        assert torch.allclose(a, b, rtol=1e-8)
    assert found.backward.vjps == found.z.shape[1]


def test_a_second_derivative_is_refused_by_the_strategys_name():
    solution, (x, *_) = solve(Dense())
    with pytest.raises(ic.GradientError, match="Dense gives first derivatives only; use Implicit"):
        torch.autograd.grad(solution.z.sum(), x, create_graph=True)


def test_a_trajectory_is_refused():
    z0 = torch.ones(2, 1)
    with pytest.raises(
        ic.GradientError, match="Dense differentiates an equilibrium, and Tsit5 gives a trajectory"
    ):
        ic.integrate(lambda t, z, x: -z, z0, times=torch.tensor([0.0, 1.0]), gradient=Dense())
