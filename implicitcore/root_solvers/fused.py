"""The loop of a stepwise root solver where a backend does a whole iteration in one call."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from implicitcore.backends.root_iteration import (
    PicardRule,
    RootIteration,
    StopRule,
    UpdateRule,
)
from implicitcore.root_solvers.graphed import GraphedSolve, borrow
from implicitcore.root_solvers.stop_criterion import GROWTH
from implicitcore.root_solvers.stop_state import DIVERGENCE, TRUST, tiny
from implicitcore.solution import Judged, Origin, Solution, Status
from implicitcore.system.coupling import Frozen, check_frozen
from implicitcore.system.evaluation import Evaluation
from implicitcore.system.problem import rounding_of
from implicitcore.system.scaled import check_range
from implicitcore.system.system import System
from implicitcore.tensors import host
from implicitcore.tensors.norms import bounds, column, norm, real_dtype

_PLAIN = PicardRule(1.0)


class FusedLoop(NamedTuple):
    """A solve whose iterations are a backend's.

    Attributes:
        system: what is solved.
        iteration: the backend's.
        rule: when a sample stops.
        max_steps: most evaluations, the first included.
        graphs: iterations as CUDA graphs, borrowed for this solve; None where there are none.
    """

    system: System
    iteration: RootIteration
    rule: StopRule
    max_steps: int
    graphs: GraphedSolve | None = None

    @property
    def limit(self) -> Tensor | None:
        """What each sample's residual is to come to, ``[batch]``; None where f(z) decides."""
        tol, floor, scale = self.rule[:3]
        if not isinstance(scale, Tensor):
            return None
        if isinstance(floor, Tensor):
            return torch.add(floor, scale, alpha=tol)
        return torch.rsub(scale, floor, alpha=-tol)  # floor + tol scale in one pass

    def run(self, z: Tensor, start: Evaluation | None) -> Solution:
        """Solve from z; ``start``, where f is known there."""
        if self.graphs is None:
            return self._run(z, z, start)
        try:
            return self._run(z, self.graphs.begin(z, self.rule), start)
        finally:
            self.graphs.end()

    def _run(self, given: Tensor, z: Tensor, start: Evaluation | None) -> Solution:
        system, advance, graphs = self.system, self.iteration.advance, self.graphs
        evaluate, recorder = system.map, system.context.recorder
        known = None if start is None else (start.fz, start.residual.value)
        last, count = self.max_steps - 1, 0
        del start
        while True:
            fz, g = evaluate(z) if known is None else known
            known = None
            z_next = advance(z, fz, g, count == last)
            if not count and system.context.range_checked:
                self._check_range(z, fz)  # before it is recorded: the solve may begin anew
            if recorder is not None:
                recorder.record(z, self.iteration.size())
            count += 1
            if graphs is not None and z_next is not None:
                z_next, more = graphs.run(system, z_next, last - count)
                count += more
            if z_next is None:
                break
            z = z_next
            del fz, g, z_next  # a state may be large
        return self.solution(given)

    def _check_range(self, z: Tensor, fz: Tensor) -> None:
        if not self.iteration.between(*bounds(real_dtype(z))):
            check_range(norm(fz), z, fz)

    def solution(self, start: Tensor, steps: Tensor | None = None) -> Solution:
        """What the stop test says; ``steps`` ``[batch]``, where they are not its iterates."""
        found, system, tol = self.iteration.result(), self.system, self.rule.tol
        if found.stopped_apart:
            frozen = Frozen(found.z, found.last, found.residual, found.size, found.limit)
            check_frozen(system, frozen, lambda: found.status == Status.CONVERGED)
        recorder = system.context.recorder
        trace = None if recorder is None else recorder.trace()
        relative = found.relative if tol else None
        origin, measured = Origin(found.start_norm, found.ceiling), found.residual
        status, all_met = found.status, found.all_met
        return Solution(
            z=found.z,
            start=start,
            residual=measured,
            judged=Judged(found.z, measured, status, relative, trace, origin, all_met),
            status=status,
            steps=found.steps if steps is None else steps,
            evaluations=system.context.counter.evaluations,
        )


