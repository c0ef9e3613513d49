"""The implicit gradient with the inverse that the forward solve has estimated."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import final

import torch
from torch import Tensor

from implicitcore.errors import GradientError
from implicitcore.gradients.base import GradientStrategy, Solve, equilibrium
from implicitcore.gradients.implicit import BackwardSolve, attached
from implicitcore.options.options import Options
from implicitcore.root_solvers.base import RootSolver
from implicitcore.root_solvers.broyden import Broyden
from implicitcore.root_solvers.judgement import in_range
from implicitcore.root_solvers.picard import Picard
from implicitcore.solution import Solution
from implicitcore.system.evaluation import Evaluation
from implicitcore.system.linear_system import LinearSystem
from implicitcore.system.real import of_complex
from implicitcore.system.system import System


@final
@dataclass(frozen=True)
class Shine(Options, GradientStrategy):
    """The implicit gradient with (I - J)^-T v taken from Broyden's estimate in the forward solve.

    No backward iterations. After a forward solve by ``Broyden()`` its estimate B of the inverse
    Jacobian of f(z) - z is applied transposed, u = -B^T v, and one product measures how good u is.
    The estimate is right along the directions that the forward solve went, and near the identity
    elsewhere: cheaper than ``implicit``, mostly closer than ``phantom``, and inexact by an amount
    that ``solution.backward.residual`` says.

    Attributes:
        solver: goes on from u. The default takes no step: it measures the residual, relative to v,
            and warns above 1. ``Picard`` with a few steps, or ``GMRES``, refines the estimate to a
            tolerance.

    Raises:
        GradientError: the forward solver keeps no such estimate; on a second derivative.

    Reference:
        Ramzi, Mannel, Bai, Starck, Ciuciu, Moreau, SHINE: SHaring the INverse Estimate from the
        forward pass for bi-level optimization and implicit models, arXiv 2106.00553.
    """

    solver: RootSolver = Picard(tol=1.0, max_steps=1)

    def run(self, solve: Solve, system: System, z0: Tensor) -> Solution:
        """See :meth:`GradientStrategy.run`."""
        solver = solve.solver
        if isinstance(solver, RootSolver) and not isinstance(solver, Broyden):
            kept = (
                "the inverse that Broyden estimates in the forward solve, and "
                f"{type(solver).__name__} keeps none"
            )
            raise GradientError(f"Shine reuses {kept}; use Implicit")
        if not torch.is_grad_enabled() or not isinstance(solver, Broyden):
            return equilibrium(self, solve, system, z0)
        inverses: list[Callable[[Tensor], Tensor]] = []

        def keep(part: System, start: Tensor) -> Solution:
            solution, inverse = solver.solve_keeping(part, start)
            inverses.append(inverse)
            return solution

        with torch.no_grad():
            solution = in_range(system, z0, keep)
        inverse = of_complex(inverses[-1]) if z0.is_complex() else inverses[-1]
        jacobian = system.linearize(solution.z.detach())
        return attached(
            solution, _Estimated(self.solver, system, jacobian, solution.backward, inverse)
        )


@dataclass(frozen=True, eq=False)
class _Estimated(BackwardSolve):
    """A backward solve that begins at the estimate."""

    inverse: Callable[[Tensor], Tensor]

    def start(self, linear: LinearSystem) -> Evaluation:
        """-B^T v."""
        return linear.evaluate(self.inverse(linear.v))

    def differentiable(
        self, v: Tensor, z: Tensor, inputs: Sequence[Tensor]
    ) -> tuple[Tensor | None, ...]:
        """Refuse."""
        raise GradientError(
            "shine gives first derivatives only; use implicit for a second derivative "
            "(create_graph=True)"
        )
