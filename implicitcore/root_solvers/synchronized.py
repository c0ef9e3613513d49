"""The stop test of a solve whose processes stop together."""

from __future__ import annotations

import torch
from torch import Tensor

from implicitcore.backends.base import Residual
from implicitcore.root_solvers.stop_criterion import GROWTH, StopCriterion
from implicitcore.solution import Judged, Solution, Status
from implicitcore.system.evaluation import Evaluation
from implicitcore.system.system import System
from implicitcore.tensors.norms import column, real_dtype


class SynchronizedStopTest(StopCriterion):
    """All processes of the system's group evaluate f equally often, so that f may communicate.

    They stop when every sample of every process meets its tolerance in the same iteration. As f may
    couple the samples, one that met its tolerance rests only as long as it does, and the solution
    is the last iterate, with the residuals measured there. A value that is not finite stops them
    all.

    Arguments:
        system: gives the scale of the relative tolerance, and the group.
        z0: the start, ``[batch, n]``.
        tol: relative tolerance.
        atol: absolute tolerance.
        min_steps: iterates before this one do not meet it.
    """

    def __init__(
        self, system: System, z0: Tensor, tol: float, atol: float, min_steps: int = 1
    ) -> None:
        self.system, self.start, self.atol = system, z0, atol
        self.min_steps = min_steps
        self.tol = system.tolerance(tol)
        self.residuals: list[Tensor] = []
        self.met = torch.zeros(len(z0), dtype=torch.bool, device=z0.device)
        self.z, self.scale = z0, torch.ones_like(self.met, dtype=real_dtype(z0))

    @torch.no_grad()
    def check(self, now: Evaluation) -> bool:
        """Take in an iterate and its residual; True when all processes have stopped."""
        self.z, residual = now.z, now.residual
        size = residual.norm.detach()
        grown = size > (GROWTH * self.residuals[-1] if self.residuals else torch.inf)
        self.grown = grown if bool(grown.any()) else None
        self.residuals.append(size)
        self.scale = self.system.scale(residual.update_norm, self.residuals[0])
        self.met = size <= self.atol + self.tol * self.scale
        if len(self.residuals) < self.min_steps:
            self.met = torch.zeros_like(self.met)
        return self._stop(residual)

    def _stop(self, residual: Residual) -> bool:
        """Whether all samples have met their tolerance, or one is lost.

        One all-reduce of two bits.
        """
        lost = ~residual.norm.isfinite()
        bits = torch.stack(((~self.met).any(), lost.any())).to(torch.int32)
        torch.distributed.all_reduce(bits, torch.distributed.ReduceOp.MAX, self.system.scope.group)
        going, broken = bits.tolist()
        return bool(broken) or not going

    def freeze(self, z_next: Tensor, z: Tensor) -> Tensor:
        """z_next for the samples that are above their tolerance, z for the others."""
        return torch.where(column(self.met), z, z_next)

    def narrow(self, system: System, rows: Tensor) -> None:
        """Never: processes that evaluate equally often keep their samples."""
        raise NotImplementedError

    def solution(self) -> Solution:
        """The last iterate, packed."""
        status = torch.where(self.met, int(Status.CONVERGED), int(Status.MAX_STEPS)).to(torch.int8)
        size = self.residuals[-1].to(real_dtype(self.start))
        status[~size.isfinite()] = int(Status.NON_FINITE)
        recorder = self.system.context.recorder
        wanted = recorder is not None and recorder.residuals is not None
        return Solution(
            z=self.z,
            start=self.start,
            residual=size,
            judged=Judged(
                self.z,
                size,
                status,
                size / self.scale if self.tol else None,
                torch.stack(self.residuals) if wanted else None,
            ),
            status=status,
            steps=torch.full_like(status, len(self.residuals), dtype=torch.int64),
            evaluations=self.system.evaluations,
        )
