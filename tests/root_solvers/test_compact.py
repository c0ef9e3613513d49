"""compact: stopped samples leave the batch."""

from __future__ import annotations

import pytest
import torch

import implicitcore as ic
from implicitcore.tensors import host
from implicitcore.testing.problems import inputs

OPTIONS = {"tol": 1e-8, "max_steps": 2000}
SOLVERS = [ic.Picard(**OPTIONS), ic.Anderson(**OPTIONS), ic.Broyden(**OPTIONS)]
each_solver = pytest.mark.parametrize("solver", SOLVERS, ids=lambda s: type(s).__name__)


class Spread(torch.nn.Module):
    """tanh(rate_i W z + x_i): the samples contract at rates from 0.3 to 0.97, and the rows that are
    evaluated are counted."""

    def __init__(self, n: int = 12) -> None:
        super().__init__()
        weight = torch.randn(n, n, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
        weight = weight + weight.T
        self.weight = torch.nn.Parameter(weight / torch.linalg.matrix_norm(weight, 2))
        self.rows = 0

    def forward(self, z, inputs):
        x, rate = inputs
        self.rows += len(z)
        return torch.tanh(rate[:, None] * (z @ self.weight) + 0.1 * x)


def problem(batch=64, n=12):
    return inputs(batch, n), torch.linspace(0.3, 0.97, batch, dtype=torch.float64)


@each_solver
def test_it_changes_nothing_but_the_cost(solver):
    cell, x = Spread(), problem()
    spent = {}
    for compact in (False, True):
        cell.rows = 0
        method = type(solver)(**{**vars(solver), "compact": compact})
        with torch.no_grad():
            solution = ic.fixed_point(
                cell, torch.zeros_like(x[0]), x, solver=method
            ).raise_if_failed()
        spent[compact] = cell.rows, solution
    (rows, plain), (fewer, compacted) = spent[False], spent[True]
    assert torch.allclose(plain.z, compacted.z, rtol=1e-10, atol=1e-12)
    assert torch.equal(plain.steps, compacted.steps)
    assert torch.allclose(plain.residual, compacted.residual, rtol=1e-6, atol=1e-15)
    if host.on_host(x[0]):
        assert compacted.evaluations == plain.evaluations
    else:  # a device goes on to its next look, but for the one that compacts: it looks every time
        assert compacted.evaluations == plain.steps.max() <= plain.evaluations
    assert fewer <= 1.15 * int(plain.steps.sum()) < rows


@each_solver
def test_the_gradients_are_the_same(solver):
    found = []
    for compact in (False, True):
        cell, x = Spread(), problem(batch=16)
        method = type(solver)(**{**vars(solver), "compact": compact})
        for gradient in (
            ic.Unrolled(),
            ic.Implicit(type(solver)(tol=1e-10, max_steps=2000, compact=compact)),
        ):
            solution = ic.fixed_point(
                cell, torch.zeros_like(x[0]), x, solver=method, gradient=gradient
            )
            found.append(torch.autograd.grad(solution.z.square().sum(), cell.weight)[0])
    for plain, compacted in zip(found[:2], found[2:], strict=True):
        assert torch.allclose(plain, compacted, rtol=1e-7, atol=1e-10)


@each_solver
def test_a_backward_solve_saves_products(solver):
    spent = {}
    for compact in (False, True):
        cell, x = Spread(n=48), problem(n=48)
        products = []

        def counted(z, x, cell=cell, products=products):
            fz = cell(z, x)
            if fz.requires_grad:
                fz.register_hook(lambda v: products.append(len(v)))
            return fz

        backward = ic.Implicit(type(solver)(tol=1e-8, max_steps=2000, compact=compact))
        solution = ic.fixed_point(
            counted, torch.zeros_like(x[0]), x, solver=solver, gradient=backward
        )
        rows = cell.rows
        found = torch.autograd.grad(solution.z.square().sum(), cell.weight)[0]
        spent[compact] = sum(products) + cell.rows - rows, found
    assert spent[True][0] < 0.8 * spent[False][0]  # the evaluations of the parts included
    assert torch.allclose(spent[True][1], spent[False][1], rtol=1e-5)


def test_failed_samples_leave_too_and_keep_their_status():
    growth = torch.tensor([0.5, 3.0, 0.9, torch.nan], dtype=torch.float64)[:, None]
    solver = ic.Picard(tol=1e-8, max_steps=400, compact=True)
    solution = ic.fixed_point(
        lambda z, x: x * z + 1,
        torch.zeros(4, 1, dtype=torch.float64),
        growth,
        solver=solver,
        on_failure="ignore",
    )
    names = [ic.Status(status).name for status in solution.status.tolist()]
    assert names == ["CONVERGED", "DIVERGED", "CONVERGED", "NON_FINITE"]
    assert torch.allclose(
        solution.z[[0, 2], 0], torch.tensor([2.0, 10.0], dtype=torch.float64), rtol=1e-6
    )


def test_the_trace_keeps_every_sample():
    x = problem(batch=16)
    layer = ic.ImplicitLayer(ic.FixedPoint(Spread()), solver=ic.Picard(**OPTIONS, compact=True))
    solution = layer.solve(x, torch.zeros_like(x[0]), trace=True)
    assert isinstance(solution, ic.Solution) and solution.trace is not None
    assert solution.trace.shape == (int(solution.steps.max()), 16)
    assert torch.allclose(solution.trace[-1], solution.residual)
