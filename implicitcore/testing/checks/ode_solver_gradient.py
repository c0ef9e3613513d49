"""What every ODE solver promises to gradient strategies."""

from __future__ import annotations

from dataclasses import replace

import torch

from implicitcore.errors import GradientError
from implicitcore.gradients.adjoint import Adjoint
from implicitcore.gradients.base import GradientStrategy
from implicitcore.gradients.unrolled import Unrolled
from implicitcore.ode_solvers.base import ODESolver
from implicitcore.ode_solvers.runge_kutta import Tsit5
from implicitcore.testing.check import contract
from implicitcore.testing.dense import relative_error
from implicitcore.testing.expect import NotApplicable, expect
from implicitcore.testing.options import with_options
from implicitcore.testing.problems import inputs, problem_for

# Steps or tolerances at which the gradient of a method of order 1 is right to RIGHT.
RIGHT = 5e-2
FINE = {"dt": 0.01, "rtol": 1e-5, "atol": 1e-7, "max_steps": 4000}


def _compare(solver: ODESolver, gradient: GradientStrategy) -> None:
    """Compare the gradients of z0, x and the parameters with those of the closed form.

    The loss depends on all output times.
    """
    problem = problem_for(solver)
    problem = replace(problem, x=problem.x.requires_grad_(), z0=problem.z0.requires_grad_())
    wrt = [problem.z0, problem.x, *problem.f.parameters()]  # pyright: ignore[reportFunctionMemberAccess]
    v = torch.stack([inputs(seed=seed) for seed in range(10, 13)])
    name = type(gradient).__name__
    try:
        z = problem.attach(with_options(solver, **FINE), gradient).z
        expect(
            z.requires_grad,
            f"solved with {name}",
            "a z that requires no gradient",
            "one with a graph",
        )
        found = torch.autograd.grad(z, wrt, v)
    except GradientError as refusal:
        raise NotApplicable(f"it refuses {name}: {refusal}") from refusal
    error = relative_error(found, torch.autograd.grad(problem.exact(), wrt, v))
    expect(
        error <= RIGHT,
        f"compared the gradient by {name} with that of the closed form",
        f"an error of {error:.2g}",
        f"at most {RIGHT:g}",
    )


@contract("ode_solver")
def can_be_unrolled_or_refuses(solver: ODESolver) -> None:
    """``Unrolled`` gets a graph through every step, or a GradientError: never a wrong gradient."""
    _compare(solver, Unrolled())


@contract("ode_solver")
def integrates_the_adjoint_or_refuses(solver: ODESolver) -> None:
    """``Adjoint()`` uses it for the backward integration, or gets a GradientError."""
    _compare(solver, Adjoint())


@contract("ode_solver")
def trains_through_an_adjoint(solver: ODESolver) -> None:
    """``Adjoint(solver=Tsit5())`` on its trajectory gives the gradient of the closed form."""
    _compare(solver, Adjoint(solver=Tsit5(rtol=1e-6, atol=1e-8)))
