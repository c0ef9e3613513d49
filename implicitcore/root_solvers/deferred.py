"""The stop test of a stepwise solver on an accelerator: a look at the device now and then."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from implicitcore.backends.base import Residual
from implicitcore.root_solvers.convergence import StopTest
from implicitcore.root_solvers.stop_criterion import CHECK_EVERY, GROWTH, StopCriterion
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
from implicitcore.tensors.amended import amended
from implicitcore.tensors.norms import column


@dataclass(eq=False)
class HostSystem(System):
    """What a stop test on the host asks of a system whose states are on a device.

    Attributes:
        inner: the system.
        fixed: what its tolerance is relative to, ``[batch]``; None where that depends on f(z).
        known: whether the host can say it.
    """

    inner: System
    fixed: Tensor | None
    known: bool

    @classmethod
    def on_host(cls, inner: System) -> HostSystem:
        """Of a system; nothing is recorded, nor asked of the start, which has no values here."""
        scale, origin = inner.stop_scale(), inner.context.origin
        if origin is not None:
            origin = Origin(origin.norm.cpu(), origin.ceiling.cpu())
        context = amended(
            inner.context, origin=origin, known=None, range_checked=False, recorder=None
        )
        fixed = scale.cpu() if isinstance(scale, Tensor) else None
        return cls(inner.problem, context, inner, fixed, scale is not None)

    def scale(self, update_norm: Tensor, start_norm: Tensor) -> Tensor:
        """See :meth:`System.scale`."""
        if self.fixed is not None:
            return self.fixed
        if self.known:
            return self.inner.scale(update_norm, start_norm)
        device = self.inner.packing.device  # a function of the user's may have tensors there
        return self.inner.scale(update_norm.to(device), start_norm.to(device)).cpu()

    def tolerance(self, tol: float) -> float:
        """See :meth:`System.tolerance`."""
        return self.inner.tolerance(tol)

    def absolute(self, atol: float) -> Tensor | float:
        """See :meth:`System.absolute`."""
        return self.inner.absolute(atol)

    def compacts(self, active: int, batch: int) -> bool:
        """See :meth:`System.compacts`."""
        return self.inner.compacts(active, batch)


class HostStopTest(StopTest):
    """The test itself, for which an iterate is its number: it cannot compare states."""

    def _check_apart(self, state: StopState) -> None:
        del state


class Kept(NamedTuple):
    """Iterates of each sample, ``[batch, n]``."""

    best: Tensor
    last: Tensor


class DeferredStopTest(StopCriterion):
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
        self.test = HostStopTest(HostSystem.on_host(system), numbers, tol, atol, min_steps)
        self.test.state.best = self.test.state.last = numbers.long()
        self.system, self.start, self.kept = system, z0, Kept(z0, z0)
        at_once = torch.is_grad_enabled() or system.context.recorder is not None
        self.every = 1 if at_once else CHECK_EVERY
        self.waiting: list[Evaluation] = []
        self.watches = False
        self.size: Tensor | None = None  # the last residual, on the device
        # Those kept of the whole batch, where stopped samples have left it, and which are here.
        self.whole: tuple[Kept, Tensor] | None = None
        # Which samples go on, on the device; None while all do.
        self.active: Tensor | None = None
        # Whether a sample stopped since the last look but one, and before the last iterate: it was
        # not evaluated where it stopped when the others had moved.
        self.unseen = False

    def check(self, now: Evaluation) -> bool:
        """Take in an iterate and its residual; True when every sample is known to have stopped."""
        self.waiting.append(now)
        if self.watches:
            last, self.size = self.size, now.residual.norm.detach()
            self.grown = None if last is None else self.size > GROWTH * last
        count = self.test.count + len(self.waiting)
        # The first costs nothing: the range of the norms is looked at there anyway.
        if count > 1 and count % self.every:
            return False
        self._look()
        return self.test.remaining == 0

    def _look(self) -> None:
        """Test the iterates since the last look, and keep the best of each sample."""
        test, first = self.test, self.test.count
        with torch.no_grad():
            norms = _norms(self.waiting)
            if not first:
                self._begin(self.waiting[0], norms[0, 1])
            taken = self._take(norms)
        del self.waiting[taken:]
        self._keep(test.state.best.squeeze(1) - first)
        self.kept, self.waiting = self.kept._replace(last=self.waiting[-1].z), []
        if test.stopped is not None or test.remaining == 0:
            self.active = test.state.active.to(self.start.device)

    def _begin(self, start: Evaluation, update: Tensor) -> None:
        """What is asked of the start, where ``|f(z)|`` is ``update`` ``[batch]``."""
        check_known(self.system, start)
        if self.system.context.range_checked:
            check_range(update, start.z, start.fz)

    def _take(self, norms: Tensor) -> int:
        """Test one iterate after the other until all samples have stopped; how many."""
        test, before, taken = self.test, self.test.state.active, 0
        recorder = self.system.context.recorder
        self.unseen = False
        for now, (size, update) in zip(self.waiting, norms, strict=True):
            number = torch.full_like(test.state.last, test.count + 1)
            if taken and test.remaining < len(before):
                # It went on from where it stopped: nothing that it did there counts.
                beyond = before & ~test.state.active
                self.unseen = bool(beyond.any())
                size = torch.where(beyond, test.state.size, size)
                number = torch.where(column(beyond), test.state.last, number)
            residual = Residual(now.residual.value, size, update)
            taken += 1
            stopped = test.check(Evaluation(number, now.fz, residual))
            if recorder is not None:
                recorder.record(now.z, test.of_all(test.state.size).to(now.z.device))
            if stopped:
                break
        return taken

    def _keep(self, chosen: Tensor) -> None:
        """Keep the iterates of these numbers, from 1; a lesser number is one kept before."""
        if bool((chosen == len(self.waiting)).all()):
            self.kept = self.kept._replace(best=self.waiting[-1].z)
            return
        for number, now in enumerate(self.waiting, 1):
            which = chosen == number
            # Where none is chosen a graph still leads to it, as it does on a CPU.
            if torch.is_grad_enabled() or bool(which.any()):
                best = torch.where(column(which.to(now.z.device)), now.z, self.kept.best)
                self.kept = self.kept._replace(best=best)

    def freeze(self, z_next: Tensor, z: Tensor) -> Tensor:
        """z_next for the active samples, what is returned of them for those that have stopped."""
        del z
        if self.active is None:
            return z_next
        return torch.where(column(self.active), z_next, self.kept.best)

    def leaving(self) -> Tensor | None:
        """See :meth:`StopCriterion.leaving`; only at a look."""
        rows = None if self.waiting else self.test.leaving()
        return None if rows is None else rows.to(self.start.device)

    def narrow(self, system: System, rows: Tensor) -> None:
        """See :meth:`StopCriterion.narrow`."""
        kept = self._merged()
        places = rows if self.whole is None else self.whole[1][rows]
        self.whole = kept, places
        self.kept = Kept(*(z.index_select(0, places) for z in kept))
        self.size = None if self.size is None else self.size.index_select(0, rows)
        self.test.narrow(HostSystem.on_host(system), rows.cpu())
        self.active = (
            self.test.state.active.to(rows.device) if self.test.stopped is not None else None
        )

    def _merged(self) -> Kept:
        """The iterates kept of the whole batch."""
        if self.whole is None:
            return self.kept
        whole, places = self.whole
        return Kept(
            *(z.index_copy(0, places, part) for z, part in zip(whole, self.kept, strict=True))
        )

    def solution(self) -> Solution:
        """See :meth:`StopCriterion.solution`."""
        if self.waiting:
            self._look()
        found, device, (best, last) = self.test.solution(), self.start.device, self._merged()
        state = self.test.state if self.test.whole is None else self.test.whole[0]
        self._check_apart(state, best, last)
        recorder = self.system.context.recorder
        trace = None if recorder is None else recorder.trace()
        relative = found.relative_residual
        relative = None if relative is None else relative.to(device)
        status, residual = found.status.to(device), found.residual.to(device)
        origin = Origin(state.start.norm.to(device), state.start.ceiling.to(device))
        return Solution(
            z=best,
            start=self.start,
            residual=residual,
            judged=Judged(best, residual, status, relative, trace, origin),
            status=status,
            steps=found.steps.to(device),
            evaluations=self.system.evaluations,
        )

    @torch.no_grad()
    def _check_apart(self, state: StopState, best: Tensor, last: Tensor) -> None:
        """Require that a sample which stopped kept its residual while the others moved.

        Where that was not seen, f is evaluated once more: until it gives every sample the residual
        that it stopped with, to the bit.

        Raises:
            InputError: f mixes samples.
        """
        size, judged = state.size, torch.maximum(state.best_norm, state.best_limit)
        if self.unseen and not was_asked(self.system):
            size, last = self.system.evaluate(best).residual.norm.cpu(), best
            if torch.equal(size, state.best_norm):
                note_asked(self.system)
        if torch.equal(torch.minimum(size, judged), size):
            return
        device = best.device
        norms = [norm.to(device) for norm in (state.best_norm, size, state.best_limit)]
        frozen = Frozen(best, last, *norms)
        check_frozen(self.system, frozen, lambda: state.converged().to(device))


def _norms(waiting: list[Evaluation]) -> Tensor:
    """The norms of the residuals and of f(z), ``[iterates, 2, batch]``: the host waits for them."""
    norms = [norm for now in waiting for norm in now.residual[1:]]
    return torch.stack(norms).view(len(waiting), 2, -1).cpu()
