"""The stop test of a stepwise solver on an accelerator: a look at the device now and then."""

from __future__ import annotations

import torch
from torch import Tensor

from implicitcore.backends.base import Residual
from implicitcore.root_solvers.convergence import StopTest
from implicitcore.root_solvers.stop_criterion import CHECK_EVERY, GROWTH
from implicitcore.root_solvers.stop_state import StopState
from implicitcore.solution import Judged, Origin, Solution
from implicitcore.system.coupling import (
    Frozen,
    check_frozen,
    check_known,
    note_asked,
    was_asked,
)
from implicitcore.system.evaluation import Evaluation
from implicitcore.system.scaled import check_range
from implicitcore.system.system import System
from implicitcore.tensors.norms import column


class DeferredStopTest(StopTest):
    """A stop test whose state is on the host, which waits for the device in every fourth iteration.

    One copy brings the norms of the iterates since the last look, and the test is made for each of
    them in order, as it would have been at once: the same iterate is found, and a sample that had
    stopped before the look goes back to it. So an iteration costs no launch of the stop test's own,
    and a look two. Where a graph is recorded, or the iterates are, it looks in every iteration:
    there no sample may go beyond its stop.

    The states stay on the device: for the test an iterate is its number, ``[batch, 1]``.

    Arguments:
        system: gives the scale of the relative tolerance.
        z0: the start, ``[batch, n]``.
        tol: relative tolerance.
        atol: absolute tolerance.
        min_steps: iterates before this one do not stop a sample by their tolerance.

    Attributes:
        watches: ``grown`` is wanted, which then is a tensor in every iteration.
    """

    keeps = CHECK_EVERY + 1

    def __init__(
        self, system: System, z0: Tensor, tol: float, atol: float, min_steps: int = 1
    ) -> None:
        numbers = torch.zeros(len(z0), 1, dtype=z0.dtype)
        super().__init__(system, numbers, tol, atol, min_steps)
        self.state.best = self.state.last = numbers.long()
        if self.origin is not None:
            self.origin = Origin(self.origin.norm.cpu(), self.origin.ceiling.cpu())
        self.z0, self.best, self.last = z0, z0, z0
        self.rule = _on_host(system)
        at_once = torch.is_grad_enabled() or self.recorder is not None
        self.every = 1 if at_once else CHECK_EVERY
        self.waiting: list[Evaluation] = []
        self.taken = 0  # of those, in the present look
        self.beyond = False  # a sample stopped before the last iterate of that look
        self.watches = False
        self.size: Tensor | None = None  # the last residual, on the device
        self.active: Tensor | None = None  # on the device; None while all are
        # The best and the last iterates of the whole batch, where stopped samples have left it.
        self.all: tuple[Tensor, Tensor, Tensor] | None = None

    def check(self, now: Evaluation) -> bool:
        """Take in an iterate and its residual; True when every sample is known to have stopped."""
        self.waiting.append(now)
        count, size = self.count + len(self.waiting), now.residual.norm.detach()
        if self.watches:
            last, self.size = self.size, size
            self.grown = None if last is None else size > GROWTH * last
        # The first costs nothing: the range of the norms is looked at there anyway.
        if count > 1 and count % self.every:
            return False
        self._look()
        return self.remaining == 0

    def _look(self) -> None:
        """Test the iterates since the last look, and keep the best of each sample."""
        first, before, self.beyond = self.count, self.state.active, False
        with torch.no_grad():
            for taken, (size, update) in enumerate(_norms(self.waiting)):
                self.taken = taken
                number = torch.full_like(self.state.last, self.count + 1)
                if self.remaining < len(before) and self.taken:
                    # It went on from where it stopped: nothing that it did there counts.
                    beyond = before & ~self.state.active
                    self.beyond = True
                    size = torch.where(beyond, self.state.size, size)
                    number = torch.where(column(beyond), self.state.last, number)
                grown, residual = self.grown, Residual(number, size, update)
                stopped, self.grown = super().check(Evaluation(number, number, residual)), grown
                if stopped:
                    del self.waiting[self.taken + 1 :]
                    break
        self._keep(self.state.best.squeeze(1) - first)
        self.last, self.waiting = self.waiting[-1].z, []
        if self.stopped is not None or self.remaining == 0:
            self.active = self.state.active.to(self.z0.device)

    def _keep(self, chosen: Tensor) -> None:
        """Keep the iterates of these numbers, from 1; a lesser number is one kept before."""
        if bool((chosen == len(self.waiting)).all()):
            self.best = self.waiting[-1].z
            return
        for number, now in enumerate(self.waiting, 1):
            which = chosen == number
            # Where none is chosen a graph still leads to it, as it does on a CPU.
            if torch.is_grad_enabled() or bool(which.any()):
                self.best = torch.where(column(which.to(self.z0.device)), now.z, self.best)

    def freeze(self, z_next: Tensor, z: Tensor) -> Tensor:
        """z_next for the active samples, what is returned of them for those that have stopped."""
        del z
        return (
            z_next if self.active is None else torch.where(column(self.active), z_next, self.best)
        )

    def leaving(self) -> Tensor | None:
        """See :meth:`StopCriterion.leaving`; only at a look."""
        rows = None if self.waiting else super().leaving()
        return None if rows is None else rows.to(self.z0.device)

    def narrow(self, system: System, rows: Tensor) -> None:
        """See :meth:`StopCriterion.narrow`."""
        best, last = self._all()
        places = rows if self.all is None else self.all[2][rows]
        self.all = best, last, places
        self.best, self.last = best.index_select(0, places), last.index_select(0, places)
        self.size = None if self.size is None else self.size.index_select(0, rows)
        super().narrow(system, rows.cpu())
        self.rule = _on_host(system)
        self.active = None if self.stopped is None else self.state.active.to(rows.device)

    def _all(self) -> tuple[Tensor, Tensor]:
        """The best and the last iterates of the whole batch."""
        if self.all is None:
            return self.best, self.last
        best, last, places = self.all
        return best.index_copy(0, places, self.best), last.index_copy(0, places, self.last)

    def solution(self, steps: Tensor | None = None) -> Solution:
        """See :meth:`StopTest.solution`."""
        if self.waiting:
            self._look()
        self._settle()
        self._ask()
        found, device = super().solution(steps), self.z0.device
        best, start, judged = self._all()[0], self.state.start, found.judged
        if self.whole is not None:
            start = self.whole[0].start
        status, residual = found.status.to(device), found.residual.to(device)
        origin = Origin(start.norm.to(device), start.ceiling.to(device))
        relative, trace = (judged.relative, judged.trace) if judged else (None, None)
        relative = None if relative is None else relative.to(device)
        return Solution(
            z=best,
            start=self.z0,
            residual=residual,
            judged=Judged(best, residual, status, relative, trace, origin),
            status=status,
            steps=found.steps.to(device),
            evaluations=found.evaluations,
        )

    def _begin(self, now: Evaluation) -> None:
        start = self.waiting[0]
        check_known(self.system, start)
        if self.system.context.range_checked:
            check_range(now.residual.update_norm, start.z, start.fz)

    def _scale(self, update: Tensor, start: Tensor) -> Tensor:
        if isinstance(self.rule, Tensor):
            return self.rule
        if self.rule:
            return self.system.problem.dynamics.scale(update, start)
        device = self.z0.device  # a function of the user's may have tensors there
        return self.system.scale(update.to(device), start.to(device)).cpu()

    def _remeasure(self, now: Evaluation, size: Tensor) -> Tensor:
        there = self.waiting[self.taken]
        residual = now.residual._replace(value=there.residual.value)
        return super()._remeasure(Evaluation(there.z, there.fz, residual), size)

    def _record(self, z: Tensor, size: Tensor) -> None:
        super()._record(self.waiting[self.taken].z, size)

    def _check_apart(self, state: StopState) -> None:
        """See :meth:`StopTest._check_apart`; most solves are judged on the host."""
        judged = torch.maximum(state.best_norm, state.best_limit)
        if torch.equal(torch.minimum(state.size, judged), state.size):
            return
        self._check_frozen(state, self._all()[1], state.size.to(self.z0.device))

    def _check_frozen(self, state: StopState, last: Tensor, size: Tensor) -> None:
        best, device = self._all()[0], self.z0.device
        frozen = Frozen(best, last, state.best_norm.to(device), size, state.best_limit.to(device))
        check_frozen(self.system, frozen, lambda: state.converged().to(device))

    @torch.no_grad()
    def _ask(self) -> None:
        """Evaluate f once at what is returned, where samples stopped between two looks.

        They were not evaluated where they stopped while the others moved, so that nothing would
        show that f mixes samples. Once for each f.
        """
        if self.beyond and self.all is None and not was_asked(self.system):
            size = self.system.evaluate(self.best).residual.norm
            self._check_frozen(self.state, self.best, size)
            note_asked(self.system)


def _norms(waiting: list[Evaluation]) -> Tensor:
    """The norms of the residuals and of f(z), ``[iterates, 2, batch]``: the host waits for them."""
    norms = [norm for now in waiting for norm in now.residual[1:]]
    return torch.stack(norms).view(len(waiting), 2, -1).cpu()


def _on_host(system: System) -> Tensor | bool:
    """What the tolerance is relative to, ``[batch]``, or whether the host can say it."""
    scale = system.stop_scale()
    return scale.cpu() if isinstance(scale, Tensor) else scale is not None
