"""The loop of the stepwise root solvers where several processes stop together."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from implicitcore.backends.base import Residual
from implicitcore.norms import column, real_dtype
from implicitcore.root_solvers.loop import GROWTH
from implicitcore.solution import Solution, Status
from implicitcore.system import System

if TYPE_CHECKING:
    from torch.distributed import ProcessGroup

    from implicitcore.root_solvers.base import StepwiseRootSolver


def iterate_jointly(solver: StepwiseRootSolver[Any], system: System, z0: Tensor, group: ProcessGroup) -> Solution:
    """Run a stepwise solver until every sample of every process of the group meets its tolerance in the same iteration.

    All processes evaluate f equally often, so that f and its derivative may communicate. As f may then couple the samples, one that met
    its tolerance rests only as long as it does, and the solution is the last iterate, with the residuals measured there. A value that
    is not finite stops them all.
    """
    z, state = z0, solver.init(system, z0)
    residuals: list[Tensor] = []
    met = torch.zeros(len(z), dtype=torch.bool, device=z.device)
    for step in range(solver.max_steps):
        fz = system.update(z)
        with torch.no_grad():
            residual = system.residual(z, fz)
            residuals.append(residual.norm.detach())
            met = residuals[-1] <= solver.atol + solver.tol * system.scale(residual.update_norm, residuals[0])
        if _stop(met, residual, group) or step == solver.max_steps - 1:
            break
        if step and bool((grown := residuals[-1] > GROWTH * residuals[-2]).any()):
            state = solver.restart(state, grown)
        z_next, state = solver.step(system, z, fz, state)
        z = torch.where(column(met), z, z_next)
    if system.trace is not None:
        system.trace += residuals
    return _solution(system, z0, z, met, residuals)


def _stop(met: Tensor, residual: Residual, group: ProcessGroup) -> bool:
    """Whether all samples have met their tolerance, or one is lost: one all-reduce of two bits."""
    lost = ~residual.norm.isfinite()
    bits = torch.stack(((~met).any(), lost.any())).to(torch.int32)
    torch.distributed.all_reduce(bits, torch.distributed.ReduceOp.MAX, group)
    going, broken = bits.tolist()
    return bool(broken) or not going


def _solution(system: System, z0: Tensor, z: Tensor, met: Tensor, residuals: list[Tensor]) -> Solution:
    status = torch.where(met, int(Status.CONVERGED), int(Status.MAX_STEPS)).to(torch.int8)
    size = residuals[-1].to(real_dtype(z0))
    status[~size.isfinite()] = int(Status.NON_FINITE)
    return Solution(
        z=z,
        start=z0,
        residual=size,
        status=status,
        steps=torch.full_like(status, len(residuals), dtype=torch.int64),
        evaluations=system.evaluations,
        trace=torch.stack(system.trace) if system.trace else None,
    )
