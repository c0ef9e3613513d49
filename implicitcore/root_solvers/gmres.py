"""GMRES, for systems that are linear in z."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import final

import torch
from torch import Tensor

from implicitcore.options import Options
from implicitcore.root_solvers.base import RootSolver
from implicitcore.root_solvers.krylov import Krylov
from implicitcore.root_solvers.progress import Progress
from implicitcore.solution import Solution
from implicitcore.system import Linearization, System
from implicitcore.tolerances import Count, Tolerance


@final
@dataclass(frozen=True, kw_only=True)
class GMRES(Options, RootSolver):
    """Restarted GMRES on g(z) = b - A z = 0, one Krylov space per sample, matrix-free.

    Minimises ``|b - A z|`` over z0 + span(r, A r, A^2 r, ...), where r = g(z0) and A = -dg/dz = I - df/dz comes as
    products from ``system.linearize``: one an iteration. The default for backward passes, where the system is linear. On a nonlinear
    system it solves the linearisation at each restart (Newton's method without a line search): use a nonlinear solver there.

    Attributes:
        tol: relative tolerance per sample, in the 2-norm (relative to the incoming gradient in a backward pass).
        atol: absolute tolerance beside it.
        max_steps: most products.
        restart: largest Krylov dimension; the storage is restart + 1 states.

    Reference:
        Saad, Schultz, SIAM J. Sci. Stat. Comput. 7 (1986), p. 856-869; residual norms without rotations: Ayachour, J. Comput. Appl.
        Math. 159 (2003), p. 269-283.
    """

    tol: Tolerance = 1e-4
    atol: Tolerance = 0.0
    max_steps: Count = 100
    restart: Count = 30

    def solve(self, system: System, z0: Tensor) -> Solution:
        """See :meth:`RootSolver.solve`."""
        progress = Progress(system, z0, self.tol, self.atol)
        z, fz = z0, system.update(z0)
        stopped = progress.observe(z, fz)
        products, steps = 0, torch.zeros_like(progress.steps)
        while not stopped and products < self.max_steps:
            limit = torch.where(progress.active, progress.limit, torch.inf)
            most = min(self.restart, self.max_steps - products)
            krylov = Krylov(system.backend, _product(system.linearize(z)), system.residual(z, fz).value, limit, most)
            products += krylov.size + 1
            steps += krylov.steps
            z = progress.freeze(z + krylov.minimise(), z)
            # Measured, though the Arnoldi relation predicts it: where f mixes samples the relation does not hold.
            fz = system.update(z)
            stopped = progress.observe(z, fz)
        return progress.solution(steps=steps)


def _product(jacobian: Linearization) -> Callable[[Tensor], Tensor]:
    """v -> (I - J) v."""
    return lambda v: v - jacobian.jvp(v)
