"""The loop of every stepwise root solver, and the stop test it shares with the steady-state integration."""

from __future__ import annotations

import copy
import dataclasses
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from implicitcore.backends.base import Residual
from implicitcore.norms import column, real_dtype
from implicitcore.solution import Solution, Status
from implicitcore.system import System

if TYPE_CHECKING:
    from implicitcore.root_solvers.base import StepwiseRootSolver

# A residual this many times its scale at the start is lost: the sample is stopped before it overflows.
DIVERGENCE = 1e8

# With ``compact``, stopped samples leave the batch when at most this share of it is active: evaluations cost then at most a seventh
# more than the samples need, and the copies are few.
CROWDED = 7 / 8

# On an accelerator, iterations between two looks at which samples are done: a look waits for all that is queued.
LOOK_EVERY = 4


class Progress:
    """How far each sample is: which are active, their best iterates, measured residuals and statuses.

    Every promise about stopping is kept here and nowhere else: per sample, on the true residual, best iterate returned. Most
    iterations change nothing but the residuals; they cost one comparison, and the rest is done when a sample stops or gets worse.

    Arguments:
        system: gives the residual and the scale of the relative tolerance.
        z0: the start, ``[batch, n]``.
        tol: relative tolerance.
        atol: absolute tolerance.

    Attributes:
        active: ``[batch]``, the samples that have not stopped.
        remaining: how many they are, as last looked at.
        residual: of the last iterate.
        limit: ``[batch]``, below which a residual meets the tolerance.
    """

    def __init__(self, system: System, z0: Tensor, tol: float, atol: float) -> None:
        self.system, self.start, self.tol, self.atol = system, z0, tol, atol
        self.remaining = z0.shape[0]
        self.count = 0
        self.active = torch.ones(self.remaining, dtype=torch.bool, device=z0.device)
        self.stopped: Tensor | None = None
        self.met = torch.zeros_like(self.active)
        self.finite = self.active
        self.lossless = True
        self.steps = torch.zeros_like(self.active, dtype=torch.int64)
        self.best = z0
        self.best_norm = torch.full_like(self.steps, torch.inf, dtype=real_dtype(z0))
        # The least that a residual is compared with: above zero, so that an exact root is seen; below all for a stopped sample.
        self.floor = torch.full_like(self.best_norm, atol + torch.finfo(self.best_norm.dtype).tiny)
        self.start_norm: Tensor | None = None
        self.scale: Tensor | None = None
        self.whole: tuple[Progress, Tensor] | None = None
        self.trace = system.trace
        self.last: Tensor
        self.ceiling: Tensor
        self.residual: Residual
        self.limit: Tensor

    def observe(self, z: Tensor, fz: Tensor) -> bool:
        """Take note of the iterate z with fz = f(z); True when every sample has stopped."""
        if torch.is_grad_enabled():
            with torch.no_grad():
                residual = self.system.residual(z, fz)
        else:
            residual = self.system.residual(z, fz)
        return self.note(z, residual)

    def note(self, z: Tensor, residual: Residual) -> bool:
        """Take note of an iterate whose residual is known.

        Only here does a sample stop: its residual met the tolerance, is not finite, or has diverged.
        """
        if torch.is_grad_enabled():
            with torch.no_grad():
                improved = self._assess(residual)
        else:
            improved = self._assess(residual)
        self.best = z if improved is None else torch.where(column(improved), z, self.best)
        return self.remaining == 0

    def _assess(self, residual: Residual) -> Tensor | None:
        """Which samples improved; None where all that go on did, so that the iterate is the best of each sample."""
        size, looks = residual.norm.detach(), self._looks()
        self._measure(residual, size)
        # Both comparisons in two calls, and NaN fails them: most iterations end here.
        if looks and self.lossless and torch.equal(torch.clamp(size, self.limit, self.best_norm), size):
            self.best_norm = size
            return None
        self._judge(size, looks)
        if looks and self.lossless and torch.equal(torch.minimum(size, self.best_norm), size):
            self.best_norm = size
            return None
        improved = size < self.best_norm
        self.best_norm = torch.where(improved, size, self.best_norm)
        return improved

    def _measure(self, residual: Residual, size: Tensor) -> None:
        self.residual = residual
        self.count += 1
        if self.start_norm is None:
            # A tolerance relative to an infinite start would be met by anything; one relative to NaN is met by nothing.
            self.start_norm = torch.nan_to_num(size, torch.nan, torch.nan)
            self.ceiling = torch.maximum(self.start_norm, residual.update_norm).mul(DIVERGENCE)
        scale = self.system.scale(residual.update_norm, self.start_norm)
        if scale is not self.scale:
            self.scale, self.limit = scale, torch.add(self.floor, scale, alpha=self.tol)
        self._record(size)

    def _looks(self) -> bool:
        """Whether the host waits for the device now: every time on a CPU, where it is free, else now and then."""
        return self.start.device.type == "cpu" or self.count % LOOK_EVERY == 0

    def _judge(self, size: Tensor, looks: bool) -> None:
        """Find the samples that stop."""
        met = size <= self.limit
        self.met = self.met | met
        # NaN compares false, so this finds all that must not go on.
        stopped = met if looks and torch.equal(torch.minimum(size, self.ceiling), size) else met | self._lose(size)
        self._stop(stopped, looks)

    def _stop(self, stopped: Tensor, looks: bool) -> None:
        """Take samples out; a stopped one has a limit below zero and is not found again."""
        self.steps = torch.where(stopped, self.count, self.steps)
        self.active = self.active & ~stopped
        if looks:
            remaining = int(self.active.sum())
            if 0 < remaining < self.remaining:
                self.floor = torch.where(self.active, self.floor, -torch.inf)
                self.scale = None
                self.stopped = (~self.active).nonzero().squeeze(1)
            self.remaining = remaining
        else:
            self.floor, self.scale = torch.where(self.active, self.floor, -torch.inf), None

    def _lose(self, size: Tensor) -> Tensor:
        """The samples whose residual is not finite or has diverged."""
        lost = ~(size <= self.ceiling) & self.active
        self.finite = self.finite & (size.isfinite() | ~lost)
        self.lossless = False
        return lost

    def _record(self, size: Tensor) -> None:
        if self.trace is None:
            return
        self.last = size
        if self.whole is None:
            self.trace.append(size)
        else:
            progress, rows = self.whole
            progress._record(progress.last.index_copy(0, rows, size))

    def freeze(self, z_next: Tensor, z: Tensor) -> Tensor:
        """z_next for the active samples, z for those that have stopped."""
        if self.start.device.type != "cpu" or torch.is_grad_enabled():
            return torch.where(column(self.active), z_next, z)
        if self.stopped is None:
            return z_next
        return z_next.index_copy(0, self.stopped, z.index_select(0, self.stopped))

    def part(self, system: System, rows: Tensor) -> Progress:
        """The progress of the samples ``rows`` alone, which goes on with their ``system`` and reports to this one."""
        part = copy.copy(self)
        part.system, part.whole = system, (self, rows)
        for name in ("start", "active", "met", "finite", "steps", "best", "best_norm", "floor", "start_norm", "ceiling"):
            setattr(part, name, getattr(self, name).index_select(0, rows))
        part.remaining, part.lossless, part.stopped, part.scale = len(rows), True, None, None
        return part

    def _report(self, whole: Progress, rows: Tensor) -> None:
        for name in ("active", "met", "finite", "steps", "best", "best_norm"):
            setattr(whole, name, getattr(whole, name).index_copy(0, rows, getattr(self, name)))
        whole.count, whole.remaining, whole.lossless = self.count, self.remaining, whole.lossless and self.lossless

    def status(self) -> Tensor:
        """``[batch]`` int8."""
        if self.remaining == 0 and self.lossless:
            return torch.zeros_like(self.active, dtype=torch.int8)
        status = torch.full_like(self.active, Status.MAX_STEPS, dtype=torch.int8)
        status[~self.active] = Status.DIVERGED
        status[~self.finite] = Status.NON_FINITE
        status[self.met] = Status.CONVERGED
        return status

    def solution(self, steps: Tensor | None = None) -> Solution:
        """The best iterates so far, packed; ``steps`` where a step is not one observation."""
        if self.whole is not None:
            self._report(*self.whole)
            return self.whole[0].solution(steps)
        return Solution(
            z=self.best,
            start=self.start,
            residual=self.best_norm,
            status=self.status(),
            steps=torch.where(self.active, self.count, self.steps) if steps is None else steps,
            evaluations=self.system.evaluations,
            trace=torch.stack(self.trace) if self.trace else None,
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
        if solver.compact and progress.remaining <= CROWDED * len(progress.active):
            rows = progress.active.nonzero().squeeze(1)
            system, z, state = system.select(rows), z.index_select(0, rows), select(state, rows)
            progress = progress.part(system, rows)
    return progress.solution()


def select(state: Any, rows: Tensor) -> Any:
    """The state of some samples: every tensor in it has the batch first, and an object that holds others has its own ``select``."""

    def pick(leaf: Any) -> Any:
        if isinstance(leaf, Tensor):
            return leaf.index_select(0, rows)
        if hasattr(leaf, "select"):
            return leaf.select(rows)
        if dataclasses.is_dataclass(leaf) and not isinstance(leaf, type):
            fields = {field.name: select(getattr(leaf, field.name), rows) for field in dataclasses.fields(leaf)}
            return dataclasses.replace(leaf, **fields)
        return leaf

    return pytree.tree_map(pick, state)
