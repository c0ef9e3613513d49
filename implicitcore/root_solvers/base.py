"""The abstract root solvers."""

from __future__ import annotations

from abc import abstractmethod
from typing import ClassVar

from torch import Tensor

from implicitcore.options.options import PartMeta
from implicitcore.solution import Solution
from implicitcore.system.evaluation import Evaluation
from implicitcore.system.system import System


class RootSolver(metaclass=PartMeta):
    """Finds z with f(z) = z (that is, g(z) = 0) for each sample of a batch.

    A black box implements :meth:`solve` alone; a solver that is one map per iteration derives from
    :class:`StepwiseRootSolver` and gets the shared loop.
    """

    kind: ClassVar[str] = "root_solver"

    @abstractmethod
    def solve(self, system: System, z0: Tensor) -> Solution:
        """Solve from z0.

        Arguments:
            system: gives f, its residual and its Jacobian products on packed states.
            z0: ``[batch, n]``.

        Returns:
            The best iterate with its measured residual and a status per sample, packed.
        """

    def relative_tolerance(self) -> float | None:
        """What a solve brings ``|f(z) - z| / |f(z)|`` down to: its ``tol``, where it has one.

        The backward solve of ``Implicit`` follows it. None where the solver has no such tolerance.
        """
        tol = getattr(self, "tol", None)
        return float(tol) if isinstance(tol, float | int) and tol > 0 else None

    def solve_from(self, system: System, start: Evaluation) -> Solution:
        """Solve from a point where f is known, as zero is for the linear system of a backward pass.

        Here it is evaluated there once more.
        """
        return self.solve(system, start.z)