class FusedStopTest:
    """The stop test of a backend's iterations, without their updates.

    For a system whose tolerance is relative to something known, and a host that looks for free.

    Arguments:
        loop: a loop of plain steps, which are not taken.
        limit: ``[batch]``, what each sample's residual is to come to.
        start: ``[batch, n]``.
    """

    def __init__(self, loop: FusedLoop, limit: Tensor, start: Tensor) -> None:
        self.loop, self.goal, self.start = loop, limit, start
        self.active: Tensor | None = None  # once a sample has stopped

    @classmethod
    def of(
        cls, system: System, z0: Tensor, limits: tuple[float, float, int, int]
    ) -> FusedStopTest | None:
        """That of a solve, as :func:`fused_loop` takes it; None where there is none."""
        if not isinstance(system.stop_scale(), Tensor) or not host.on_host(z0):
            return None
        loop = fused_loop(system, z0, _PLAIN, limits)
        limit = None if loop is None else loop.limit
        return None if loop is None or limit is None else cls(loop, limit, z0)

    def check(self, now: Evaluation) -> bool:
        """See :meth:`StopTest.check`."""
        return self._advance(now.z, now.fz)

    def measure(self, z: Tensor) -> tuple[bool, Tensor]:
        """Whether every sample stops at z ``[batch, n]``, and the residual there, if one does not.

        One evaluation.
        """
        fz = self.loop.system.update(z)
        stopped = self._advance(z, fz)
        return stopped, fz if stopped else fz - z

    def _advance(self, z: Tensor, fz: Tensor) -> bool:
        iteration = self.loop.iteration
        following = iteration.advance(z, fz, None, False)
        if following is None:
            return True
        if following is not fz:  # it is, as a rule, while no sample has stopped
            found = iteration.result()
            if found.stopped_apart:
                self.active = found.status == Status.MAX_STEPS
        return False

    def limit(self) -> Tensor:
        """See :meth:`StopTest.limit`."""
        return self.goal if self.active is None else torch.where(self.active, self.goal, torch.inf)

    def freeze(self, z_next: Tensor, z: Tensor) -> Tensor:
        """See :meth:`StopTest.freeze`."""
        return z_next if self.active is None else torch.where(column(self.active), z_next, z)

    def solution(self, steps: Tensor) -> Solution:
        """See :meth:`StopTest.solution`."""
        return self.loop.solution(self.start, steps)


def fused_loop(
    system: System, z0: Tensor, update: UpdateRule | None, limits: tuple[float, float, int, int]
) -> FusedLoop | None:
    """The loop, where the backend has one for this solve; None where it does not.

    Arguments:
        system: what is solved.
        z0: the start, ``[batch, n]``.
        update: of the solver; None where it has none.
        limits: ``tol``, ``atol``, ``min_steps`` and ``max_steps``.
    """
    scale = system.stop_scale()
    context = system.context
    if update is None or scale is None or context.known is not None:
        return None
    if torch.is_grad_enabled() or context.scope.group is not None:
        return None
    tol, atol, min_steps, max_steps = limits
    rule = StopRule(
        tol=system.tolerance(tol),
        floor=system.absolute(atol) + tiny(real_dtype(z0)),
        scale=scale,
        rounding=rounding_of(system.problem.is_map, z0.dtype),
        min_steps=min_steps,
        origin=context.origin,
        divergence=DIVERGENCE,
        trust=TRUST,
        growth=GROWTH,
    )
    graphs = borrow(system, update, rule, z0)
    if graphs is not None:
        return FusedLoop(system, graphs.iteration, rule, max_steps, graphs)
    iteration = context.backend.root_iteration(update, rule, z0)
    return None if iteration is None else FusedLoop(system, iteration, rule, max_steps)
