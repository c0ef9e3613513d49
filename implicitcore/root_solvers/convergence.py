"""How far each sample is: the stop test of every root solver and the steady-state integration."""

from __future__ import annotations

from functools import partial

import torch
from torch import Tensor

from implicitcore.backends.base import Residual
from implicitcore.root_solvers.limits import Limits
from implicitcore.root_solvers.stop_criterion import GROWTH, StopCriterion
from implicitcore.root_solvers.stop_state import StopState, relative_to
from implicitcore.solution import Judged, Solution, Status
from implicitcore.system.coupling import Frozen, check_frozen, check_known
from implicitcore.system.evaluation import Evaluation
from implicitcore.system.scaled import check_range
from implicitcore.system.system import System
from implicitcore.tensors.norms import column, scaled_norm
from implicitcore.tensors.restrict import restrict
from implicitcore.tensors.transforms import without_graph


class StopTest(StopCriterion):
    """Which samples have stopped, their best iterates, measured residuals and statuses.

    Every promise about stopping is kept here alone: per sample, on the true residual, what met the
    tolerance is returned, and else the iterate of least residual. A limit owed to a growth of
    ``|f(z)|`` alone is met by nothing (``TRUST``): a state that runs away has ``DIVERGED``. Most
    iterations change nothing but the residuals, at the cost of one comparison.

    Arguments:
        system: gives the scale of the relative tolerance.
        z0: the start, ``[batch, n]``.
        tol: relative tolerance.
        atol: absolute tolerance.
        min_steps: iterates before this one do not stop a sample by their tolerance.

    Attributes:
        state: where each sample is.
        remaining: how many are active, as last checked.
        count: evaluations checked.
        limits: what residuals are compared with.
    """

    def __init__(
        self, system: System, z0: Tensor, tol: float, atol: float, min_steps: int = 1
    ) -> None:
        self.system, self.start, self.min_steps = system, z0, min_steps
        self.limits = Limits(system, system.tolerance(tol), z0.dtype)
        self.state = StopState.at(z0, system.absolute(atol))
        self.remaining, self.count = z0.shape[0], 0
        self.stopped: Tensor | None = None
        self.recorder = system.context.recorder
        # The whole batch, where stopped samples have left it, and which of it are here.
        self.whole: tuple[StopState, Tensor] | None = None

    def check(self, now: Evaluation) -> bool:
        """Take in an iterate and its residual; True when every sample has stopped.

        Only here does a sample stop: its residual met the tolerance, is not finite, or has
        diverged.
        """
        improved, state = without_graph(self._update, now), self.state
        state.last = now.z
        state.best = now.z if improved is None else torch.where(column(improved), now.z, state.best)
        return self.remaining == 0

    def _update(self, now: Evaluation) -> Tensor | None:
        """Which samples improved.

        None where all did that go on, so that the iterate is the best of each sample.
        """
        state, size = self.state, self._measure(now)
        if self.recorder is not None:
            self.recorder.record(now.z, self.of_all(size).to(now.z.device))
        # Both comparisons in two calls, and NaN fails them: most iterations end here. The residual
        # is then the least so far (which ``min_steps`` lets be within the limit).
        if (
            self.min_steps == 1
            and state.failure is None
            and torch.equal(torch.clamp(size, state.limit, state.best_norm), size)
        ):
            state.best_norm = state.size = size
            state.pending, self.grown = state.limit, None
            return None
        if self._some_met(now.residual, size):
            return None
        self._settle()
        # NaN compares false, so this finds all that must not go on, and all that is not measured.
        usual = torch.equal(torch.clamp(size, state.start.small, state.start.ceiling), size)
        if not usual:
            size = self._remeasure(now, size)
        limit = state.limit if self.stopped is None else self._in_force(state.limit)
        met = self._accept(now.residual, size, usual)
        return self._compare(size, limit, met)

    def _some_met(self, residual: Residual, size: Tensor) -> bool:
        """Stop the samples that meet their tolerance, where no sample is unusual.

        None has more than its least residual, or one that is in doubt or hard to measure.
        """
        state, start = self.state, self.state.start
        if state.failure is not None or self.count < self.min_steps or not start.bounded:
            return False
        if not torch.equal(torch.clamp(size, start.small, state.best_norm), size):
            return False
        if state.limit is not start.limit and self.limits.trust(state, residual) is not None:
            return False
        state.best_limit, state.pending = self._in_force(state.limit), None
        state.best_norm = state.size = size
        self.grown, going = None, size > state.limit  # which is below zero for those that stopped
        self.stop(~going, going if self.stopped is None else state.active & going)
        return True

    def _settle(self) -> None:
        """Take over the limits of the iterates that were the best without a look at each sample."""
        if self.state.pending is not None:
            self.state.best_limit = self._in_force(self.state.pending)
            self.state.pending = None

    def _in_force(self, limit: Tensor) -> Tensor:
        """The limits of the active samples, and for the others those that they met."""
        if self.stopped is None:
            return limit
        return torch.where(self.state.active, limit, self.state.best_limit)

    def _measure(self, now: Evaluation) -> Tensor:
        """The size of the residual, and the limit that it is compared with."""
        state, update = self.state, now.residual.update_norm
        size, self.count = now.residual.norm, self.count + 1
        size = size.detach() if size.requires_grad else size
        if self.count > 1:
            self.limits.follow(state, update)
            return size
        start, context = state.start, self.system.context
        start.size, start.known = size, context.origin
        start.update = update.detach() if update.requires_grad else update
        finite = torch.equal(torch.clamp(size, max=torch.finfo(size.dtype).max), size)
        start.bounded = finite and context.origin is None
        self.limits.follow(state, update)
        start.limit = state.limit if context.origin is None else self.limits.first(state)
        if context.known is not None:
            check_known(self.system, now)
        if context.range_checked:
            check_range(update, now.z, now.fz)
        return size

    def _remeasure(self, now: Evaluation, size: Tensor) -> Tensor:
        """The sizes, and their limits, where squares underflow."""
        state, update = self.state, now.residual.update_norm
        value, small = now.residual.value, (size < state.start.small) & state.active
        # Most that are small are zero, entry by entry; a look at all of them is cheaper.
        if not bool(value.any()) or not bool(value[small.to(value.device)].any()):
            return size
        size = torch.where(small, scaled_norm(value).to(size), size)
        update = torch.where(update < state.start.small, scaled_norm(now.fz).to(size), update)
        self.limits.remeasure(state, update)
        return size

    def _accept(self, residual: Residual, size: Tensor, usual: bool) -> Tensor:
        """Find the samples that stop; those that met their tolerance."""
        state = self.state
        early = self.count < self.min_steps
        stops = met = torch.zeros_like(state.active) if early else size <= state.limit
        trust = self.limits.trust(state, residual)
        if trust is not None:
            met, away = trust.doubt(met, residual, state.start.ceiling, self.limits.rounding)
            stops = met | away
            if bool(away.any()):
                state.fail(away, Status.DIVERGED)
        if not usual:
            stops = stops | state.lose(size)
        self.stop(stops)
        return met

    def stop(self, stops: Tensor, active: Tensor | None = None) -> None:
        """Take samples out; a stopped one has a limit below zero and is not found again.

        Arguments:
            stops: ``[batch]``, which to take out.
            active: which go on, where that is known.
        """
        state = self.state
        state.steps = state.steps.masked_fill(stops, self.count)
        state.active = state.active & ~stops if active is None else active
        self._count()

    def _count(self) -> None:
        done = ~self.state.active
        stopped = done.nonzero().squeeze(1)
        remaining = len(done) - len(stopped)
        if 0 < remaining < self.remaining:
            self.state.lower(done)
            self.stopped, self.limits.scale = stopped, None
        self.remaining = remaining

    def _compare(self, size: Tensor, limit: Tensor, met: Tensor) -> Tensor | None:
        """See :meth:`_update`."""
        state = self.state
        last, state.size, self.grown = state.size, size, None
        if state.failure is None and torch.equal(torch.minimum(size, state.best_norm), size):
            state.best_norm, state.best_limit = size, limit
            return None
        grown = size > GROWTH * last
        if bool(grown.any()):
            self.grown = grown
        improved = met | (size < state.best_norm)
        state.best_norm = torch.where(improved, size, state.best_norm)
        state.best_limit = torch.where(improved, limit, state.best_limit)
        return improved

    def of_all(self, size: Tensor) -> Tensor:
        """The residuals of the whole batch: a sample that left it keeps its last."""
        if self.whole is None:
            return size
        whole, rows = self.whole
        whole.size = whole.size.index_copy(0, rows, size)
        return whole.size

    def freeze(self, z_next: Tensor, z: Tensor) -> Tensor:
        """z_next for the active samples, z for those that have stopped."""
        self.state.last = self.state.best  # until the next check, and no longer held
        if self.stopped is None:
            return z_next
        if torch.is_grad_enabled():
            return torch.where(column(self.state.active), z_next, z)
        return z_next.index_copy(0, self.stopped, z.index_select(0, self.stopped))

    def limit(self) -> Tensor:
        """``[batch]``, what each residual is to come to; infinite for samples that have stopped."""
        limit = self.state.limit
        return limit if self.stopped is None else limit.masked_fill(~self.state.active, torch.inf)

    def leaving(self) -> Tensor | None:
        """See :meth:`StopCriterion.leaving`."""
        if not self.system.compacts(self.remaining + 1, len(self.state.active)):
            return None
        return self.state.going_on()

    def narrow(self, system: System, rows: Tensor) -> None:
        """See :meth:`StopCriterion.narrow`."""
        self._settle()
        whole, places = self._merged(), rows if self.whole is None else self.whole[1][rows]
        self.system, self.whole = system, (whole, places)
        self.limits = Limits(system, self.limits.tol, self.limits.dtype)
        self.state = restrict(self.state, rows)
        self.state.failure = None  # none of those that go on has failed
        self.grown = self.stopped = None
        self.remaining = len(rows)
        self._count()

    def _merged(self) -> StopState:
        """Where each sample of the whole batch is."""
        if self.whole is None:
            return self.state
        whole, rows = self.whole
        whole.put(rows, self.state)
        return whole

    def _check_apart(self, state: StopState) -> None:
        """Require that a sample which stopped kept its residual while the others moved."""
        found = Frozen(state.best, state.last, state.best_norm, state.size, state.best_limit)
        check_frozen(self.system, found, state.converged)

    def solution(self, steps: Tensor | None = None) -> Solution:
        """The best iterates so far, packed; ``steps`` where a step is not one evaluation."""
        if self.state.pending is not None:
            self._settle()
        state: StopState = self.state if self.whole is None else self._merged()
        # As a rule the last residuals are the least, and those reported.
        if (self.whole or self.stopped is not None) and state.size is not state.best_norm:
            self._check_apart(state)
        steps = state.steps if steps is None else steps
        if self.remaining and steps is state.steps:
            steps = torch.where(state.active, self.count, steps)
        status = state.failures()
        if self.remaining:
            status[state.active] = Status.MAX_STEPS
        trace = None if self.recorder is None else self.recorder.trace()
        z, size = state.best, state.best_norm
        tol = self.limits.tol
        relative = partial(relative_to, size, state.best_limit, tol) if tol else None
        met = state.failure is None and not self.remaining and not self.whole
        return Solution(
            z=z,
            start=self.start,
            residual=size,
            judged=Judged(z, size, status, relative, trace, state.start.origin, met),
            status=status,
            steps=steps,
            evaluations=self.system.context.counter.evaluations,
        )
