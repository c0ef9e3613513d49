"""What the methods of scipy.optimize.root have in common."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import torch
from scipy import optimize
from torch import Tensor

from implicitcore import RootSolver, Solution
from implicitcore.extend import Count, ResidualTolerance, StopTest, System, real_dtype
from implicitcore_scipy.sample import Array, Sample, check_real, one_by_one

CURE = (
    "use Implicit(), Phantom() or Neumann(), or one of implicitcore's own solvers with Unrolled()"
)


@dataclass(frozen=True, kw_only=True)
class SciPyRoot(ResidualTolerance, RootSolver):
    """A method of ``scipy.optimize.root`` on g(z) = f(z) - z, run for each sample by itself.

    The stop test is that of every root solver and not SciPy's: each evaluation is measured, the
    first that meets the tolerance ends the sample, and the best is returned; where SciPy gives up
    before, the status is ``max_steps``. The state goes through NumPy in float64, on the CPU, and
    there is no graph: it trains through ``Implicit``, ``Phantom`` and ``Neumann``. Evaluations are
    of one sample each; a solution counts them as evaluations of the whole batch, their sum over the
    batch size. As the solver of a backward pass a product is one of the whole batch. Use it as a
    reference, or for what implicitcore lacks; it is slow.

    Attributes:
        max_steps: most iterates of a sample, z0 included: each point where SciPy evaluates f, those
            of a line search among them.
    """

    method: ClassVar[str]
    max_steps: Count = 1000

    def arguments(self, search: Search) -> dict[str, Any]:
        """More arguments of ``scipy.optimize.root``, none of which may stop it early."""
        raise NotImplementedError

    def solve(self, system: System, z0: Tensor) -> Solution:
        """See :meth:`RootSolver.solve`.

        Raises:
            InputError: the state is complex.
            GradientError: a graph is asked for.
        """
        check_real(z0)
        with one_by_one(system, max(len(z0), 1)):
            found = [Search(self, Sample(system, z0, row, CURE)).run() for row in range(len(z0))]
        if not found:
            return StopTest(system, z0, self.tol, self.atol).solution()
        z, residual, status, steps = map(
            torch.cat,
            zip(*[(part.z, part.residual, part.status, part.steps) for part in found], strict=True),
        )
        return Solution(
            z=z,
            start=z0,
            residual=residual,
            status=status,
            steps=steps,
            evaluations=system.evaluations,
        )


class _Done(Exception):
    """The sample has stopped."""


class Search:
    """The search for the root of one sample; every evaluation goes into its :class:`StopTest`.

    Attributes:
        eps: the relative precision of f, for finite differences.
        most: evaluations that are left to SciPy.
        unit: of SciPy's variables and residuals, the size of the first residual: its first steps
            and its finite differences are those of a z of about one, and would drown in the
            rounding of a larger residual.
    """

    def __init__(self, solver: SciPyRoot, sample: Sample) -> None:
        self.solver, self.sample = solver, sample
        self.test = StopTest(sample.system, sample.z0, solver.tol, solver.atol)
        self.eps = float(torch.finfo(real_dtype(sample.z0)).eps)
        self.most = solver.max_steps
        self.unit = 1.0
        self.first: Array | None = None

    def run(self) -> Solution:
        """The best point, of this sample alone."""
        z0 = self.sample.z0
        try:
            self.first = self._measure(z0)
            self.unit = max(1.0, float(abs(self.first).max(initial=0.0)))
            optimize.root(
                self.residual,
                self.sample.array(z0) / self.unit,
                method=self.solver.method,
                **self.solver.arguments(self),
            )
        except _Done:
            pass
        except (ValueError, ArithmeticError, np.linalg.LinAlgError) as error:
            if error is self.sample.foreign:
                raise
        return self.test.solution()

    def slope(self) -> float:
        """The factor of a first step along the residual, as SciPy estimates it at the start."""
        size = 0.0 if self.first is None else float(np.linalg.norm(self.first)) / self.unit
        start = float(np.linalg.norm(self.sample.array(self.sample.z0))) / self.unit
        return 0.5 * max(start, 1.0) / size if size else 1.0

    def residual(self, y: Array) -> Array:
        """The residual at y, both in units.

        The first call is at the start, whose residual is known.

        Raises:
            _Done: the search is over.
        """
        value, self.first = self.first, None
        return (
            self._measure(self.sample.tensor(np.ravel(y) * self.unit)) if value is None else value
        ) / self.unit

    def _measure(self, z: Tensor) -> Array:
        """f(z) - z.

        Raises:
            _Done: the tolerance is met, the residual is not finite or diverges, or no evaluation is
                left.
        """
        system = self.sample.system
        now = self.sample.call(system.evaluate, z)
        stopped = self.test.check(now)
        self.most -= 1
        if stopped or not self.most:
            raise _Done
        return self.sample.array(now.residual.value)

    def jacobian(self, y: Array) -> Array:
        """J - I, by autograd: one evaluation and n products."""
        with torch.no_grad():
            matrix = self.sample.array(
                self.sample.call(
                    lambda z: self.sample.system.linearize(z).matrix(),
                    self.sample.tensor(y * self.unit),
                )
            )
        return np.ascontiguousarray(matrix) - np.eye(len(matrix))
