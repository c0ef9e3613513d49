"""Picard iteration."""

from __future__ import annotations

from dataclasses import dataclass
from typing import final

import torch
from torch import Tensor

from implicitcore.backends.root_iteration import PicardRule
from implicitcore.options.types import Fraction
from implicitcore.root_solvers.stepwise import StepwiseRootSolver
from implicitcore.system.evaluation import Evaluation
from implicitcore.system.system import System


@final
@dataclass(frozen=True, kw_only=True)
class Picard(StepwiseRootSolver[None]):
    """Damped fixed-point iteration z <- (1 - damping) z + damping f(z).

    Converges linearly, at the rate of the spectral radius of (1 - damping) I + damping J, where
    that is below one. One evaluation a step and nothing else: prefer it for strong contractions;
    ``Anderson`` needs fewer evaluations elsewhere.

    Attributes:
        damping: in (0, 1]; 1 is the plain iteration.

    Reference:
        Ortega, Rheinboldt, Iterative Solution of Nonlinear Equations in Several Variables (1970),
        section 5.1.
    """

    damping: Fraction = 1.0

    @property
    def keeps_residual(self) -> bool:
        """See :attr:`StepwiseRootSolver.keeps_residual`."""
        return False

    def update_rule(self, z: Tensor) -> PicardRule:
        """See :meth:`StepwiseRootSolver.update_rule`."""
        del z
        return PicardRule(self.damping)

    def init(self, system: System, z: Tensor) -> None:
        """No state."""

    def step(self, system: System, now: Evaluation, state: None) -> tuple[Tensor, None]:
        """See :meth:`StepwiseRootSolver.step`."""
        del system, state
        return (now.fz if self.damping == 1 else torch.lerp(now.z, now.fz, self.damping)), None
