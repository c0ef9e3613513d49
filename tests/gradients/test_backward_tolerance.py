"""The backward solve that was given no solver goes as far as the forward one deserves."""

from __future__ import annotations

import warnings
from copy import copy
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import implicitcore as ic
from implicitcore.solution import Backward

N, BATCH = 40, 5
TOLERANCES = (1e-2, 1e-4, 1e-6, 1e-8)


class Cell(nn.Module):
    """tanh(W z + x), W of norm 0.9."""

    def __init__(self, radius: float = 0.9) -> None:
        super().__init__()
        weight = torch.randn(N, N, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
        self.weight = nn.Parameter(radius * weight / torch.linalg.matrix_norm(weight, 2))

    def forward(self, z: Tensor, x: Tensor) -> Tensor:
        return torch.tanh(z @ self.weight.T + x)


def backward_solver(forward: ic.RootSolver, dtype: torch.dtype) -> ic.GMRES:
    found = ic.Implicit().backward_solver(forward, dtype)
    assert isinstance(found, ic.GMRES)
    return found


def data() -> tuple[Tensor, Tensor]:
    """X and v."""
    generator = torch.Generator().manual_seed(1)
    return tuple(  # pyright: ignore[reportReturnType] - two of them
        torch.randn(BATCH, N, dtype=torch.float64, generator=generator) for _ in range(2)
    )


def dense(cell: Cell, x: Tensor, v: Tensor) -> Tensor:
    """DL/dW by dense solves at the equilibrium, to rounding."""
    with torch.no_grad():
        z = torch.zeros_like(x)
        for _ in range(2000):
            z = cell(z, x)
        slope = 1 - z**2
        matrix = torch.eye(N, dtype=z.dtype) - slope.unsqueeze(2) * cell.weight
        u = torch.linalg.solve(matrix.mT, v.unsqueeze(2)).squeeze(2)
        return (u * slope).T @ z


def solved(tol: float, gradient: ic.Implicit = ic.Implicit()) -> tuple[float, Backward]:
    """The gradient's relative error after a forward solve to ``tol``, and its record."""
    cell, (x, v) = Cell(), data()
    solver, z0 = ic.Anderson(tol=tol), torch.zeros_like(x)
    found = ic.fixed_point(cell, z0, x, solver=solver, gradient=gradient)
    found.z.backward(v)
    exact = dense(cell, x, v)
    assert cell.weight.grad is not None
    return float((cell.weight.grad - exact).norm() / exact.norm()), found.backward


@pytest.mark.parametrize("tol", TOLERANCES)
def test_the_error_is_that_of_the_forward_solve_at_every_tolerance(tol):
    error, record = solved(tol)
    least, exact = solved(tol, ic.Implicit(ic.GMRES(tol=1e-14, max_products=200)))
    assert error <= 1.1 * least and error <= 5 * tol
    assert record.residual is not None and record.residual.max() <= tol / 10
    assert record.vjps < exact.vjps


def test_a_looser_solve_spends_fewer_products_and_a_tighter_one_more():
    spent = [solved(tol)[1].vjps for tol in TOLERANCES]
    assert spent == sorted(set(spent))


def test_a_given_solver_is_used_as_it_is():
    loose = solved(1e-8, ic.Implicit(ic.GMRES(tol=1e-1)))
    assert loose[0] > 1e-3
    assert solved(1e-1, ic.Implicit(ic.GMRES(tol=1e-9)))[1].residual.max() <= 1e-9  # pyright: ignore[reportOptionalMemberAccess]


@dataclass(frozen=True)
class Plain(ic.RootSolver):
    """A black box without a tolerance."""

    def solve(self, system, z0):
        return ic.Picard(tol=1e-3, max_steps=200).solve(system, z0)


@pytest.mark.parametrize(
    ("solver", "tol"),
    [
        (ic.Anderson(), 1e-5),
        (ic.Picard(tol=1e-2), 1e-3),
        (ic.SteadyState(tol=1e-3, measure="entries"), 1e-4),
        (ic.Chain((ic.Picard(tol=1e-2), ic.Newton(tol=1e-6))), 1e-7),
        (ic.Homotopy(corrector=ic.Newton(tol=1e-7)), 1e-8),
        (ic.Chain((ic.Picard(tol=0.1), ic.Homotopy(corrector=ic.Broyden(tol=1e-2)))), 1e-3),
        (ic.Chain((ic.Newton(tol=1e-8), ic.Picard(tol=1e-2))), 1e-9),
        (ic.Chain((ic.Picard(tol=1e-2), Plain())), 1e-5),
        (ic.Anderson(tol=0.0, atol=1e-3), 1e-5),
        (Plain(), 1e-5),
        (ic.Anderson(tol=3.0), 0.1),
        (ic.Newton(tol=1e-15), 32 * torch.finfo(torch.float64).eps),
    ],
    ids=str,
)
def test_what_is_followed(solver, tol):
    assert backward_solver(solver, torch.float64).tol == pytest.approx(tol, rel=1e-12)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32, torch.complex64])
