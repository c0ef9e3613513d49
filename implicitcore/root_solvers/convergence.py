"""How far each sample of a solve is.

The stop test of every root solver and of the steady-state integration.
"""

from __future__ import annotations

import copy

import torch
from torch import Tensor

from implicitcore.backends.base import Residual
from implicitcore.solution import Solution, Status
from implicitcore.system.system import System
from implicitcore.tensors.norms import column, real_dtype

# A residual this many times its scale at the start is lost: the sample is stopped before it
# overflows.
DIVERGENCE = 1e8

# A residual this many times that of the step before shows that what a solver remembers misleads it.
GROWTH = 2.0

# On an accelerator, iterations between two looks at which samples are done: a look waits for all
# that is queued.
LOOK_EVERY = 4


class StopTest:
    """How far each sample is.

    Which are active, their best iterates, measured residuals and statuses. Every promise about
    stopping is kept here and nowhere else: per sample, on the true residual, best iterate returned.
    Most iterations change nothing but the residuals; they cost one comparison, and the rest is done
    when a sample stops or gets worse.

    Arguments:
        system: gives the residual and the scale of the relative tolerance.
        z0: the start, ``[batch, n]``.
        tol: relative tolerance.
        atol: absolute tolerance.

    Attributes:
        active: ``[batch]``, the samples that have not stopped.
        remaining: how many they are, as last looked at.
        limit: ``[batch]``, below which a residual meets the tolerance.
        grown: ``[batch]``, the samples whose residual has more than doubled in the last step; None
            where there are none.
    """

    def __init__(self, system: System, z0: Tensor, tol: float, atol: float) -> None:
        self.system, self.start, self.tol, self.atol = system, z0, max(tol, system.tol_floor), atol
        self.on_host = z0.device.type == "cpu"
        self.remaining, self.count = z0.shape[0], 0
        self.active = torch.ones(self.remaining, dtype=torch.bool, device=z0.device)
        self.stopped: Tensor | None = None
        # Both None until a sample is lost: stopped without having met its tolerance.
        self.lost: Tensor | None = None
        self.finite: Tensor | None = None
        self.steps = torch.zeros(self.remaining, dtype=torch.int64, device=z0.device)
        self.best = z0
        self.size = self.best_norm = torch.full(
            (self.remaining,), torch.inf, dtype=real_dtype(z0), device=z0.device
        )
        # The least that a residual is compared with: above zero, so that an exact root is seen;
        # below all for a stopped sample.
        self.floor = torch.full_like(self.best_norm, atol + torch.finfo(self.best_norm.dtype).tiny)
        self.start_norm: Tensor | None = None
        self.scale: Tensor | None = None
        self.grown: Tensor | None = None
        self.whole: tuple[StopTest, Tensor] | None = None
        self.trace = system.trace
        self.last: Tensor
        self.ceiling: Tensor
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

        Only here does a sample stop: its residual met the tolerance, is not finite, or has
        diverged.
        """
        if torch.is_grad_enabled():
            with torch.no_grad():
                improved = self._assess(residual)
        else:
            improved = self._assess(residual)
        self.best = z if improved is None else torch.where(column(improved), z, self.best)
        return self.remaining == 0

    def _assess(self, residual: Residual) -> Tensor | None:
        """Which samples improved.

        None where all did that go on, so that the iterate is the best of each sample.
        """
        size = self._measure(residual)
        # Both comparisons in two calls, and NaN fails them: most iterations end here.
        if (
            self.on_host
            and self.lost is None
            and torch.equal(torch.clamp(size, self.limit, self.best_norm), size)
        ):
            self.best_norm = self.size = size
            self.grown = None
            return None
        self._judge(size)
        return self._compare(size)

    def _measure(self, residual: Residual) -> Tensor:
        """The size of the residual, and the limit that it is compared with."""
        size = residual.norm.detach()
        self.count += 1
        if self.start_norm is None:
            # A tolerance relative to an infinite start would be met by anything; one relative to
            # NaN is met by nothing.
            self.start_norm = torch.nan_to_num(size, torch.nan, torch.nan)
            self.ceiling = torch.maximum(self.start_norm, residual.update_norm).mul(DIVERGENCE)
        scale = self.system.scale(residual.update_norm, self.start_norm)
        if scale is not self.scale:
            self.scale, self.limit = scale, torch.add(self.floor, scale, alpha=self.tol)
        if self.trace is not None:
            self._record(size)
        return size

    def _judge(self, size: Tensor) -> None:
        """Find the samples that stop."""
        stops = size <= self.limit
        # NaN compares false, so this finds all that must not go on.
        if not self.on_host or not torch.equal(torch.minimum(size, self.ceiling), size):
            stops = stops | self._lose(size)
        self._stop(stops)

    def _stop(self, stops: Tensor) -> None:
        """Take samples out; a stopped one has a limit below zero and is not found again."""
        self.steps = torch.where(stops, self.count, self.steps)
        self.active = self.active & ~stops
        if not self.on_host:
            self.floor, self.scale = torch.where(self.active, self.floor, -torch.inf), None
        # The host waits for the device: every time on a CPU, where it is free, else now and then.
        if self.on_host or self.count % LOOK_EVERY == 0:
            self._look()

    def _look(self) -> None:
        remaining = int(self.active.sum())
        if self.on_host and 0 < remaining < self.remaining:
            self.floor, self.scale = torch.where(self.active, self.floor, -torch.inf), None
            self.stopped = (~self.active).nonzero().squeeze(1)
        self.remaining = remaining

    def _lose(self, size: Tensor) -> Tensor:
        """The samples whose residual is not finite or has diverged."""
        lost = ~(size <= self.ceiling) & self.active
        if self.lost is None or self.finite is None:
            self.lost, self.finite = torch.zeros_like(lost), torch.ones_like(lost)
        self.lost = self.lost | lost
        self.finite = self.finite & (size.isfinite() | ~lost)
        return lost

    def _compare(self, size: Tensor) -> Tensor | None:
        """See :meth:`_assess`."""
        last, self.size, self.grown = self.size, size, None
        if (
            self.on_host
            and self.lost is None
            and torch.equal(torch.minimum(size, self.best_norm), size)
        ):
            self.best_norm = size
            return None
        grown = size > GROWTH * last
        if not self.on_host or bool(grown.any()):
            self.grown = grown
        improved = size < self.best_norm
        self.best_norm = torch.where(improved, size, self.best_norm)
        return improved

    def _record(self, size: Tensor) -> None:
        self.last = size
        if self.whole is not None:
            progress, rows = self.whole
            progress._record(progress.last.index_copy(0, rows, size))
        elif self.trace is not None:
            self.trace.append(size)

    def freeze(self, z_next: Tensor, z: Tensor) -> Tensor:
        """z_next for the active samples, z for those that have stopped."""
        if self.on_host and self.stopped is None:
            return z_next
        if self.stopped is None or torch.is_grad_enabled():
            return torch.where(column(self.active), z_next, z)
        return z_next.index_copy(0, self.stopped, z.index_select(0, self.stopped))

    def part(self, system: System, rows: Tensor) -> StopTest:
        """The progress of the samples ``rows`` alone, which goes on with their ``system`` and reports to this one."""
        part = copy.copy(self)
        part.system, part.whole = system, (self, rows)
        for name in (
            "start",
            "active",
            "steps",
            "best",
            "best_norm",
            "size",
            "floor",
            "start_norm",
            "ceiling",
        ):
            setattr(part, name, getattr(self, name).index_select(0, rows))
        part.remaining, part.lost, part.finite, part.stopped, part.scale = (
            len(rows),
            None,
            None,
            None,
            None,
        )
        return part

    def _report(self, whole: StopTest, rows: Tensor) -> None:
        for name in ("active", "steps", "best", "best_norm"):
            setattr(whole, name, getattr(whole, name).index_copy(0, rows, getattr(self, name)))
        whole.count, whole.remaining = self.count, self.remaining
        if self.lost is not None and self.finite is not None:
            none = torch.zeros_like(whole.active)
            lost, finite = (
                (none, ~none)
                if whole.lost is None or whole.finite is None
                else (whole.lost, whole.finite)
            )
            whole.lost, whole.finite = (
                lost.index_copy(0, rows, self.lost),
                finite.index_copy(0, rows, self.finite),
            )

    def status(self) -> Tensor:
        """``[batch]`` int8."""
        status = torch.zeros_like(self.active, dtype=torch.int8)
        if self.lost is not None and self.finite is not None:
            status[self.lost] = Status.DIVERGED
            status[~self.finite] = Status.NON_FINITE
        if self.remaining:
            status[self.active] = Status.MAX_STEPS
        return status

    def solution(self, steps: Tensor | None = None) -> Solution:
        """The best iterates so far, packed; ``steps`` where a step is not one observation."""
        if self.whole is not None:
            self._report(*self.whole)
            return self.whole[0].solution(steps)
        if steps is None:
            steps = (
                torch.where(self.active, self.count, self.steps) if self.remaining else self.steps
            )
        return Solution(
            z=self.best,
            start=self.start,
            residual=self.best_norm,
            status=self.status(),
            steps=steps,
            evaluations=self.system.evaluations,
            trace=torch.stack(self.trace) if self.trace else None,
        )
