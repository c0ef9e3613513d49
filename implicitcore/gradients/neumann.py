"""The Neumann-series gradient."""

from __future__ import annotations

from dataclasses import dataclass
from typing import final

from torch import Tensor

from implicitcore.gradients.approximate import ApproximateGradient
from implicitcore.options.types import Count
from implicitcore.system.linearization import Linearization


@final
@dataclass(frozen=True)
class Neumann(ApproximateGradient):
    """The Neumann series of (I - J)^-T v, cut: u = sum_{i < steps} (J^T)^i v, with no stop test.

    A fixed cost of ``steps`` - 1 products, which a solve has not: for a strong contraction, or to
    trade exactness for time. The error falls like the spectral radius of J to the power ``steps``.
    ``phantom`` differentiates the same series through unrolled steps and keeps a graph of each;
    this keeps one. ``implicit`` where the gradient is to meet a tolerance.

    Attributes:
        steps: terms of the series; 1 is Jacobian-free backpropagation.

    Raises:
        GradientError: with an ODE solver; on a second derivative.

    Reference:
        Lorraine, Vicol, Duvenaud, Optimizing Millions of Hyperparameters by Implicit
        Differentiation, arXiv 1911.02590.
    """

    steps: Count = 5

    def estimate(self, jacobian: Linearization, v: Tensor) -> Tensor:
        """See :meth:`ApproximateGradient.estimate`."""
        total = term = v
        for _ in range(self.steps - 1):
            term = jacobian.vjp(term)
            total = total + term
        return total
