"""What every root solver promises to gradient strategies."""

from __future__ import annotations

from dataclasses import replace

import torch

from implicitcore.errors import GradientError
from implicitcore.gradients.base import GradientStrategy
from implicitcore.gradients.implicit import Implicit
from implicitcore.gradients.unrolled import Unrolled
from implicitcore.root_solvers.anderson import Anderson
from implicitcore.root_solvers.base import RootSolver
from implicitcore.root_solvers.gmres import GMRES
from implicitcore.testing.check import contract
from implicitcore.testing.dense import relative_error
from implicitcore.testing.expect import NotApplicable, expect
from implicitcore.testing.options import limited, stated, with_options
from implicitcore.testing.problems import inputs, root


def _error(solver: RootSolver, gradient: GradientStrategy) -> float:
    """How far the gradients of x and of the parameters are from the dense ones, relative."""
    problem = root()
    problem = replace(problem, x=problem.x.requires_grad_())
    wrt, v = [problem.x, *problem.f.parameters()], inputs(seed=7)  # pyright: ignore[reportFunctionMemberAccess]
    z = problem.attach(solver, gradient).z
    expect(
        z.requires_grad,
        f"solved with {type(gradient).__name__}",
        "a z that requires no gradient",
        "one with a graph",
    )
    found = torch.autograd.grad(z, wrt, v)
    return relative_error(found, torch.autograd.grad(problem.exact(), wrt, v))


def _tight(solver: RootSolver) -> tuple[RootSolver, float]:
    """The solver at a tight tolerance, and how exact a gradient can be expected to be."""
    if stated(solver, "tol") is None:
        return solver, 1e-2
    return with_options(solver, tol=1e-9, **limited(500)), 1e-5


@contract("root_solver")
def trains_through_the_implicit_gradient(solver: RootSolver) -> None:
    """``Implicit`` at its solution gives the dense gradient, for x and for the parameters."""
    tight, bound = _tight(solver)
    error = _error(tight, Implicit(GMRES(tol=1e-9)))
    expect(
        error <= bound,
        "compared the implicit gradient at the solution with the dense one",
        f"an error of {error:.2g}",
        f"{bound:g}",
    )


@contract("root_solver")
def solves_a_backward_pass(solver: RootSolver) -> None:
    """``Implicit(solver)`` solves the linear system of a backward pass with it."""
    tight, bound = _tight(solver)
    error = _error(Anderson(tol=1e-9), Implicit(tight))
    expect(
        error <= bound,
        "solved the backward system of Implicit",
        f"a gradient with an error of {error:.2g}",
        f"{bound:g}",
    )


@contract("root_solver")
def can_be_unrolled_or_refuses(solver: RootSolver) -> None:
    """``Unrolled`` gets a graph through every step, or a GradientError: never a wrong gradient."""
    tight, _ = _tight(solver)
    try:
        error = _error(tight, Unrolled())
    except GradientError as refusal:
        raise NotApplicable(f"it refuses to be unrolled: {refusal}") from refusal
    expect(
        error <= 1e-2,
        "compared the gradient through every step with the dense one",
        f"an error of {error:.2g}",
        "at most 1e-2",
    )
