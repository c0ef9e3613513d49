"""The phantom gradient: a few damped steps with a graph."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, final

import torch
from torch import Tensor

from implicitcore.errors import GradientError
from implicitcore.gradients.base import GradientStrategy, Solve, equilibrium, with_iterates
from implicitcore.options.options import Options
from implicitcore.options.types import Count, Fraction
from implicitcore.solution import Solution
from implicitcore.system.coupling import check_residual
from implicitcore.system.evaluation import Evaluation
from implicitcore.system.system import System
from implicitcore.tensors.transforms import transformed


@final
@dataclass(frozen=True)
class Phantom(Options, GradientStrategy):
    """Differentiate ``steps`` damped fixed-point steps, taken from a solution without a graph.

    The gradient is v^T sum_{i<k} (tau J + (1 - tau) I)^i tau df/dtheta: the Neumann series of the
    implicit gradient cut after k = ``steps`` terms, each damped by tau. With k = 1, tau = 1 it is
    Jacobian-free backpropagation. It is an approximation: cheaper than ``implicit``, and for
    contractive dynamics a descent direction. The value of z stays the solver's, so that its
    measured residual holds.

    Attributes:
        steps: steps with a graph, k.
        damping: tau, in (0, 1].
        iterates: supervise the way: ``solution.iterates`` ``[k, batch, ...]`` holds the iterates
            after these many steps of a stepwise root solver (a sample that stopped earlier keeps
            its last), each with the phantom gradient of ``steps`` steps from there, for
            ``correction_loss``.

    Raises:
        GradientError: with an ODE solver; on a second derivative, for which the equilibrium would
            stand still; ``iterates`` of a solver that has none to give.

    Reference:
        Geng, Zhang, Bai, Wang, Lin, On Training Implicit Models, arXiv 2111.05177; k = 1: Fung et
        al., JFB, arXiv 2103.12803; at several iterates: Bai, Geng, Savani, Kolter, Deep Equilibrium
        Optical Flow Estimation, arXiv 2204.08442.
    """

    transforms: ClassVar[tuple[str, ...]] = ("grad",)

    steps: Count = 1
    damping: Fraction = 1.0
    iterates: tuple[Count, ...] = ()

    def run(self, solve: Solve, system: System, z0: Tensor) -> Solution:
        """See :meth:`GradientStrategy.run`."""
        solution = equilibrium(self, solve, system, z0, self.iterates)
        if not torch.is_grad_enabled():
            return solution
        first = system.evaluate(solution.z)
        check_residual(system, solution, first.residual)
        solution = with_iterates(solution, lambda z: self._attached(system, system.evaluate(z)))
        z = self._attached(system, first)
        return solution.amended(z=z, evaluations=system.evaluations)

    def _attached(self, system: System, start: Evaluation) -> Tensor:
        """The state of ``start``, with the graph of the steps from there."""
        z = torch.lerp(start.z, start.fz, self.damping)
        for _ in range(self.steps - 1):
            z = torch.lerp(z, system.update(z), self.damping)
        if (
            z.requires_grad and not transformed()
        ):  # in torch.func a first derivative has a graph too
            z.register_hook(_incoming)
        return start.z + (z - z.detach())


def _incoming(v: Tensor) -> Tensor:
    """The incoming gradient: NaN for a sample where it is not finite, as in other strategies."""
    if torch.is_grad_enabled():
        raise GradientError(
            "Phantom gives first derivatives only; use Implicit for a second derivative "
            "(create_graph=True)"
        )
    return torch.where(v.isfinite().all(1, keepdim=True), v, torch.nan)
