"""The stop test in a graph: the same promises as that of the eager loop, by values alone."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor

from implicitcore.graph.system import GraphField, GraphSystem
from implicitcore.root_solvers.stop_criterion import GROWTH
from implicitcore.root_solvers.stop_state import TRUST, Trust, origin_of
from implicitcore.solution import Origin, Status
from implicitcore.system.evaluation import Evaluation
from implicitcore.tensors.norms import column


class Samples(NamedTuple):
    """Where each sample is: what :class:`StopTest` keeps, as tensors that a loop carries."""

    evaluations: Tensor  # int64
    active: Tensor  # [batch] bool
    steps: Tensor  # [batch] int64, evaluations up to the stop of each
    best: Tensor  # [batch, n]
    best_norm: Tensor  # [batch]
    size: Tensor  # [batch], the last residual
    grown: Tensor  # [batch] bool, whether that has more than doubled
    failure: Tensor  # [batch] int8, a Status, 0 where a sample did not fail
    trust: Tensor  # [batch], see Trust
    doubted: Tensor  # [batch] bool, see Trust


class Found(NamedTuple):
    """What a solve in a graph gives."""

    z: Tensor  # [batch, n]
    residual: Tensor  # [batch]
    status: Tensor  # [batch] int8
    steps: Tensor  # [batch] int64
    evaluations: Tensor  # int64


@dataclass(frozen=True)
class GraphStop:
    """The stop test of :class:`StopTest`, without a branch that the host decides.

    Attributes:
        system: what is solved.
        tol: relative tolerance.
        floor: the absolute one.
        min_steps: iterates before this one do not stop a sample by their tolerance.
        origin: of the first evaluation.
    """

    system: GraphSystem | GraphField
    tol: float
    floor: float
    min_steps: int
    origin: Origin

    @classmethod
    def at(cls, system: GraphSystem | GraphField, solver: Any, first: Evaluation) -> GraphStop:
        """Before the first evaluation is judged."""
        norm, update = first.residual.norm, first.residual.update_norm
        info = torch.finfo(norm.dtype)
        floor = solver.atol + info.tiny * info.eps
        steps = getattr(solver, "min_steps", 1)
        return cls(system, solver.tol, floor, steps, origin_of(norm, update))

    def first(self, now: Evaluation) -> Samples:
        """Where the samples are after the first evaluation."""
        size, z = now.residual.norm, now.z
        far, no = torch.full_like(size, torch.inf), torch.zeros_like(size, dtype=torch.bool)
        whole = torch.zeros_like(size, dtype=torch.int64)
        trust = torch.maximum(self.limit(now), self.origin.norm * TRUST)
        count = torch.zeros((), dtype=torch.int64, device=z.device)
        failure = whole.to(torch.int8)
        before = Samples(count, ~no, whole, z, far, far, no, failure, trust, no)
        return self.judge(before, now)

    def judge(self, samples: Samples, now: Evaluation) -> Samples:
        """Take in an iterate and its residual."""
        residual, size, active = now.residual, now.residual.norm, samples.active
        count = samples.evaluations + 1
        met = active & (size <= self.limit(now)) & (count >= self.min_steps)
        trust = Trust(samples.trust, samples.doubted)
        met, away = trust.doubt(met, residual, self.origin.ceiling, self.system.rounding)
        lost = active & ~(size <= self.origin.ceiling)
        kind = torch.where(lost & ~size.isfinite(), int(Status.NON_FINITE), int(Status.DIVERGED))
        failure = torch.where(lost | away, kind.to(torch.int8), samples.failure)
        stops = met | away | lost
        improved = active & (met | (size < samples.best_norm))
        return Samples(
            count,
            active & ~stops,
            torch.where(stops, count, samples.steps),
            torch.where(column(improved), now.z, samples.best),
            torch.where(improved, size, samples.best_norm),
            size.clone(),
            size > GROWTH * samples.size,
            failure,
            trust.limit,
            met if trust.doubted is None else trust.doubted,
        )

    def limit(self, now: Evaluation) -> Tensor:
        """Below which a residual meets the tolerance, ``[batch]``."""
        scale = self.system.scale(now.residual.update_norm, self.origin.norm)
        return torch.add(torch.full_like(scale, self.floor), scale, alpha=self.tol)

    def ended(self, samples: Samples) -> Found:
        """The best iterates."""
        active = samples.active
        return Found(
            samples.best,
            samples.best_norm,
            torch.where(active, int(Status.MAX_STEPS), samples.failure).to(torch.int8),
            torch.where(active, samples.evaluations, samples.steps),
            samples.evaluations,
        )
