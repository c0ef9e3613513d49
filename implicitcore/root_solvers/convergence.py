"""How far each sample of a solve is.

The stop test of every root solver and of the steady-state integration.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass

import torch
from torch import Tensor

from implicitcore.backends.base import Residual
from implicitcore.solution import Solution, Status
from implicitcore.system.evaluation import Evaluation
from implicitcore.system.system import System
from implicitcore.tensors.norms import column, real_dtype
from implicitcore.tensors.restrict import restrict

# A residual this many times its scale at the start is lost: the sample is stopped before it
# overflows.
DIVERGENCE = 1e8

# A residual this many times that of the step before shows that what a solver remembers misleads it.
GROWTH = 2.0

# On an accelerator, iterations between two checks of which samples are done: a check waits for all
# that is queued.
CHECK_EVERY = 4


class StopCriterion(ABC):
    """Says when the loop of a stepwise root solver is over, and what its solution is.

    Attributes:
        grown: ``[batch]``, the samples whose residual has more than doubled in the last step; None
            where there are none.
    """

    def __init__(self) -> None:
        self.grown: Tensor | None = None

    @abstractmethod
    def check(self, now: Evaluation) -> bool:
        """Take in an iterate and its residual; True when the loop is over."""

    @abstractmethod
    def freeze(self, z_next: Tensor, z: Tensor) -> Tensor:
        """z_next for the samples that go on, z for the others."""

    @abstractmethod
    def solution(self) -> Solution:
        """The solution so far, packed."""

    def leaving(self) -> Tensor | None:
        """Which samples ``[k]`` should go on alone; None where the batch stays together."""
        return None

    @abstractmethod
    def narrow(self, system: System, rows: Tensor) -> None:
        """Go on with the samples ``rows`` alone, and their ``system``."""


@dataclass
class StopState:
    """Where each sample of a solve is.

    Attributes:
        active: ``[batch]``, the samples that have not stopped.
        steps: ``[batch]``, evaluations up to the stop of each.
        best: ``[batch, n]``, the iterate of least residual.
        best_norm: ``[batch]``, its residual.
        size: ``[batch]``, the last residual.
        floor: ``[batch]``, the least that a residual is compared with: above zero, so that an exact
            root is seen; below all for a stopped sample.
        limit: ``[batch]``, below which a residual meets the tolerance.
        ceiling: ``[batch]``, above which a residual is lost.
        start_norm: ``[batch]``, the first residual; None before there is one.
        failure: ``[batch]`` int8, a :class:`Status` where a sample stopped without having met its
            tolerance and 0 elsewhere; None until one does.
    """

    active: Tensor
    steps: Tensor
    best: Tensor
    best_norm: Tensor
    size: Tensor
    floor: Tensor
    limit: Tensor
    ceiling: Tensor
    start_norm: Tensor | None = None
    failure: Tensor | None = None

    @classmethod
    def at(cls, z0: Tensor, atol: float) -> StopState:
        """Before the first evaluation."""
        batch, dtype, device = z0.shape[0], real_dtype(z0), z0.device
        far = torch.full((batch,), torch.inf, dtype=dtype, device=device)
        floor = torch.full_like(far, atol + torch.finfo(dtype).tiny)
        active = torch.ones(batch, dtype=torch.bool, device=device)
        steps = torch.zeros(batch, dtype=torch.int64, device=device)
        return cls(active, steps, z0, far, far, floor, floor, far)

    def fail(self, which: Tensor, status: int | Tensor) -> None:
        """Samples ``which`` have failed."""
        if self.failure is None:
            self.failure = torch.zeros_like(self.active, dtype=torch.int8)
        self.failure = torch.where(which, status, self.failure).to(torch.int8)

    def put(self, rows: Tensor, part: StopState) -> None:
        """Write back what became of the samples ``rows``."""
        self.active = self.active.index_copy(0, rows, part.active)
        self.steps = self.steps.index_copy(0, rows, part.steps)
        self.best = self.best.index_copy(0, rows, part.best)
        self.best_norm = self.best_norm.index_copy(0, rows, part.best_norm)
        if part.failure is not None:
            if self.failure is None:
                self.failure = torch.zeros_like(self.active, dtype=torch.int8)
            self.failure = self.failure.index_copy(0, rows, part.failure)


class StopTest(StopCriterion):
    """Which samples have stopped, their best iterates, measured residuals and statuses.

    Every promise about stopping is kept here and nowhere else: per sample, on the true residual,
    best iterate returned. Most iterations change nothing but the residuals; they cost one
    comparison, and the rest is done when a sample stops or gets worse.

    Arguments:
        system: gives the scale of the relative tolerance.
        z0: the start, ``[batch, n]``.
        tol: relative tolerance.
        atol: absolute tolerance.

    Attributes:
        state: where each sample is.
        remaining: how many are active, as last checked.
        count: evaluations checked.
        tol: the relative tolerance that holds.
    """

    def __init__(self, system: System, z0: Tensor, tol: float, atol: float) -> None:
        super().__init__()
        self.system, self.start, self.tol = system, z0, system.tolerance(tol)
        self.state = StopState.at(z0, atol)
        self.on_host = z0.device.type == "cpu"
        self.remaining, self.count = z0.shape[0], 0
        self.stopped: Tensor | None = None
        self.scale: Tensor | None = None
        self.recorder = system.context.recorder
        # The whole batch, where stopped samples have left it, and which of it are here.
        self.whole: tuple[StopState, Tensor] | None = None

    def check(self, now: Evaluation) -> bool:
        """Take in an iterate and its residual; True when every sample has stopped.

        Only here does a sample stop: its residual met the tolerance, is not finite, or has
        diverged.
        """
        if torch.is_grad_enabled():
            with torch.no_grad():
                improved = self._update(now)
        else:
            improved = self._update(now)
        state = self.state
        state.best = now.z if improved is None else torch.where(column(improved), now.z, state.best)
        return self.remaining == 0

    def _update(self, now: Evaluation) -> Tensor | None:
        """Which samples improved.

        None where all did that go on, so that the iterate is the best of each sample.
        """
        state, size = self.state, self._measure(now.residual)
        if self.recorder is not None:
            self._record(now.z, size)
        # Both comparisons in two calls, and NaN fails them: most iterations end here.
        if (
            self.on_host
            and state.failure is None
            and torch.equal(torch.clamp(size, state.limit, state.best_norm), size)
        ):
            state.best_norm = state.size = size
            self.grown = None
            return None
        self._accept(size)
        return self._compare(size)

    def _measure(self, residual: Residual) -> Tensor:
        """The size of the residual, and the limit that it is compared with."""
        state, size = self.state, residual.norm.detach()
        self.count += 1
        if state.start_norm is None:
            # A tolerance relative to an infinite start would be met by anything; one relative to
            # NaN is met by nothing.
            state.start_norm = torch.nan_to_num(size, torch.nan, torch.nan)
            state.ceiling = torch.maximum(state.start_norm, residual.update_norm).mul(DIVERGENCE)
        scale = self.system.scale(residual.update_norm, state.start_norm)
        if scale is not self.scale:
            self.scale, state.limit = scale, torch.add(state.floor, scale, alpha=self.tol)
        return size

    def _accept(self, size: Tensor) -> None:
        """Find the samples that stop."""
        stops = size <= self.state.limit
        # NaN compares false, so this finds all that must not go on.
        if not self.on_host or not torch.equal(torch.minimum(size, self.state.ceiling), size):
            stops = stops | self._lose(size)
        self.stop(stops)

    def stop(self, stops: Tensor) -> None:
        """Take samples out; a stopped one has a limit below zero and is not found again."""
        state = self.state
        state.steps = torch.where(stops, self.count, state.steps)
        state.active = state.active & ~stops
        if not self.on_host:
            self._lower()
        # The host waits for the device: every time on a CPU, where it is free, else now and then.
        if self.on_host or self.count % CHECK_EVERY == 0:
            self._count()

    def _count(self) -> None:
        remaining = int(self.state.active.sum())
        if self.on_host and 0 < remaining < self.remaining:
            self._lower()
            self.stopped = (~self.state.active).nonzero().squeeze(1)
        self.remaining = remaining

    def _lower(self) -> None:
        self.state.floor = torch.where(self.state.active, self.state.floor, -torch.inf)
        self.scale = None

    def _lose(self, size: Tensor) -> Tensor:
        """The samples whose residual is not finite or has diverged."""
        lost = ~(size <= self.state.ceiling) & self.state.active
        kind = torch.where(size.isfinite(), int(Status.DIVERGED), int(Status.NON_FINITE))
        self.state.fail(lost, kind)
        return lost

    def _compare(self, size: Tensor) -> Tensor | None:
        """See :meth:`_update`."""
        state = self.state
        last, state.size, self.grown = state.size, size, None
        if (
            self.on_host
            and state.failure is None
            and torch.equal(torch.minimum(size, state.best_norm), size)
        ):
            state.best_norm = size
            return None
        grown = size > GROWTH * last
        if not self.on_host or bool(grown.any()):
            self.grown = grown
        improved = size < state.best_norm
        state.best_norm = torch.where(improved, size, state.best_norm)
        return improved

    def _record(self, z: Tensor, size: Tensor) -> None:
        """Leave a trace, of the whole batch: a sample that left it keeps its last residual."""
        if self.recorder is None:
            return
        if self.whole is not None:
            whole, rows = self.whole
            size = whole.size = whole.size.index_copy(0, rows, size)
        self.recorder.record(z, size)

    def freeze(self, z_next: Tensor, z: Tensor) -> Tensor:
        """z_next for the active samples, z for those that have stopped."""
        if self.on_host and self.stopped is None:
            return z_next
        if self.stopped is None or torch.is_grad_enabled():
            return torch.where(column(self.state.active), z_next, z)
        return z_next.index_copy(0, self.stopped, z.index_select(0, self.stopped))

    def leaving(self) -> Tensor | None:
        """See :meth:`StopCriterion.leaving`."""
        active = self.state.active
        if not self.system.compacts(self.remaining, len(active)):
            return None
        return active.nonzero().squeeze(1)

    def narrow(self, system: System, rows: Tensor) -> None:
        """See :meth:`StopCriterion.narrow`."""
        whole, places = self._merged(), rows if self.whole is None else self.whole[1][rows]
        self.system, self.whole = system, (whole, places)
        self.state = restrict(self.state, rows)
        self.state.failure = None  # none of those that go on has failed
        self.remaining, self.grown, self.stopped, self.scale = len(rows), None, None, None

    def _merged(self) -> StopState:
        """Where each sample of the whole batch is."""
        if self.whole is None:
            return self.state
        whole, rows = self.whole
        whole.put(rows, self.state)
        return whole

    def solution(self, steps: Tensor | None = None) -> Solution:
        """The best iterates so far, packed; ``steps`` where a step is not one evaluation."""
        state = self._merged()
        if steps is None:
            going = torch.where(state.active, self.count, state.steps)
            steps = going if self.remaining else state.steps
        status = torch.zeros_like(state.active, dtype=torch.int8)
        if state.failure is not None:
            status = state.failure.clone()
        if self.remaining:
            status[state.active] = Status.MAX_STEPS
        trace = self.recorder.residuals if self.recorder is not None else None
        return Solution(
            z=state.best,
            start=self.start,
            residual=state.best_norm,
            status=status,
            steps=steps,
            evaluations=self.system.evaluations,
            trace=torch.stack(trace) if trace else None,
        )
