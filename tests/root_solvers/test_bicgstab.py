"""BiCGSTAB: cost, scale, breakdown, drift."""

from __future__ import annotations

import pytest
import torch

import implicitcore as ic
from implicitcore.testing.problems import inputs

T = torch.float64


def linear(matrix, right, solver, dtype=T):
    """A z = b as the fixed point of z + b - A z."""
    right = right.to(dtype)
    with torch.no_grad():
        return ic.fixed_point(
            lambda z, b: z + b - z @ matrix.to(dtype).T,
            torch.zeros_like(right),
            right,
            solver=solver,
            on_failure="ignore",
        )


def matrix(n, spread, seed=0):
    return (
        torch.eye(n, dtype=T)
        + spread
        * torch.randn(n, n, dtype=T, generator=torch.Generator().manual_seed(seed))
        / n**0.5
    )


def test_it_solves_a_large_system_in_few_products():
    a, b = matrix(300, 0.5), inputs(n=300)
    solution = linear(a, b, ic.BiCGSTAB(tol=1e-8)).raise_if_failed()
    assert torch.allclose(solution.z, b @ torch.linalg.inv(a).T, rtol=1e-6, atol=1e-7)
    assert solution.evaluations < 60
    assert int(solution.steps.max()) <= solution.evaluations


@pytest.mark.parametrize("scale", [1e-15, 1e-6, 1e12])
def test_the_cost_does_not_depend_on_the_scale(scale):
    a, b = matrix(20, 0.5).float(), inputs(n=20, dtype=torch.float32)
    solutions = [
        linear(a, right, ic.BiCGSTAB(tol=1e-4), torch.float32).raise_if_failed()
        for right in (b, b * scale)
    ]
    assert torch.allclose(solutions[0].z, solutions[1].z / scale, rtol=1e-2, atol=1e-4)
    assert abs(solutions[0].evaluations - solutions[1].evaluations) <= 2


def test_a_breakdown_begins_anew():
    """The first search direction has r^T A r = 0 for the first sample, and not for the second."""
    a = torch.tensor([[0.0, 1.0, 0.0], [1.0, 0.0, 0.0], [0.0, 0.0, 1.0]], dtype=T)
    b = torch.tensor([[1.0, 0.0, 0.5], [1.0, 2.0, 3.0], [2.0, 1.0, 0.1]], dtype=T)
    solution = linear(a, b, ic.BiCGSTAB(tol=1e-10)).raise_if_failed()
    assert torch.allclose(solution.z, b @ a)


def test_a_rotation_stagnates_and_is_said_to():
    a = torch.tensor([[0.0, 1.0], [-1.0, 0.0]], dtype=T)
    b = inputs(n=2)
    solution = linear(a, b, ic.BiCGSTAB(tol=1e-10))
    assert solution.status.tolist() == [ic.Status.MAX_STEPS] * 8
    assert torch.allclose(solution.residual, (b - solution.z @ a.T).norm(dim=1))
    assert bool(linear(a, b, ic.GMRES(tol=1e-10)).converged.all())


def test_what_is_called_converged_has_a_true_residual_below_the_tolerance():
    """Ill-conditioned, in float32: the recurrence's own residual drifts away from the true one."""
    a, b = matrix(40, 1.0, seed=3).float(), inputs(batch=16, n=40, dtype=torch.float32)
    solution = linear(a, b, ic.BiCGSTAB(tol=1e-5, max_products=2000), torch.float32)
    residual = (b - solution.z @ a.T).norm(dim=1)
    assert torch.allclose(solution.residual, residual, rtol=1e-2, atol=1e-5)
    size = (solution.z + b - solution.z @ a.T).norm(dim=1)
    assert bool((residual[solution.converged] <= 1.2e-5 * size[solution.converged]).all())
