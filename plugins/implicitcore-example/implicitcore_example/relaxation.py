"""Aitken's dynamic relaxation."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple, final

import torch
from torch import Tensor

from implicitcore.extend import Evaluation, Fraction, Positive, StepwiseRootSolver, System


class State(NamedTuple):
    """What a step needs of the last one."""

    factor: Tensor  # [batch, 1]
    residual: Tensor  # [batch, n]


@final
@dataclass(frozen=True, kw_only=True)
class Relaxation(StepwiseRootSolver[State]):
    """z <- z + w g with g = f(z) - z; the factor w follows from the last two residuals, per sample.

    w <- -w g_last (g - g_last) / ``|g - g_last|^2``: the factor with which the last step would have
    left the least residual, were f linear. It keeps two vectors where Anderson acceleration keeps a
    dozen: prefer it where memory is short and one direction dominates.

    Attributes:
        first: w of the first step, and of a sample whose residual has more than doubled.
        largest: ``|w|`` is at most this.

    Reference:
        Irons, Tuck, A version of the Aitken accelerator for computer iteration, Int. J. Numer.
        Methods Eng. 1 (1969), p. 275-277.
    """

    first: Fraction = 1.0
    largest: Positive = 4.0

    def init(self, system: System, z: Tensor) -> State:
        """No step has been taken: the residual is zero."""
        return State(torch.zeros_like(z[:, :1].real), torch.zeros_like(z))

    def step(self, system: System, now: Evaluation, state: State) -> tuple[Tensor, State]:
        """See :meth:`StepwiseRootSolver.step`."""
        g = now.residual.value
        change = g - state.residual
        least = torch.finfo(g.dtype).tiny
        factor = (
            -state.factor * _inner(state.residual, change) / _inner(change, change).clamp(min=least)
        )
        factor = torch.where(factor == 0, self.first, factor.clamp(-self.largest, self.largest))
        return now.z + factor * g, State(factor, g)

    def restart(self, state: State, grown: Tensor) -> State:
        """See :meth:`StepwiseRootSolver.restart`."""
        return state._replace(factor=torch.where(grown.unsqueeze(1), 0, state.factor))


def _inner(a: Tensor, b: Tensor) -> Tensor:
    """The inner product of each sample, ``[batch, 1]``."""
    return torch.linalg.vecdot(a, b).real.unsqueeze(1)
