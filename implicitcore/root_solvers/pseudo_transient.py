"""Pseudo-transient continuation."""

from __future__ import annotations

from dataclasses import dataclass
from typing import final

import torch
from torch import Tensor

from implicitcore.options.shared import Stopping
from implicitcore.options.types import Count, Positive, Whole
from implicitcore.root_solvers.base import RootSolver
from implicitcore.root_solvers.convergence import StopTest
from implicitcore.root_solvers.linearized import Point, solve
from implicitcore.root_solvers.stop_state import StopState
from implicitcore.solution import Solution
from implicitcore.system.evaluation import Evaluation
from implicitcore.system.system import System
from implicitcore.tensors.norms import column

# A step that raises |g| by more than this, or to no number, is taken back and tried again with a
# tenth of dt.
GROWTH = 100.0
# How far GMRES reduces a linear system, relative to |g|.
INNER = 0.1


@final
@dataclass(frozen=True, kw_only=True)
class PseudoTransient(Stopping, RootSolver):
    """Implicit Euler steps of dz/dt = f(z) - z, longer as the residual falls, per sample.

    (I / dt - G) s = g with G = dg/dz = J - I, then z + s, and dt <- dt ``|g|`` / ``|g of z + s|``
    (switched evolution relaxation). Small steps follow the flow of g, long ones are Newton's: it
    converges to a root that the flow is drawn to, superlinearly at the end, from starts far away,
    and passes through the minima of ``|g|`` in which a line search ends. Prefer ``Newton`` near a
    root, and for a root that repels the flow; ``SteadyState`` where products with J are dear.

    Attributes:
        first_step: the first dt.
        dense_below: largest n whose Jacobians are formed (n products); GMRES solves the larger
            systems.
        restart: most GMRES products in one iteration.

    Reference:
        Kelley, Keyes, Convergence Analysis of Pseudo-Transient Continuation, SIAM J. Numer. Anal.
        35 (1998), p. 508-523.
    """

    max_steps: Count = 100
    first_step: Positive = 1.0
    dense_below: Whole = 64
    restart: Count = 30

    def solve(self, system: System, z0: Tensor) -> Solution:
        """See :meth:`RootSolver.solve`."""
        return self._run(Point.at(system, z0))

    def solve_from(self, system: System, start: Evaluation) -> Solution:
        """See :meth:`RootSolver.solve_from`."""
        return self._run(Point.known(system, start))

    def _run(self, point: Point) -> Solution:
        system = point.system
        test = StopTest(system, point.z, self.tol, self.atol)
        stopped = test.check(point.now)
        dt = torch.full_like(point.size, self.first_step)
        for _ in range(self.max_steps - 1):
            if stopped:
                break
            z = test.freeze(point.z + self._step(point, dt, test.state), point.z)
            point, dt = _accept(point, Point.at(system, z), dt, test.state.active)
            stopped = test.check(point.now)
        return test.solution()

    def _step(self, point: Point, dt: Tensor, state: StopState) -> Tensor:
        """(I / dt - G)^-1 g."""
        shift = column(1 + 1 / dt).to(point.z.dtype)
        if point.z.shape[1] <= self.dense_below:
            return solve(point.matrix(shift), point.g)[0]
        limit = torch.maximum(INNER * point.size, state.limit / 2)
        return point.krylov(shift, torch.where(state.active, limit, torch.inf), self.restart)


def _accept(point: Point, trial: Point, dt: Tensor, active: Tensor) -> tuple[Point, Tensor]:
    """The point to go on from and the next dt.

    The samples whose step is taken back stay where they were.
    """
    with torch.no_grad():
        ratio = trial.size / point.size
        back = active & ~(ratio <= GROWTH)
        dt = torch.where(active, torch.where(back, dt / 10, dt / ratio), dt)
    if bool(back.any()):
        trial = Point.at(trial.system, torch.where(column(back), point.z, trial.z))
    return trial, dt
