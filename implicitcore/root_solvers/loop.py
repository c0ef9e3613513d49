"""The loop of every stepwise root solver, and the stop test it shares with the steady-state integration."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from implicitcore.backends.base import Residual
from implicitcore.norms import column, real_dtype
from implicitcore.solution import Solution, Status
from implicitcore.system import System

if TYPE_CHECKING:
    from implicitcore.root_solvers.base import StepwiseRootSolver

# A residual this many times its scale at the start is lost: the sample is stopped before it overflows.
DIVERGENCE = 1e8


class Progress:
    """How far each sample is: which are active, their best iterates, measured residuals and statuses.

    Every promise about stopping is kept here and nowhere else: per sample, on the true residual, best iterate returned.

    Arguments:
        system: gives the residual and the scale of the relative tolerance.
        z0: the start, ``[batch, n]``.
        tol: relative tolerance.
        atol: absolute tolerance.
    """

    def __init__(self, system: System, z0: Tensor, tol: float, atol: float) -> None:
        self.system, self.start, self.tol, self.atol = system, z0, tol, atol
        batch = z0.shape[0]
        self.active = torch.ones(batch, dtype=torch.bool, device=z0.device)
        self.met = torch.zeros_like(self.active)
        self.finite = torch.ones_like(self.active)
        self.steps = torch.zeros(batch, dtype=torch.int64, device=z0.device)
        self.remaining = batch
        self.best = z0
        self.best_norm = torch.full_like(self.steps, torch.inf, dtype=real_dtype(z0))
        self.start_norm: Tensor | None = None
        self.ceiling: Tensor
        self.residual: Residual
        self.limit: Tensor

    def observe(self, z: Tensor, fz: Tensor) -> bool:
        """Take note of the iterate z with fz = f(z); True when every sample has stopped."""
        with torch.no_grad():
            residual = self.system.residual(z, fz)
        return self.note(z, residual)

    def note(self, z: Tensor, residual: Residual) -> bool:
        """Take note of an iterate whose residual is known.

        Only here does a sample stop: its residual met the tolerance, is not finite, or has diverged.
        """
        with torch.no_grad():
            improved = self._judge(residual)
        self.best = torch.where(column(improved), z, self.best)
        return self.remaining == 0

    def _judge(self, residual: Residual) -> Tensor:
        size = residual.norm
        if self.start_norm is None:
            self.start_norm = size
            self.ceiling = torch.maximum(size, residual.update_norm).mul(DIVERGENCE)
        self.residual = residual
        self.limit = self.system.scale(residual.update_norm, self.start_norm) * self.tol + self.atol
        improved = (size < self.best_norm) & self.active
        met = size <= self.limit
        lost = ~(size <= self.ceiling)  # NaN compares false: one test for all that must not go on
        self.best_norm = torch.where(improved, size, self.best_norm)
        self.steps += self.active
        self.met |= met & self.active
        self.finite &= size.isfinite() | ~self.active
        self.active = self.active & ~(met | lost)
        self.remaining = int(self.active.sum())
        if self.system.trace is not None:
            self.system.trace.append(size)
        return improved

    def freeze(self, z_next: Tensor, z: Tensor) -> Tensor:
        """z_next for the active samples, z for those that have stopped."""
        return z_next if self.remaining == len(self.active) else torch.where(column(self.active), z_next, z)

    def status(self) -> Tensor:
        """``[batch]`` int8."""
        status = torch.full_like(self.active, Status.MAX_STEPS, dtype=torch.int8)
        status[~self.active] = Status.DIVERGED
        status[~self.finite] = Status.NON_FINITE
        status[self.met] = Status.CONVERGED
        return status

    def solution(self, steps: Tensor | None = None) -> Solution:
        """The best iterates so far, packed; ``steps`` where a step is not one observation."""
        trace = self.system.trace
        return Solution(
            z=self.best,
            start=self.start,
            residual=self.best_norm,
            status=self.status(),
            steps=self.steps if steps is None else steps,
            evaluations=self.system.evaluations,
            trace=torch.stack(trace) if trace else None,
        )


def iterate(solver: StepwiseRootSolver[Any], system: System, z0: Tensor) -> Solution:
    """Run a stepwise solver from z0 until every sample has stopped or ``max_steps`` evaluations are spent."""
    progress = Progress(system, z0, solver.tol, solver.atol)
    z, state = z0, solver.init(system, z0)
    for step in range(solver.max_steps):
        fz = system.update(z)
        if progress.observe(z, fz) or step == solver.max_steps - 1:
            break
        z_next, state = solver.step(system, z, fz, state)
        z = progress.freeze(z_next, z)
    return progress.solution()
