"""BiCGSTAB, for systems that are linear in z."""

from __future__ import annotations

from dataclasses import dataclass
from typing import final

import torch
from torch import Tensor

from implicitcore.root_solvers.linear import Correction, LinearRootSolver, Product
from implicitcore.system.system import System
from implicitcore.tensors.norms import column, norm, real_dtype


@final
@dataclass(frozen=True, kw_only=True)
class BiCGSTAB(LinearRootSolver):
    """Stabilised bi-conjugate gradients on g(z) = b - A z = 0, per sample, matrix-free.

    A = -dg/dz = I - df/dz comes as products from ``system.linearize``, two an iteration. The
    storage is seven states however many iterations there are: prefer it to ``GMRES`` where a state
    is large and the iterations are many; else GMRES needs fewer products and its residual never
    grows. A sample whose recurrence breaks down begins it anew from its residual. The residual of
    the recurrence is checked by a true one, and where that is larger the sample goes on. It
    stagnates where A is nearly skew. On a nonlinear system it solves one linearisation after the
    other (Newton's method without a line search).

    Reference:
        van der Vorst, Bi-CGSTAB, SIAM J. Sci. Stat. Comput. 13 (1992), p. 631-644.
    """

    def cycle(
        self, system: System, product: Product, g: Tensor, limit: Tensor, left: int
    ) -> Correction:
        """See :meth:`LinearRootSolver.cycle`."""
        del system
        recurrence = _Recurrence(product, g, limit)
        s, products = recurrence.run((left + 1) // 2)
        return Correction(s, products, recurrence.steps)


class _Recurrence:
    """The recurrence for A s = g, scaled by ``|g|`` so that no inner product underflows.

    Arguments:
        product: v -> A v.
        g: ``[batch, n]``.
        limit: ``[batch]``, the residual at which each sample is done; infinite leaves it out.
    """

    def __init__(self, product: Product, g: Tensor, limit: Tensor) -> None:
        self.product = product
        self.beta = norm(g).clamp(min=torch.finfo(real_dtype(g)).tiny)
        self.limit = limit / self.beta.detach()
        self.s = self.best = torch.zeros_like(g)
        self.r = self.p = self.shadow = g / column(self.beta).to(g.dtype)
        self.rho = _dot(self.r, self.r)
        self.smallest = norm(self.r.detach())
        self.active = self.smallest > self.limit
        self.steps = torch.zeros_like(self.active, dtype=torch.int64)

    def run(self, most: int) -> tuple[Tensor, int]:
        """The s of smallest residual after at most so many iterations, and the products spent."""
        spent = 0
        while spent < 2 * most and bool(self.active.any()):
            self._iterate()
            spent += 2
        return _times(self.beta, self.best), spent

    def _iterate(self) -> None:
        """Two products: along the search direction p, and along the residual that is left."""
        self.steps = self.steps + 2 * self.active
        v = self.product(self.p)
        alpha = self._ratio(self.rho, _dot(self.shadow, v), norm(self.shadow) * norm(v))
        half = self.r - _times(alpha, v)
        t = self.product(half)
        tt = _dot(t, t)
        omega = self._ratio(_dot(t, half), tt, torch.zeros_like(tt))
        self.s = self.s + _times(alpha, self.p) + _times(omega, half)
        self.r = torch.where(column(self.active), half - _times(omega, t), self.r)
        self._turn(v, alpha, omega)
        self._keep()

    def _turn(self, v: Tensor, alpha: Tensor, omega: Tensor) -> None:
        """The next direction; a sample whose recurrence broke down restarts from its residual."""
        rho = _dot(self.shadow, self.r)
        with torch.no_grad():
            size = norm(self.shadow) * norm(self.r)
            broken = (alpha == 0) | (omega == 0) | (rho.abs() <= _eps(rho) * size)
        beta = self._ratio(rho, self.rho, torch.zeros_like(rho)) * self._ratio(
            alpha, omega, torch.zeros_like(rho)
        )
        again = column(broken)
        self.p = torch.where(again, self.r, self.r + _times(beta, self.p - _times(omega, v)))
        self.shadow = torch.where(again, self.r, self.shadow)
        self.rho = torch.where(broken, _dot(self.r, self.r), rho)

    def _keep(self) -> None:
        """Keep the best s so far: the residual falls unevenly."""
        size = norm(self.r.detach())
        better = self.active & (size < self.smallest)
        self.smallest = torch.where(better, size, self.smallest)
        self.best = torch.where(column(better), self.s, self.best)
        self.active = self.active & (size > self.limit)

    def _ratio(self, a: Tensor, b: Tensor, scale: Tensor) -> Tensor:
        """A / b for the active samples.

        0 for the others, and where b is nothing next to ``scale``.
        """
        safe = self.active & (b.abs() > _eps(b) * scale.detach())
        return torch.where(safe, a / torch.where(safe, b, 1), 0)


def _dot(a: Tensor, b: Tensor) -> Tensor:
    return (a.to(real_dtype(a)) * b.to(real_dtype(b))).sum(1)


def _times(a: Tensor, v: Tensor) -> Tensor:
    return column(a).to(v.dtype) * v


def _eps(like: Tensor) -> float:
    return torch.finfo(like.dtype).eps
