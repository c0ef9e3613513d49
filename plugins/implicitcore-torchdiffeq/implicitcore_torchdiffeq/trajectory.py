"""A trajectory by torchdiffeq, whose failures are of one sample and not of the batch."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from implicitcore import Status, Trajectory
from implicitcore.extend import System
from implicitcore_torchdiffeq.field import Field, OutOfSteps

if TYPE_CHECKING:
    from implicitcore_torchdiffeq.base import TorchdiffeqSolver


def trajectory(solver: TorchdiffeqSolver, system: System, z0: Tensor, grid: Tensor) -> Trajectory:
    """The states at the output times."""
    run = _Run(solver, system, z0, grid)
    finite = z0.isfinite().all(1)
    run.solve(finite.nonzero().squeeze(1), len(grid))
    run.solve((~finite).nonzero().squeeze(1), 1)
    return run.solution()


class _Run:
    """The pieces of the batch that have been integrated."""

    def __init__(self, solver: TorchdiffeqSolver, system: System, z0: Tensor, grid: Tensor) -> None:
        self.solver, self.system, self.z0, self.grid = solver, system, z0, grid
        self.status = torch.full(
            z0.shape[:1], int(Status.CONVERGED), dtype=torch.int8, device=z0.device
        )
        self.steps = torch.zeros_like(self.status, dtype=torch.int64)
        self.rows: list[Tensor] = []
        self.pieces: list[Tensor] = []

    def solve(self, rows: Tensor, count: int) -> None:
        """Integrate some samples over the first ``count`` output times.

        Those that fail go as far as they can.
        """
        if count < 2 or not len(rows) or not self.z0.shape[1]:
            self._keep(rows, self.z0.index_select(0, rows).unsqueeze(0))
            return
        whole = len(rows) == len(self.z0)
        field = Field(self.system if whole else self.system.restrict(rows), self.solver.max_steps)
        z0 = self.z0 if whole else self.z0.index_select(0, rows)
        try:
            z = self.solver.odeint(field, z0, self.grid[:count])
        except (AssertionError, OutOfSteps) as error:
            at_fault, status = field.at_fault(error)
        else:
            self._keep(rows, z)
            self.steps[rows] = self.steps[rows].clamp(min=field.steps)
            if field.loose:
                self.status[rows] = int(Status.MAX_STEPS)
            return
        lost, others = rows[at_fault], rows[~at_fault]
        self.status[lost] = int(status)
        self.steps[lost] = field.steps
        self.solve(lost, min(self._reached(field), count - 1))
        self.solve(others, count)

    def _reached(self, field: Field) -> int:
        """Output times at or before the last accepted state."""
        if field.t is None:
            return 1
        onwards = (self.grid[1] - self.grid[0]).sign()
        return int(((self.grid - field.t) * onwards <= 0).sum())

    def _keep(self, rows: Tensor, z: Tensor) -> None:
        last = torch.arange(len(self.grid), device=z.device).clamp(max=len(z) - 1)
        self.rows.append(rows)
        self.pieces.append(z if len(z) == len(self.grid) else z.index_select(0, last))

    def solution(self) -> Trajectory:
        """All pieces in the order of the batch."""
        order = torch.cat(self.rows).argsort()
        z = torch.cat(self.pieces, 1).index_select(1, order)
        return Trajectory(
            z=self._last_finite(z),
            start=self.z0,
            status=self.status,
            steps=self.steps,
            evaluations=self.system.evaluations,
            times=self.grid,
        )

    def _last_finite(self, z: Tensor) -> Tensor:
        """The states; a sample that is not finite has its last state that was."""
        finite = z.detach().isfinite().all(2)
        if bool(finite.all()):
            return z
        self.status[~finite.all(0)] = int(Status.NON_FINITE)
        reached = finite.long().cumprod(0).sum(0).clamp(min=1)
        index = torch.minimum(torch.arange(len(z), device=z.device)[:, None], reached - 1)
        return z.gather(0, index[:, :, None].expand_as(z))
