"""The loop of the solvers for systems that are linear in z."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from implicitcore.backends.base import Backend
from implicitcore.options.shared import ResidualTolerance
from implicitcore.options.types import Count
from implicitcore.root_solvers.base import RootSolver
from implicitcore.root_solvers.convergence import StopTest
from implicitcore.root_solvers.fused import FusedStopTest
from implicitcore.solution import Solution
from implicitcore.system.evaluation import Evaluation
from implicitcore.system.linearization import Linearization
from implicitcore.system.system import System

Product = Callable[[Tensor], Tensor]


class Correction(NamedTuple):
    """What one cycle adds to z, and what it cost."""

    s: Tensor  # [batch, n]
    products: int
    steps: Tensor  # [batch], the products that each sample used


@dataclass(frozen=True, kw_only=True)
class LinearRootSolver(ResidualTolerance, RootSolver):
    """Cycles of a matrix-free method for A s = g, with g = g(z) = b - A z, per sample.

    Each begins at the residual measured. A = -dg/dz = I - df/dz comes as products from
    ``system.linearize``. The residual is measured after a cycle, though the methods predict it:
    rounding, and a cell that mixes samples, part the two. On a nonlinear system a cycle solves the
    linearisation at z.

    Attributes:
        max_products: most products with A of the batch.
    """

    max_products: Count = 100

    @abstractmethod
    def cycle(
        self, system: System, product: Product, g: Tensor, limit: Tensor, left: int
    ) -> Correction:
        """An s with A s near g, after about ``left`` products at most.

        Arguments:
            system: what is solved.
            product: v -> A v.
            g: the residual, ``[batch, n]``.
            limit: ``[batch]``, what ``|g - A s|`` is to come to; infinite for a sample that has
                stopped.
            left: products that may be spent.
        """

    def solve(self, system: System, z0: Tensor) -> Solution:
        """See :meth:`RootSolver.solve`."""
        return self.solve_from(system, system.evaluate(z0))

    def solve_from(self, system: System, start: Evaluation) -> Solution:
        """See :meth:`RootSolver.solve_from`."""
        test, z, g = self._stop_test(system, start.z), start.z, start.residual.value
        stopped = test.check(start)
        products, steps = 0, None
        while not stopped and products < self.max_products:
            product = _product(system.linearize(z))
            found = self.cycle(system, product, g, test.limit(), self.max_products - products)
            products += found.products + 1
            steps = found.steps if steps is None else steps + found.steps
            z = test.freeze(z + found.s, z)
            stopped, g = _measured(system, test, z)
        if steps is None:
            steps = torch.zeros(len(z), dtype=torch.int64, device=z.device)
        return test.solution(steps)

    def _stop_test(self, system: System, z0: Tensor) -> StopTest | FusedStopTest:
        """The backend's, where it makes one."""
        if type(system.context.backend).root_iteration is not Backend.root_iteration:
            limits = self.tol, self.atol, 1, self.max_products
            found = FusedStopTest.of(system, z0, limits)
            if found is not None:
                return found
        return StopTest(system, z0, self.tol, self.atol)


def _measured(system: System, test: StopTest | FusedStopTest, z: Tensor) -> tuple[bool, Tensor]:
    """Whether every sample stops at z, and the residual there: one evaluation."""
    if isinstance(test, FusedStopTest):
        return test.measure(z)
    now = system.evaluate(z)
    return test.check(now), now.residual.value


def _product(jacobian: Linearization) -> Product:
    """v -> (I - J) v."""
    return lambda v: v - jacobian.jvp(v)