def test_no_further_than_rounding_lets_it(dtype):
    """A state in half precision was solved to 1e-5, which none of its samples met."""
    units = 32 if dtype in (torch.float32, torch.complex64) else 8
    assert backward_solver(ic.Anderson(tol=0.0, atol=0.0), dtype).tol > 1e-6
    tight = backward_solver(ic.Anderson(tol=1e-12), dtype)
    assert tight == ic.GMRES(tol=units * torch.finfo(dtype).eps)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
def test_a_solve_to_rounding_has_a_backward_solve_that_converges(dtype):
    cell, (x, v) = Cell().to(dtype), data()
    solver = ic.Anderson(tol=max(1e-6, torch.finfo(dtype).eps))
    found = ic.fixed_point(cell, torch.zeros_like(x).to(dtype), x.to(dtype), solver=solver)
    found.z.backward(v.to(dtype))
    assert found.backward.status is not None and not found.backward.status.any()
    assert found.backward.vjps < 20


@pytest.mark.parametrize("tol", [10.0, 1e9])
def test_a_forward_solve_that_stops_at_once_has_a_gradient(tol):
    """That of its own point: a backward solve to a tenth of 1e9 was met by u = 0."""
    cell, (x, v) = Cell(), data()
    x.requires_grad_()
    solver = ic.Picard(tol=tol)
    found = ic.fixed_point(cell, x.detach(), x, solver=solver)
    assert found.steps.max() == 1
    (gradient,) = torch.autograd.grad(found.z, x, v)
    slope = 1 - cell(x, x).detach() ** 2
    matrix = torch.eye(N, dtype=x.dtype) - slope.unsqueeze(2) * cell.weight.detach()
    exact = slope * torch.linalg.solve(matrix.mT, v.unsqueeze(2)).squeeze(2)
    assert ((gradient - exact).norm() <= 0.3 * exact.norm()).item()


def layer(**options) -> ic.ImplicitLayer:
    dynamics, start = ic.FixedPoint(Cell()), ic.Zeros((N,))
    return ic.ImplicitLayer(dynamics, solver=ic.Anderson(tol=1e-2), start=start, **options)


def residual(solution: Any, v: Tensor) -> float:
    solution.z.backward(v)
    assert solution.backward.residual is not None
    return float(solution.backward.residual.max())


def test_a_chain_whose_first_solver_is_the_tight_one_has_its_gradient():
    """Every sample stopped at 1e-10, and was solved backward to a tenth of the second's 1e-1."""
    cell, (x, v) = Cell(), data()
    chain = ic.Chain((ic.Newton(tol=1e-10), ic.Picard(tol=1e-1)))
    found = ic.fixed_point(cell, torch.zeros_like(x), x, solver=chain)
    found.z.backward(v)
    exact = dense(cell, x, v)
    assert cell.weight.grad is not None
    assert ((cell.weight.grad - exact).norm() <= 1e-8 * exact.norm()).item()


def test_options_of_one_call_are_followed():
    x, v = data()
    module = layer()
    assert 1e-6 < residual(module.solve(x), v) <= 1e-3
    assert residual(module.solve(x, tol=1e-9), v) <= 1e-10
    assert 1e-6 < residual(module.solve(x), v)
    module.solver = {"name": "broyden", "tol": 1e-8}
    assert residual(module.solve(x), v) <= 1e-9


def test_a_config_says_nothing_of_it_and_builds_the_same():
    module = ic.build("deq", Cell())
    assert "solver" not in module.config["gradient"]
    built = ic.build(module.config, Cell())
    assert built.gradient == module.gradient == ic.Implicit()


def test_roots_of_functions_follow():
    x, v = data()
    cell = Cell()
    found = ic.find_root(
        lambda z, x: cell(z, x) - z, torch.zeros_like(x), x, solver=ic.Newton(tol=1e-9)
    )
    assert residual(found, v) <= 1e-10


def test_iterates_and_second_derivatives_follow():
    cell, (x, v) = Cell(), data()
    x.requires_grad_()

    def gradient(point: Tensor, tol: float) -> Tensor:
        found = ic.fixed_point(cell, torch.zeros_like(x), point, solver=ic.Anderson(tol=tol))
        return torch.autograd.grad(found.z, point, v, create_graph=True)[0]

    errors = []
    exact = torch.autograd.grad(gradient(x, 1e-13).square().sum(), cell.weight)[0]
    for tol in (1e-2, 1e-5, 1e-8):
        (found,) = torch.autograd.grad(gradient(x, tol).square().sum(), cell.weight)
        errors.append(float((found - exact).norm() / exact.norm()))
    assert errors[0] > 10 * errors[1] > 1000 * errors[2]
    assert errors[2] < 1e-6
    strategy = ic.Implicit(iterates=(2, 4))
    found = ic.fixed_point(
        cell, torch.zeros_like(x), x, solver=ic.Anderson(tol=1e-8), gradient=strategy
    )
    found.iterates.sum().backward(retain_graph=True)  # pyright: ignore[reportOptionalMemberAccess]
    assert residual(found, v) <= 1e-9


def test_a_half_precision_layer_no_longer_warns():
    module = ic.ImplicitLayer(
        ic.FixedPoint(Cell().bfloat16()), solver=ic.Anderson(tol=1e-2), start=ic.Zeros((N,))
    )
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        module(data()[0].bfloat16()).sum().backward()
    assert copy(module).gradient == ic.Implicit()
