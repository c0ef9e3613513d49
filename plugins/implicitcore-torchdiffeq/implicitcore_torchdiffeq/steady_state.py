"""Integration by torchdiffeq until every sample is told to stop."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from implicitcore import Status, Trajectory
from implicitcore.extend import Stop, System, column
from implicitcore_torchdiffeq.field import Field, OutOfSteps

if TYPE_CHECKING:
    from implicitcore_torchdiffeq.base import TorchdiffeqSolver

# torchdiffeq gives up an event after 20000 fixed steps.
MOST = 19_000


def integrate_to_steady_state(
    solver: TorchdiffeqSolver, system: System, z0: Tensor, grid: Tensor, stop: Stop
) -> Trajectory:
    """Integrate from grid[0] until ``stop`` lets no sample go on.

    A sample that stopped has velocity zero from then on.
    """
    field = _ActiveField(system, min(solver.max_steps, MOST), stop, z0, grid[0])
    ahead = torch.stack((grid[0], grid[0] + (grid[1] - grid[0]).sign()))
    while not field.done:
        start = torch.where(column(field.active), field.z, 0)
        ahead = ahead + (field.t0 - ahead[0])
        try:
            solver.odeint(field, start, ahead, event_fn=field.event)
        except (AssertionError, OutOfSteps) as error:
            field.drop(*field.at_fault(error))
    return Trajectory(
        z=torch.stack((z0, field.z)),
        start=z0,
        status=field.status,
        steps=field.taken,
        evaluations=system.evaluations,
        times=grid,
    )


class _ActiveField(Field):
    """The vector field of the samples that go on.

    ``stop`` is called with each accepted state, as torchdiffeq's event function is.
    """

    def __init__(self, system: System, most: int, stop: Stop, z0: Tensor, t0: Tensor) -> None:
        super().__init__(system, most)
        self.stop, self.z, self.t0 = stop, z0, t0
        self.accepted = 0
        self.active = torch.ones(len(z0), dtype=torch.bool, device=z0.device)
        self.status = torch.full_like(self.active, int(Status.MAX_STEPS), dtype=torch.int8)
        self.taken = torch.zeros_like(self.active, dtype=torch.int64)
        self.seen: Tensor | None = None
        self.known: tuple[Tensor, Tensor] | None = None
        self.velocity = self._velocity(t0, z0)
        self._ask(t0, z0)

    @property
    def done(self) -> bool:
        """Whether nothing is left to do."""
        return max(self.steps, self.accepted) >= self.most or not bool(self.active.any())

    def __call__(self, t: Tensor, y: Tensor) -> Tensor:
        """The velocity, zero for a sample that has stopped."""
        return torch.where(column(self.active), self._velocity(t, y), 0)

    def _velocity(self, t: Tensor, y: Tensor) -> Tensor:
        """The last stage of a step is often its end: that velocity is not computed again."""
        if self.known is None or self.known[0] is not y:
            self.known = y, super().__call__(t, y)
        return self.known[1]

    def event(self, t: Tensor, y: Tensor) -> Tensor:
        """Positive while a sample goes on.

        Torchdiffeq asks at every accepted state, and after the end in between.
        """
        if not self.done and y is not self.seen:
            if self.seen is not None:  # the first is the start
                self.accepted += 1
                self._ask(t, y)
            self.seen = y
        return torch.tensor(-1.0 if self.done else 1.0, device=y.device)

    def _ask(self, t: Tensor, y: Tensor) -> None:
        going = column(self.active)
        self.z, self.velocity = (
            torch.where(going, y, self.z),
            torch.where(going, self._velocity(t, y), self.velocity),
        )
        self.taken = torch.where(self.active, max(self.steps, self.accepted), self.taken)
        self.t0 = t.to(self.t0)
        self.active = self.active & self.stop(self.t0.expand(len(y)), self.z, self.velocity)

    def drop(self, at_fault: Tensor, status: Status) -> None:
        """Leave the samples out for which no step succeeds.

        The others go on from their last accepted states.
        """
        lost = self.active & at_fault if bool((self.active & at_fault).any()) else self.active
        self.status[lost] = int(status)
        self.active = self.active & ~lost
        self.seen = None
