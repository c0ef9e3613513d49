"""The loop of a stepwise root solver where a backend does a whole iteration in one call."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from implicitcore.backends.root_iteration import RootIteration, StopRule, UpdateRule
from implicitcore.root_solvers.stop_criterion import GROWTH
from implicitcore.root_solvers.stop_state import DIVERGENCE, TRUST, tiny
from implicitcore.solution import Judged, Origin, Solution, Status
from implicitcore.system.coupling import Frozen, check_frozen
from implicitcore.system.evaluation import Evaluation
from implicitcore.system.problem import rounding_of
from implicitcore.system.scaled import check_range
from implicitcore.system.system import System
from implicitcore.tensors.norms import bounds, norm, real_dtype


class FusedLoop(NamedTuple):
    """A solve whose iterations are a backend's.

    Attributes:
        system: what is solved.
        iteration: the backend's.
        rule: when a sample stops.
        max_steps: most evaluations, the first included.
    """

    system: System
    iteration: RootIteration
    rule: StopRule
    max_steps: int

    def run(self, z: Tensor, start: Evaluation | None) -> Solution:
        """Solve from z; ``start``, where f is known there."""
        system, advance = self.system, self.iteration.advance
        evaluate, recorder = system.map, system.context.recorder
        known = None if start is None else (start.fz, start.residual.value)
        start_z, last = z, self.max_steps - 1
        del start
        for count in range(self.max_steps):
            fz, g = evaluate(z) if known is None else known
            known = None
            z_next = advance(z, fz, g, count == last)
            if recorder is not None:
                recorder.record(z, self.iteration.size())
            if not count and system.context.range_checked:
                self._check_range(z, fz)
            if z_next is None:
                break
            z = z_next
            del fz, g, z_next  # a state may be large
        return self._solution(start_z)

    def _check_range(self, z: Tensor, fz: Tensor) -> None:
        if not self.iteration.between(*bounds(real_dtype(z))):
            check_range(norm(fz), z, fz)

    def _solution(self, start: Tensor) -> Solution:
        """What the stop test says."""
        found, system, tol = self.iteration.result(), self.system, self.rule.tol
        if found.stopped_apart:
            frozen = Frozen(found.z, found.last, found.residual, found.size, found.limit)
            check_frozen(system, frozen, lambda: found.status == Status.CONVERGED)
        recorder = system.context.recorder
        kept = recorder.residuals if recorder is not None else None
        relative = found.relative if tol else None
        origin, trace = (
            Origin(found.start_norm, found.ceiling),
            torch.stack(kept) if kept else None,
        )
        return Solution(
            z=found.z,
            start=start,
            residual=found.residual,
            judged=Judged(found.z, found.residual, found.status, relative, trace, origin),
            status=found.status,
            steps=found.steps,
            evaluations=system.evaluations,
        )


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
    iteration = context.backend.root_iteration(update, rule, z0)
    return None if iteration is None else FusedLoop(system, iteration, rule, max_steps)
