"""Gradients through implicit methods: exact for the discrete method, or of the trajectory by the
adjoint."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import pytest
import torch
from torch import Tensor

import implicitcore as ic
from implicitcore.ode_solvers import implicit_tableaus as tableaus
from implicitcore.ode_solvers.implicit_runge_kutta import FixedImplicitRungeKutta
from implicitcore.ode_solvers.implicit_tableaus import ImplicitTableau
from implicitcore.testing.dense import fixed_point, implicit_gradient, relative_error
from implicitcore.testing.problems import Cell, inputs
from implicitcore.testing.trajectories import driven, linear, logistic


@dataclass(frozen=True, kw_only=True)
class FixedESDIRK(FixedImplicitRungeKutta):
    """The method of ESDIRK in equal steps."""

    tableau: ClassVar[ImplicitTableau] = tableaus.ESDIRK436


FIXED = [ic.ImplicitEuler, ic.Trapezoid, FixedESDIRK]
TIGHT = {"rtol": 1e-9, "atol": 1e-12}
GRID = torch.tensor([0.0, 0.5, 1.0], dtype=torch.float64)


class Field(torch.nn.Module):
    """tanh(W z) cos t + x - rate z, stiff in its last entry."""

    def __init__(self) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(0)
        self.weight = torch.nn.Parameter(
            torch.randn(4, 4, generator=generator, dtype=torch.float64)
        )
        self.rate = torch.nn.Parameter(torch.tensor([1.0, 2.0, 10.0, 1000.0], dtype=torch.float64))

    def forward(self, t: Tensor, z: Tensor, x: Tensor) -> Tensor:
        return torch.tanh(z @ self.weight.T) * torch.cos(t) + x - self.rate * z


def reference(
    tableau: ImplicitTableau, field: Field, z: Tensor, x: Tensor, dt: float, steps: int
) -> Tensor:
    """The discrete method with dense Newton iterations, all differentiated."""
    for step in range(steps):
        stages: list[Tensor] = []
        point = z
        for row, node in zip(tableau.a, tableau.c, strict=True):
            t = torch.full((len(z), 1), (step + node) * dt, dtype=z.dtype)
            base = z + dt * sum(
                (a * k for a, k in zip(row[:-1], stages, strict=True)), start=torch.zeros_like(z)
            )
            defect = lambda y, t, x, base, a=row[-1]: base + dt * a * field(t, y, x) - y  # noqa: E731
            point = base
            for _ in range(12 if row[-1] else 0):
                slope = torch.func.vmap(torch.func.jacrev(defect))(point, t, x, base)
                point = point - torch.linalg.solve(slope, defect(point, t, x, base))
            stages.append(field(t, point, x))
        z = point
    return z


@pytest.mark.parametrize("dense_below", [64, 0], ids=["dense", "matrix-free"])
@pytest.mark.parametrize("method", FIXED)
def test_the_gradient_is_that_of_the_discrete_method(method, dense_below):
    field, z0, x = Field(), inputs(3, 4).requires_grad_(), inputs(3, 4, seed=2).requires_grad_()
    wrt = [z0, x, *field.parameters()]
    solver = method(dt=0.25, dense_below=dense_below, root_solver=ic.Newton(tol=0.01), **TIGHT)
    solution = ic.integrate(field, z0, x, times=GRID, solver=solver).raise_if_failed()
    expected = reference(method.tableau, field, z0, x, 0.25, 4)
    assert torch.allclose(solution.z[-1], expected, rtol=1e-8, atol=1e-10)
    v = inputs(3, 4, seed=3)
    found = torch.autograd.grad((solution.z[-1] * v).sum(), wrt)
    assert relative_error(found, torch.autograd.grad((expected * v).sum(), wrt)) < 1e-6


@pytest.mark.parametrize(
    "root_solver",
    [ic.Newton(tol=1e-4), ic.Broyden(tol=1e-4), ic.Anderson(tol=1e-4)],
    ids=lambda s: type(s).__name__,
)
@pytest.mark.parametrize("method", FIXED)
def test_gradcheck(method, root_solver):
    solver = method(dt=0.5, root_solver=root_solver, rtol=1e-8, atol=1e-10)

    def end(z0, x):
        return ic.integrate(
            lambda t, z, x: -x * z**3 + torch.sin(t), z0, x, times=GRID, solver=solver
        ).z[-1]

    draws = (
        inputs(2, 2).abs().add(0.5).requires_grad_(),
        inputs(2, 2, seed=2).abs().add(0.5).requires_grad_(),
    )
    assert torch.autograd.gradcheck(end, draws)


@pytest.mark.parametrize(
    "gradient", [ic.Unrolled(), ic.Checkpointed(), ic.Adjoint()], ids=lambda g: type(g).__name__
)
@pytest.mark.parametrize("problem", [logistic(3), driven(3), linear(3)], ids=str)
@pytest.mark.parametrize(
    "solver",
    [
        ic.ESDIRK(rtol=1e-7, atol=1e-9),
        ic.ESDIRK(rtol=1e-7, atol=1e-9, dense_below=0),
        ic.ESDIRK(rtol=1e-7, atol=1e-9, root_solver=ic.Broyden(tol=0.01)),
        ic.Kvaerno5(rtol=1e-7, atol=1e-9),
        ic.RadauIIA5(rtol=1e-7, atol=1e-9),
    ],
    ids=["ESDIRK", "matrix-free", "broyden", "Kvaerno5", "RadauIIA5"],
)
def test_adaptive_steps_give_the_gradient_of_the_trajectory(problem, gradient, solver):
    solution = ic.integrate(
        problem.field, problem.z0, problem.x, times=GRID, solver=solver, gradient=gradient
    ).raise_if_failed()
    found = torch.autograd.grad(solution.z.square().sum(), problem.leaves)
    expected = torch.autograd.grad(problem.trajectory(GRID).square().sum(), problem.leaves)
    assert relative_error(found, expected) < 1e-6


@pytest.mark.parametrize("method", [ic.ImplicitEuler, ic.ESDIRK])
def test_a_stiff_gradient_is_a_number(method):
    """The state follows x, at once: the gradient with respect to x is one, and to z0 zero."""
    z0, x = (
        torch.ones(2, 1, dtype=torch.float64).requires_grad_(),
        torch.tensor([[2.0], [3.0]], dtype=torch.float64).requires_grad_(),
    )
    solution = ic.integrate(
        lambda t, z, x: -1e6 * (z - x), z0, x, times=GRID, solver=method()
    ).raise_if_failed()
    to_start, to_input = torch.autograd.grad(solution.z[-1].sum(), [z0, x])
    assert to_start.abs().max() < 1e-6
    assert torch.allclose(to_input, torch.ones_like(x), atol=1e-6)


def test_the_iterations_leave_no_graph():
    """One evaluation a stage is differentiated, however many the solve took."""
    seen = []

    def field(t, z, x):
        if torch.is_grad_enabled() and x.requires_grad:
            seen.append(1)
        return torch.sin(x * z)

    x = torch.ones(2, 1, dtype=torch.float64).requires_grad_()
    solver = ic.ImplicitEuler(dt=0.5, root_solver=ic.Picard(tol=1e-9))
    solution = ic.integrate(
        field, torch.ones(2, 1, dtype=torch.float64), x, times=GRID, solver=solver
    ).raise_if_failed()
    assert solution.steps.tolist() == [2, 2]
    assert len(seen) == 2 * 2  # what a step begins with, and its stage
    assert solution.evaluations > 10


def test_a_second_derivative_is_refused():
    z0 = torch.ones(1, 2, dtype=torch.float64).requires_grad_()
    solution = ic.integrate(lambda t, z, x: -z * z, z0, times=GRID, solver=ic.Trapezoid())
    with pytest.raises(ic.GradientError, match="first derivatives only"):
        torch.autograd.grad(solution.z.sum(), z0, create_graph=True)


def test_a_steady_state_and_its_backward_solve():
    cell, x = Cell(), inputs().requires_grad_()
    forward = ic.SteadyState(ode_solver=ic.ESDIRK(), tol=1e-9)
    backward = ic.SteadyState(ode_solver=ic.ImplicitEuler(dt=100.0), tol=1e-9)
    solution = ic.fixed_point(
        cell,
        torch.zeros(8, 6, dtype=torch.float64),
        x,
        solver=forward,
        gradient=ic.Implicit(backward),
    )
    wrt = [*cell.parameters(), x]
    found = torch.autograd.grad(solution.raise_if_failed().z.square().sum(), wrt)
    z = fixed_point(lambda z: cell(z, x), torch.zeros(8, 6, dtype=torch.float64))
    assert relative_error(found, implicit_gradient(lambda z: cell(z, x), z, 2 * z, wrt)) < 1e-6


def test_the_adjoint_of_some_samples_alone():
    """A root solver that leaves out the samples that are done sees a part of the adjoint system."""
    problem = logistic(3)
    solver = ic.ESDIRK(rtol=1e-7, atol=1e-9, root_solver=ic.Broyden(tol=0.01, compact=True))
    solution = ic.integrate(
        problem.field, problem.z0, problem.x, times=GRID, solver=solver, gradient=ic.Adjoint()
    ).raise_if_failed()
    found = torch.autograd.grad(solution.z.square().sum(), problem.leaves)
    expected = torch.autograd.grad(problem.trajectory(GRID).square().sum(), problem.leaves)
    assert relative_error(found, expected) < 1e-6
