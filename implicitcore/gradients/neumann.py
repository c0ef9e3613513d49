"""The Neumann-series gradient."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, final

import torch
from torch import Tensor

from implicitcore.errors import GradientError
from implicitcore.gradients.base import GradientStrategy, Solve, equilibrium
from implicitcore.options import Options
from implicitcore.solution import Backward, Solution
from implicitcore.system import Linearization, System
from implicitcore.tolerances import Count


@final
@dataclass(frozen=True)
class Neumann(Options, GradientStrategy):
    """The implicit gradient with (I - J)^-T v cut to its first terms, u = sum_{i < steps} (J^T)^i v, and no stop test.

    A fixed cost of ``steps`` - 1 products, which a solve has not: for a strong contraction, or to trade exactness for time. The error
    falls like the spectral radius of J to the power ``steps``. ``phantom`` differentiates the same series through unrolled steps
    and keeps a graph of each; this keeps one. ``implicit`` where the gradient is to meet a tolerance.

    Attributes:
        steps: terms of the series; 1 is Jacobian-free backpropagation.

    Raises:
        GradientError: with an ODE solver; on a second derivative.

    Reference:
        Lorraine, Vicol, Duvenaud, Optimizing Millions of Hyperparameters by Implicit Differentiation, arXiv 1911.02590.
    """

    steps: Count = 5

    def run(self, solve: Solve, system: System, z0: Tensor) -> Solution:
        """See :meth:`GradientStrategy.run`."""
        solution = equilibrium(self, solve, system, z0)
        if not torch.is_grad_enabled():
            return solution
        jacobian = system.linearize(solution.z.detach())
        z = _Series.apply(jacobian.fz, solution.z, jacobian, self.steps, solution.backward)
        return replace(solution, z=z, evaluations=system.evaluations)


class _Series(torch.autograd.Function):
    """The value z, whose gradient v reaches the graph of fz = f(z) as the cut series."""

    @staticmethod
    def forward(ctx: Any, *arguments: Any) -> Tensor:
        _, z, *ctx.rest = arguments
        return z.view_as(z)

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Any) -> Any:
        if torch.is_grad_enabled():
            raise GradientError("neumann gives first derivatives only; use implicit for a second derivative (create_graph=True)")
        return _sum(grad_outputs[0], *ctx.rest), None, None, None, None


def _sum(v: Tensor, jacobian: Linearization, steps: int, record: Backward) -> Tensor:
    total = term = v
    for _ in range(steps - 1):
        term = jacobian.vjp(term)
        total = total + term
    record.vjps += steps - 1
    return total
