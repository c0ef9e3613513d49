"""Backpropagation through the solver."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import ClassVar, final

import torch
from torch import Tensor

from implicitcore.gradients.base import GradientStrategy, Solve
from implicitcore.options import Options
from implicitcore.solution import Solution
from implicitcore.system import System


@final
@dataclass(frozen=True)
class Unrolled(Options, GradientStrategy):
    """Backpropagate through every step of the solver: the exact gradient of the discrete iteration.

    Memory grows with the number of steps. z0 gets its gradient too; step sizes and stop tests get none. Prefer
    ``implicit`` at an equilibrium (constant memory) and ``adjoint`` on long trajectories.

    Reference:
        Gilbert, Automatic differentiation and iterative processes, Optim. Methods Softw. 1 (1992), p. 13-21.
    """

    transforms: ClassVar[tuple[str, ...]] = ("grad", "jvp")

    def run(self, solve: Solve, system: System, z0: Tensor) -> Solution:
        """See :meth:`GradientStrategy.run`."""
        solution = solve(system, z0)
        if len(z0) or system.scope.group is not None or not torch.is_grad_enabled():
            return solution
        # An empty batch takes no step: one evaluation connects it with what f depends on, as a data-parallel module requires.
        return replace(solution, z=solution.z + system.update(z0), evaluations=system.evaluations)
