"""Deliberately wrong gradient strategies: each is caught by the checks that should catch it, and by
no other."""

from __future__ import annotations

from dataclasses import dataclass, replace

import pytest
import torch
from support.failing import failed

import implicitcore as ic
from implicitcore.extend import Options
from implicitcore.gradients.base import equilibrium

EXACT = ic.Implicit(ic.GMRES(tol=1e-8))


@dataclass(frozen=True)
class Mine(Options, ic.GradientStrategy):
    """A right one, for roots: the implicit gradient."""

    def run(self, solve, system, z0) -> ic.Solution | ic.Trajectory:
        return EXACT.run(solve, system, z0)


class DropsTheInput(Mine):
    def run(self, solve, system, z0):
        return super().run(solve, system.bind(system.x.detach()), z0)


class HalfTheInput(Mine):
    """As the code of a paper: for x the product with df/dx alone, without the linear solve."""

    def run(self, solve, system, z0):
        solution = super().run(solve, system.bind(system.x.detach()), z0)
        with torch.no_grad():
            z = solution.z.clone()
        graph = (
            _OnlyInput.apply(system.x, z, system)
            if system.x.requires_grad and torch.is_grad_enabled()
            else 0
        )
        return replace(solution, z=solution.z + graph)


class _OnlyInput(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, z, system):
        ctx.x, ctx.z, ctx.system = x, z, system
        return torch.zeros_like(z)

    @staticmethod
    def backward(ctx, *grads):
        (v,) = grads
        if torch.is_grad_enabled():
            raise ic.GradientError("first derivatives only")
        with torch.enable_grad():
            x = ctx.x.detach().requires_grad_()
            return torch.autograd.grad(ctx.system.bind(x).update(ctx.z), x, v)[0], None, None


class WrongSign(Mine):
    def run(self, solve, system, z0):
        solution = super().run(solve, system, z0)
        return replace(solution, z=2 * solution.z.detach() - solution.z)


class OneParameter(Mine):
    """Only the first parameter of the cell gets a gradient."""

    def run(self, solve, system, z0):
        others = [
            parameter
            for parameter in list(system.dynamics.parameters())[1:]
            if parameter.requires_grad
        ]
        for parameter in others:
            parameter.requires_grad_(False)
        try:
            return super().run(solve, system, z0)
        finally:
            for parameter in others:
                parameter.requires_grad_(True)


class AbsoluteTolerance(Mine):
    def run(self, solve, system, z0):
        return ic.Implicit(ic.GMRES(tol=0.0, atol=1e-5, max_products=10)).run(solve, system, z0)


class CallsBackward(Mine):
    def run(self, solve, system, z0):
        solution = super().run(solve, system, z0)
        if torch.is_grad_enabled():
            system.update(solution.z.detach()).sum().backward()
        return solution


class ChangesTheSolution(Mine):
    def run(self, solve, system, z0):
        solution = super().run(solve, system, z0)
        return replace(solution, z=solution.z + 1e-6)


class WrongSecondDerivative(Mine):
    """An autograd.Function whose backward solve is hidden from autograd."""

    def run(self, solve, system, z0):
        solution = equilibrium(self, solve, system, z0)
        if not torch.is_grad_enabled():
            return solution
        jacobian = system.linearize(solution.z.detach())
        return replace(solution, z=_Hidden.apply(jacobian.fz, solution.z, jacobian))


class _Hidden(torch.autograd.Function):
    @staticmethod
    def forward(ctx, fz, z, jacobian):
        ctx.jacobian = jacobian
        return z.clone()

    @staticmethod
    def backward(ctx, *grads):
        (v,) = grads
        with torch.no_grad():
            matrix = torch.eye(v.shape[1], dtype=v.dtype) - ctx.jacobian.matrix()
            u = torch.linalg.solve(matrix.mT.double(), v.double()).to(v.dtype)
        return u, None, None


class MixesSamples(Mine):
    def run(self, solve, system, z0):
        solution = super().run(solve, system, z0)
        z = solution.z
        return replace(solution, z=z + (z - z.detach()).sum(0) * 0.01)


class RaisesAnotherError(Mine):
    def run(self, solve, system, z0):
        if not isinstance(solve.solver, ic.RootSolver):
            raise TypeError("only root solvers")
        return super().run(solve, system, z0)


class AlwaysAGraph(Mine):
    def run(self, solve, system, z0):
        with torch.enable_grad():
            return super().run(solve, system, z0)


class OnlyTheLastTime(Mine):
    """The way back of a trajectory without the gradients at its other times."""

    def run(self, solve, system, z0):
        solution = ic.Checkpointed().run(solve, system, z0)
        return replace(solution, z=torch.cat((solution.z[:-1].detach(), solution.z[-1:])))


INPUT, PARAMETERS = "gives_the_gradient_of_the_input", "gives_the_gradient_of_the_parameters"
SECOND = "gives_the_second_derivative_or_refuses"
GRADIENTS = [
    (Mine(), set()),
    (DropsTheInput(), {INPUT, SECOND}),
    (HalfTheInput(), {INPUT}),
    (WrongSign(), {INPUT, PARAMETERS, "descent_direction"}),
    (OneParameter(), {PARAMETERS, SECOND}),
    (AbsoluteTolerance(), {"scales_with_the_loss"}),
    (CallsBackward(), {"leaves_grad_alone"}),
    (ChangesTheSolution(), {"solution_unchanged"}),
    (WrongSecondDerivative(), {SECOND}),
    (MixesSamples(), {INPUT, PARAMETERS, SECOND, "per_sample"}),
    (RaisesAnotherError(), {"serves_a_root_or_a_trajectory", "serves_or_refuses_every_solver"}),
    (AlwaysAGraph(), {"no_grad_mode"}),
    (OnlyTheLastTime(), {INPUT, PARAMETERS, "gives_the_gradient_of_z0"}),
]


@pytest.mark.parametrize(("part", "caught_by"), GRADIENTS, ids=lambda value: type(value).__name__)
def test_a_wrong_gradient_is_caught_by_these_checks_and_no_other(part, caught_by):
    assert failed(part) == caught_by
