"""What an implicit method keeps from step to step."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from implicitcore.ode_solvers.factors import Factors
from implicitcore.ode_solvers.repeated import repeated
from implicitcore.system.linearization import Linearization
from implicitcore.system.system import System
from implicitcore.tensors.norms import real_dtype
from implicitcore.tensors.transforms import check_products

# Where a correction was more than this share of the last, the next step has a new Jacobian.
SLOW = 0.02

# Jacobians of so few columns come from one call of f, with each sample so many times.
FEW = 16

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
        factors = Factors.none(jacobian, len(coupling) * jacobian.shape[1])
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
    parts: tuple[Tensor, Tensor] | None = None  # of the velocity: stiff and not, each [batch, n]


def linearized(system: System, t: Tensor, z: Tensor) -> tuple[Tensor, Tensor]:
    """The velocity at a point, and its Jacobian without a graph.

    One evaluation and n products; one evaluation more where the products are one.
    """
    check_products()
    graph, n = torch.is_grad_enabled(), z.shape[1]
    many = repeated(system, n, t, z) if 1 < n <= FEW else None
    if many is not None:  # the same numbers with a graph and without one
        return system.velocity(t, z), _in_one_call(many, t, z.detach())
    with torch.enable_grad():
        point = z if graph and z.requires_grad else z.detach().requires_grad_()
        velocity = system.velocity(t, point)
    with torch.no_grad():
        jacobian = Linearization(system, point, velocity).matrix().to(real_dtype(z))
    return velocity if graph else velocity.detach(), jacobian


@torch.no_grad()
def _in_one_call(many: System, t: Tensor, z: Tensor) -> Tensor:
    """The Jacobian, from a system with each sample n times: each gives another row."""
    n = z.shape[1]
    times = t.unsqueeze(1).expand(-1, n).reshape(-1)
    with torch.enable_grad():
        points = z.unsqueeze(1).expand(-1, n, -1).reshape(-1, n).requires_grad_()
        velocities = many.velocity(times, points)
    rows = torch.eye(n, dtype=z.dtype, device=z.device).repeat(len(z), 1)
    many.evaluations += n - 1  # the one product counts as n
    return Linearization(many, points, velocities).vjp(rows).view(-1, n, n).to(real_dtype(z))
