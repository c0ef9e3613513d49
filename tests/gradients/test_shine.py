"""The inverse that a forward Broyden solve estimates, reused backward."""

from __future__ import annotations

import warnings

import pytest
import torch

import implicitcore as ic
from implicitcore.extend import System
from implicitcore.tensors.packing import Packing
from implicitcore.testing.dense import fixed_point, implicit_gradient, jacobians, relative_error
from implicitcore.testing.expect import known
from implicitcore.testing.problems import Cell, inputs

FORWARD = ic.Broyden(tol=1e-12, max_steps=200)


def dense_estimate(f, z0, steps):
    """-B of one sample after ``steps`` steps of the good method, by the textbook's update of a
    matrix."""
    z, eye = z0, torch.eye(len(z0), dtype=z0.dtype)
    b, g = -eye, f(z0) - z0
    for count in range(steps):
        s = -b @ g
        z = z + s
        last, g = g, f(z) - z
        if count < steps - 1:
            y = g - last
            b = b + torch.outer(s - b @ y, s @ b) / (s @ b @ y)
    return -b


def test_the_estimate_is_the_textbooks_matrix_for_each_sample():
    cell, x, v = Cell(), inputs(), inputs(seed=3)
    with torch.no_grad():
        solution = ic.fixed_point(cell, torch.zeros_like(x), x, solver=ic.Broyden(tol=1e-6))
    # Samples stop at different times: what the loop does with them later must not count.
    assert len(set(solution.steps.tolist())) > 1
    system = System.of(ic.FixedPoint(cell), x, Packing.of(x))
    with torch.no_grad():
        _, inverse = ic.Broyden(tol=1e-6).solve_keeping(system, torch.zeros_like(x))
        found = inverse(v)
        for i, steps in enumerate(solution.steps.tolist()):
            b = dense_estimate(
                lambda z, i=i: cell(z[None], x[i : i + 1])[0], torch.zeros_like(x[i]), steps - 1
            )
            assert relative_error([found[i]], [b.T @ v[i]]) < 1e-6


def test_it_is_closer_than_jacobian_free_backpropagation_and_says_how_close():
    cell, x, v = Cell(), inputs().requires_grad_(), inputs(seed=2)
    z = fixed_point(lambda z: cell(z, x), torch.zeros_like(x))
    wrt = [*cell.parameters(), x]
    expected = implicit_gradient(lambda z: cell(z, x), z, v, wrt)
    errors = {}
    for gradient in (ic.Shine(), ic.Phantom()):
        solution = ic.fixed_point(cell, torch.zeros_like(x), x, solver=FORWARD, gradient=gradient)
        errors[type(gradient).__name__] = relative_error(
            torch.autograd.grad(solution.z, wrt, v), expected
        )
        if isinstance(gradient, ic.Shine):
            assert solution.backward.vjps == 1
            j = jacobians(lambda z: cell(z, x), z)
            with torch.no_grad():
                _, inverse = FORWARD.solve_keeping(
                    System.of(ic.FixedPoint(cell), x, Packing.of(x)), torch.zeros_like(x)
                )
                u = inverse(v)
                left = v + torch.einsum("bij,bi->bj", j, u) - u
            assert torch.allclose(
                known(solution.backward.residual), left.norm(dim=1) / v.norm(dim=1), atol=1e-6
            )
    assert errors["Shine"] < errors["Phantom"]


def test_a_solver_goes_on_from_the_estimate():
    cell, x, v = Cell(), inputs().requires_grad_(), inputs(seed=2)
    z = fixed_point(lambda z: cell(z, x), torch.zeros_like(x))
    wrt = [*cell.parameters(), x]
    expected = implicit_gradient(lambda z: cell(z, x), z, v, wrt)
    refined = ic.Shine(ic.GMRES(tol=1e-10))
    solution = ic.fixed_point(cell, torch.zeros_like(x), x, solver=FORWARD, gradient=refined)
    assert relative_error(torch.autograd.grad(solution.z, wrt, v), expected) < 1e-8


def test_what_it_cannot_do_is_refused():
    cell, x = Cell(), inputs().requires_grad_()
    for solver in (ic.Broyden(variant="bad"), ic.Broyden(compact=True)):
        with pytest.raises(ic.GradientError, match="good method"):
            ic.fixed_point(cell, torch.zeros_like(x), x, solver=solver, gradient=ic.Shine())
    solution = ic.fixed_point(cell, torch.zeros_like(x), x, solver=FORWARD, gradient=ic.Shine())
    with pytest.raises(ic.GradientError, match="first derivatives only"):
        torch.autograd.grad(solution.z.sum(), x, create_graph=True)


def test_a_restart_of_the_memory_leaves_an_estimate_of_what_came_after():
    cell, x, v = Cell(), inputs(), inputs(seed=3)
    solver = ic.Broyden(tol=1e-12, max_steps=200, memory=3)
    system = System.of(ic.FixedPoint(cell), x, Packing.of(x))
    with torch.no_grad(), warnings.catch_warnings(action="error"):
        solution, inverse = solver.solve_keeping(system, torch.zeros_like(x))
        assert solution.converged.all()
        assert inverse(v).isfinite().all()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_sample_that_runs_away_leaves_the_shared_gradient_finite_and_right(dtype):
    # The loop goes on with the others for long: what it makes of the steps of that one is inf.
    n, factor = 24, torch.ones((), dtype=dtype, requires_grad=True)
    matrix = 0.9 * torch.linalg.qr(inputs(batch=n, n=n))[0].to(dtype)
    scale = torch.tensor([[1.0], [1e18], [0.9]], dtype=dtype)
    x = inputs(batch=3, n=n).to(dtype)

    def solve(rows):
        solution = ic.fixed_point(
            lambda z, x: x[0] * (x[1] * (z @ matrix).sinh().clamp(-1e30, 1e30) + x[2]),
            torch.zeros(len(rows), n, dtype=dtype),
            (ic.shared(factor), scale[rows], 1e-2 * x[rows]),
            solver=ic.Broyden(tol=1e-5, max_steps=200, memory=60),
            gradient=ic.Shine(ic.GMRES(tol=1e-6)),
            on_failure="ignore",
        )
        return solution, torch.autograd.grad(solution.z[solution.converged].sum(), factor)[0]

    alone, expected = solve([0, 2])
    found, gradient = solve([0, 1, 2])
    assert alone.converged.all() and found.converged.tolist() == [True, False, True]
    assert gradient.item() == pytest.approx(expected.item(), rel=1e-3)
