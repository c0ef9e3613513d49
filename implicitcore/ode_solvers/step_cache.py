"""What an implicit method keeps from step to step."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from implicitcore.ode_solvers.factors import Factors
from implicitcore.system.linearization import Linearization
from implicitcore.system.system import System
from implicitcore.tensors.norms import column, real_dtype
from implicitcore.tensors.transforms import check_products

# Where a correction was more than this share of the last, the next step has a new Jacobian.
SLOW = 0.01

# The rate of an iteration of which nothing is known.
UNKNOWN = 1.0


class Kept(NamedTuple):
    """What the simplified Newton method keeps, without a graph."""

    jacobian: Tensor  # [batch, n, n], dg/dz where it was made
    fresh: Tensor  # [batch] bool, that is here
    rate: Tensor  # [batch], of the last iterations
    factors: Factors
    guess: tuple[int, ...]  # iterations that the stages are likely to need

    @classmethod
    def at_start(cls, jacobian: Tensor, coupling: Tensor, guess: tuple[int, ...]) -> Kept:
        """With a new Jacobian, and nothing else."""
        fresh = torch.ones(len(jacobian), dtype=torch.bool, device=jacobian.device)
        rate = jacobian.new_ones(len(jacobian))
        factors = Factors.none(jacobian[:, 0], len(coupling) * jacobian.shape[1])
        return cls(jacobian, fresh, rate, factors, guess)

    def renewed(self, which: Tensor, jacobian: Tensor) -> Kept:
        """The same, with new Jacobians for some samples."""
        new = torch.where(which[:, None, None], jacobian.to(self.jacobian.dtype), self.jacobian)
        dt = torch.where(which, 0, self.factors.dt)
        return self._replace(
            jacobian=new,
            fresh=which,
            rate=torch.where(which, UNKNOWN, self.rate),
            factors=self.factors._replace(dt=dt),
        )


class StepCache(NamedTuple):
    """What a step begins with."""

    velocity: Tensor  # [batch, n], g(t, z)
    jacobian: Tensor | None = None  # [batch, n, n], dg/dz there, where a root solver wants it
    kept: Kept | None = None  # of the simplified Newton method
    past: tuple[Tensor, Tensor] | None = None  # the last step: dt [batch], moves [batch, k, n]


def linearized(system: System, t: Tensor, z: Tensor) -> tuple[Tensor, Tensor]:
    """The velocity at a point, and its Jacobian without a graph: one evaluation and n products."""
    check_products()
    attached = torch.is_grad_enabled() and z.requires_grad
    with torch.enable_grad():
        point = z if attached else z.detach().requires_grad_()
        velocity = system.velocity(t, point)
    with torch.no_grad():
        jacobian = Linearization(system, point, velocity).matrix().to(real_dtype(z))
    return velocity if torch.is_grad_enabled() else velocity.detach(), jacobian
