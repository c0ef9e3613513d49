"""GMRES, for systems that are linear in z."""

from __future__ import annotations

from dataclasses import dataclass
from typing import final

import torch
from torch import Tensor

from implicitcore.backends.base import Residual
from implicitcore.norms import column, norm
from implicitcore.options import Options
from implicitcore.root_solvers.base import RootSolver
from implicitcore.root_solvers.history import History
from implicitcore.root_solvers.loop import Progress
from implicitcore.solution import Solution
from implicitcore.system import System
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
        stopped = progress.observe(z0, system.update(z0))
        z, g = z0, progress.residual.value
        products, steps = 0, torch.zeros_like(progress.steps)
        while not stopped and products < self.max_steps:
            krylov = _Krylov(system, z, g, progress, min(self.restart, self.max_steps - products))
            z_next, g_next = krylov.minimise()
            products += krylov.size
            steps += krylov.steps
            z, predicted = progress.freeze(z_next, z), progress.freeze(g_next, g)
            stopped = progress.note(z, _measure(system, z, predicted))
            g = progress.residual.value
        return progress.solution(steps=steps)


def _measure(system: System, z: Tensor, g: Tensor) -> Residual:
    """The residual at z: on a linear system it is g, known from the Arnoldi relation without a product."""
    if system.linear:
        return Residual(g, norm(g), norm(z + g))
    return system.residual(z, system.update(z))


class _Krylov:
    """One cycle: an orthonormal basis V of each sample's Krylov space with A V_k = V_{k+1} H.

    H has the first row h and, below it, the triangle R. With w = R^-T h the smallest residual over the space is
    ``|g| / sqrt(1 + |w|^2)``, reached at R y = ``|g|`` w / (1 + ``|w|^2``): w grows by one entry a product, without rotations.
    """

    def __init__(self, system: System, z: Tensor, g: Tensor, progress: Progress, most: int) -> None:
        self.backend, self.z, self.g = system.backend, z, g
        self.jacobian = system.linearize(z)
        self.basis = History(z, most + 1)
        self.columns: list[Tensor] = []
        self.w: list[Tensor] = []
        self.beta = norm(g)
        self.active, self.limit = progress.active, progress.limit
        self.steps = torch.zeros_like(progress.steps)
        self.basis.append(g / column(self.beta.clamp(min=torch.finfo(self.beta.dtype).tiny)).to(g.dtype))
        for _ in range(most):
            if not bool(self.active.any()):
                break
            self._extend()

    @property
    def size(self) -> int:
        """Products spent."""
        return len(self.columns)

    def _extend(self) -> None:
        """One product, orthogonalised twice against the basis."""
        backend, rows = self.backend, self.basis.rows()
        v = rows[:, -1]
        product = v - self.jacobian.jvp(v)
        h = backend.gram_row(rows, product)
        a = backend.mix(product, -h, rows)
        again = backend.gram_row(rows, a)
        a = backend.mix(a, -again, rows)
        h = (h + again).to(self.beta.dtype)
        eps = torch.finfo(h.dtype)
        below = torch.maximum(norm(a), eps.eps * norm(product)).clamp(min=eps.tiny)  # a zero is a lucky breakdown: solved
        self.basis.append(a / column(below).to(a.dtype))
        self._grow(h, below)

    def _grow(self, h: Tensor, below: Tensor) -> None:
        self.steps += self.active
        self.columns.append(torch.cat((h, column(below)), 1))
        solved = (h[:, 1:] * torch.stack(self.w, 1)).sum(1) if self.w else 0
        # A sample that is done gets zeros from here on: its minimiser stays the one of its own dimension.
        self.w.append(torch.where(self.active, (h[:, 0] - solved) / below, 0))
        with torch.no_grad():
            smallest = self.beta / (1 + torch.stack(self.w, 1).square().sum(1)).sqrt()
            self.active = self.active & (smallest > self.limit)

    def minimise(self) -> tuple[Tensor, Tensor]:
        """The point of smallest residual in z + span(V), and its residual g - V_{k+1} H y."""
        w = torch.stack(self.w, 1)
        t = w * column(self.beta / (1 + w.square().sum(1)))
        size = self.size + 1
        hessenberg = torch.stack([torch.nn.functional.pad(c, (0, size - c.shape[1])) for c in self.columns], 2)
        y = torch.linalg.solve_triangular(hessenberg[:, 1:], t.unsqueeze(2), upper=True)
        drop = torch.bmm(hessenberg, y).squeeze(2)
        rows, backend = self.basis.rows(), self.backend
        z_next = backend.mix(self.z, y.squeeze(2).to(rows.dtype), rows[:, :-1])
        return z_next, backend.mix(self.g, -drop.to(rows.dtype), rows)
