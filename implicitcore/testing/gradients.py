"""What every gradient strategy promises."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from implicitcore.gradients.base import GradientStrategy
from implicitcore.ode_solvers.base import ODESolver
from implicitcore.ode_solvers.runge_kutta import Tsit5
from implicitcore.root_solvers.base import RootSolver
from implicitcore.root_solvers.broyden import Broyden
from implicitcore.root_solvers.reversible import Reversible
from implicitcore.testing.expect import expect
from implicitcore.testing.options import for_dtype, with_options
from implicitcore.testing.problems import Problem, inputs, problem_for

# Solvers of which every strategy takes one: Shine needs the inverse that Broyden estimates, and
# ReversibleGradient steps that can be taken back.
SOLVERS = (
    Broyden(tol=1e-11, max_steps=100),
    Tsit5(rtol=1e-6, atol=1e-8),
    Reversible(tol=1e-11, max_steps=200),
)


@dataclass(frozen=True)
class Case:
    """A problem and a solver that a strategy is given, with the gradient that goes into z."""

    gradient: GradientStrategy
    solver: RootSolver | ODESolver
    problem: Problem
    v: Tensor

    @property
    def name(self) -> str:
        """For messages."""
        return (
            f"differentiated {'a root' if self.problem.times is None else 'a trajectory'} by "
            f"{type(self.solver).__name__}"
        )

    @property
    def parameters(self) -> list[Tensor]:
        """Of the cell or the vector field."""
        return list(self.problem.f.parameters())  # pyright: ignore[reportFunctionMemberAccess]

    @property
    def leaves(self) -> list[Tensor]:
        """The tensors that get a gradient."""
        start = [] if self.problem.times is None else [self.problem.z0]
        return [*start, self.problem.x, *self.parameters]

    def z(self) -> Tensor:
        """The solution, with the graph of the strategy."""
        z = self.problem.attach(self.solver, self.gradient).z
        expect(
            z.requires_grad,
            self.name,
            "a z that requires no gradient",
            "one with a graph, or a GradientError",
        )
        return z

    def gradients(self, wrt: Sequence[Tensor], scale: float = 1.0) -> list[Tensor]:
        """The gradients of these tensors; zero where autograd gives none."""
        return _take(self.z(), wrt, self.v * scale)

    def expected(self, wrt: Sequence[Tensor]) -> list[Tensor]:
        """The gradient by Newton's method and dense matrices, or of the closed form."""
        return list(torch.autograd.grad(self.problem.exact(), wrt, self.v))


def make_case(
    gradient: GradientStrategy,
    solver: RootSolver | ODESolver,
    batch: int = 8,
    dtype: torch.dtype = torch.float64,
    *,
    x_requires_grad: bool = True,
) -> Case:
    """The problem that the solver is for."""
    problem = problem_for(solver, batch, dtype)
    problem = replace(
        problem,
        x=problem.x.requires_grad_(x_requires_grad),
        z0=problem.z0.requires_grad_(problem.times is not None and x_requires_grad),
    )
    shape = problem.z0.shape if problem.times is None else (len(problem.times), *problem.z0.shape)
    v = torch.stack([inputs(batch, seed=seed, dtype=dtype) for seed in range(10, 13)])
    return Case(gradient, solver, problem, v[0] if len(shape) == 2 else v)


def refusal(gradient: GradientStrategy, solver: RootSolver | ODESolver) -> Exception | None:
    """The error with which the strategy meets such a solver; None where it serves it."""
    try:
        case = make_case(gradient, with_options(solver, rtol=1e-2, atol=1e-2), 1)
        torch.autograd.grad(case.z(), case.leaves, case.v, allow_unused=True)
    except Exception as error:
        return error
    return None


def serves(gradient: GradientStrategy, solver: RootSolver | ODESolver) -> bool:
    """Whether the strategy takes such a solver."""
    return refusal(gradient, solver) is None


def served(
    gradient: GradientStrategy, batch: int = 8, dtype: torch.dtype = torch.float64
) -> Iterator[Case]:
    """The root and the trajectory, where the strategy is for them."""
    for solver in served_solvers(gradient):
        yield make_case(gradient, for_dtype(solver, dtype), batch, dtype)


def served_solvers(gradient: GradientStrategy) -> list[RootSolver | ODESolver]:
    """Broyden and Tsit5, where the strategy serves them; one that serves neither is of its own."""
    *usual, last = SOLVERS
    return [solver for solver in usual if serves(gradient, solver)] or [
        solver for solver in (last,) if serves(gradient, solver)
    ]


def _take(z: Tensor, wrt: Sequence[Tensor], v: Tensor) -> list[Tensor]:
    found = torch.autograd.grad(z, wrt, v, allow_unused=True)
    return [torch.zeros_like(leaf) if g is None else g for leaf, g in zip(wrt, found, strict=True)]


def relative(found: Tensor, expected: Tensor) -> float:
    """The relative error in the 2-norm."""
    return ((found - expected).norm() / expected.norm()).item()
