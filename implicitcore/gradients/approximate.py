"""The gradient strategies that are one estimate: (I - J)^-T v, to less than a solve's accuracy."""

from __future__ import annotations

from abc import abstractmethod
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from implicitcore.errors import GradientError
from implicitcore.gradients.base import GradientStrategy, Solve, equilibrium
from implicitcore.options.options import Options
from implicitcore.solution import Solution
from implicitcore.system.linearization import Linearization
from implicitcore.system.system import System


@dataclass(frozen=True)
class ApproximateGradient(Options, GradientStrategy):
    """A strategy for equilibria that is one method: an estimate u of (I - J)^-T v.

    Everything around it is shared. The forward solve runs without a graph, f is evaluated once more
    with one, and in the backward pass v = dL/dz is replaced by :meth:`estimate`; u^T df then gives
    the parameters, x and whatever f captured. Where u is to meet a tolerance, ``Implicit`` with a
    root solver of your own does it.

    Raises:
        GradientError: with an ODE solver; on a second derivative.
    """

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
        solution = equilibrium(self, solve, system, z0)
        if not torch.is_grad_enabled():
            return solution
        jacobian = system.linearize(solution.z.detach())
        z = _Replace.apply(jacobian.fz, solution.z, self, jacobian, solution.backward)
        return solution.amended(z=z, evaluations=system.evaluations)


class _Replace(torch.autograd.Function):
    """The value z, whose gradient v reaches the graph of fz = f(z) as the strategy's estimate."""

    @staticmethod
    def forward(ctx: Any, *arguments: Any) -> Tensor:
        _, z, ctx.strategy, ctx.jacobian, ctx.record = arguments
        return z.view_as(z)

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Any) -> Any:
        if torch.is_grad_enabled():
            name = type(ctx.strategy).__name__
            raise GradientError(
                f"{name} gives first derivatives only; use Implicit for a second "
                "derivative (create_graph=True)"
            )
        system = ctx.jacobian.system
        before = system.evaluations
        u = ctx.strategy.estimate(ctx.jacobian, grad_outputs[0])
        ctx.record.vjps += system.evaluations - before
        return u, None, None, None, None
