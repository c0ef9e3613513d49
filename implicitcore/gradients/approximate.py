"""The gradient strategies that are one estimate: (I - J)^-T v, to less than a solve's accuracy."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from implicitcore.errors import GradientError
from implicitcore.gradients.base import GradientStrategy, Solve, equilibrium, with_iterates
from implicitcore.options.options import Options
from implicitcore.options.types import Count
from implicitcore.solution import Backward, Solution
from implicitcore.system.coupling import check_residual
from implicitcore.system.linearization import Linearization
from implicitcore.system.system import System
from implicitcore.tensors.cotangent import Pullback, attach


@dataclass(frozen=True)
class ApproximateGradient(Options, GradientStrategy):
    """A strategy for equilibria that is one method: an estimate u of (I - J)^-T v.

    Everything around it is shared. The forward solve runs without a graph, f is evaluated once more
    with one, and in the backward pass v = dL/dz is replaced by :meth:`estimate`; u^T df then gives
    the parameters, x and whatever f captured. Where u is to meet a tolerance, ``Implicit`` with a
    root solver of your own does it.

    Attributes:
        iterates: supervise the way: ``solution.iterates`` ``[k, batch, ...]`` holds the iterates
            after these many steps of a stepwise root solver (a sample that stopped earlier keeps
            its last), each with the estimate at J there, for
            ``correction_loss``.

    Raises:
        GradientError: with an ODE solver; on a second derivative; ``iterates`` of a solver that has
            none to give.
    """

    iterates: tuple[Count, ...] = field(default=(), kw_only=True)

    @abstractmethod
    def estimate(self, jacobian: Linearization, v: Tensor) -> Tensor:
        """u, near (I - J)^-T v.

        Arguments:
            jacobian: J at the equilibrium; ``jacobian.vjp(w)`` is J^T w for one product, which is
                counted.
            v: the incoming gradient, ``[batch, n]``; must not be changed in place.

        Returns:
            ``[batch, n]``.
        """

    def run(self, solve: Solve, system: System, z0: Tensor) -> Solution:
        """See :meth:`GradientStrategy.run`."""
        solution = equilibrium(self, solve, system, z0, self.iterates)
        if not torch.is_grad_enabled():
            return solution
        jacobian = system.linearize(solution.z.detach())
        check_residual(system, solution, jacobian.residual(solution.z))
        solution = with_iterates(
            solution, lambda z: self._attached(system.linearize(z), z, solution.backward)
        )
        z = self._attached(jacobian, solution.z, solution.backward)
        return solution.amended(z=z, evaluations=system.evaluations)

    def _attached(self, jacobian: Linearization, z: Tensor, record: Backward) -> Tensor:
        """z, with the estimate at ``jacobian`` as its gradient."""
        return attach(jacobian.fz, z, _Estimate(self, jacobian, record))


@dataclass(frozen=True, eq=False)
class _Estimate(Pullback):
    """The estimate of a strategy, counted."""

    strategy: ApproximateGradient
    jacobian: Linearization
    record: Backward

    def solve(self, v: Tensor) -> Tensor:
        system = self.jacobian.system
        before = system.evaluations
        u = self.strategy.estimate(self.jacobian, v)
        self.record.vjps += system.evaluations - before
        return u

    def differentiable(
        self, v: Tensor, z: Tensor, inputs: Sequence[Tensor]
    ) -> tuple[Tensor | None, ...]:
        name = type(self.strategy).__name__
        raise GradientError(
            f"{name} gives first derivatives only; use Implicit for a second "
            "derivative (create_graph=True)"
        )
