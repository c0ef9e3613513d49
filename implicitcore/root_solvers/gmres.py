"""GMRES, for systems that are linear in z."""

from __future__ import annotations

from dataclasses import dataclass
from typing import final

from torch import Tensor

from implicitcore.options.types import Count
from implicitcore.root_solvers.krylov import krylov_space
from implicitcore.root_solvers.linear import Correction, LinearRootSolver, Product
from implicitcore.system.system import System


@final
@dataclass(frozen=True, kw_only=True)
class GMRES(LinearRootSolver):
    """Restarted GMRES on g(z) = b - A z = 0, one Krylov space per sample, matrix-free.

    Minimises ``|b - A z|`` over z0 + span(r, A r, A^2 r, ...), where r = g(z0) and A = -dg/dz = I -
    df/dz comes as products from ``system.linearize``: one an iteration. The default for backward
    passes, where the system is linear. On a nonlinear system it solves the linearisation at each
    restart (Newton's method without a line search): use a nonlinear solver there.

    Attributes:
        restart: largest Krylov dimension; the storage is so many states.

    Reference:
        Saad, Schultz, SIAM J. Sci. Stat. Comput. 7 (1986), p. 856-869; residual norms without
        rotations: Ayachour, J. Comput. Appl. Math. 159 (2003), p. 269-283.
    """

    restart: Count = 30

    def cycle(
        self, system: System, product: Product, g: Tensor, limit: Tensor, left: int
    ) -> Correction:
        """See :meth:`LinearRootSolver.cycle`."""
        space = krylov_space(system.backend, product, g, limit, min(self.restart, left))
        return Correction(space.minimise(), space.size, space.steps)
