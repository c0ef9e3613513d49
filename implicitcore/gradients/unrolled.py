"""Backpropagation through the solver."""

from __future__ import annotations

from dataclasses import dataclass
from typing import final

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

    def run(self, solve: Solve, system: System, z0: Tensor) -> Solution:
        """See :meth:`GradientStrategy.run`."""
        return solve(system, z0)
