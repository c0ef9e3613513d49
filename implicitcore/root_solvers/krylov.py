"""One cycle of GMRES: the least residual over a Krylov space, per sample."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from implicitcore.backends.base import Backend
from implicitcore.root_solvers.history import History
from implicitcore.root_solvers.stop_criterion import CHECK_EVERY
from implicitcore.tensors import host
from implicitcore.tensors.norms import column, norm


class Krylov:
    """An orthonormal basis V of each sample's Krylov space of A and g, with A V_k = V_{k+1} H.

    H has the first row h and, below it, the triangle R. With w = R^-T h the smallest residual over
    the space is ``|g| / sqrt(1 + |w|^2)``, reached at R y = ``|g|`` w / (1 + ``|w|^2``): w grows by
    one entry a product, without rotations.

    Arguments:
        backend: orthogonalises.
        product: v -> A v, ``[batch, n]``.
        g: the residual to make small, ``[batch, n]``.
        limit: ``[batch]``, in the 2-norm: a sample whose residual is no larger needs no more
            products; infinite leaves it out.
        most: largest dimension.

    Attributes:
        steps: ``[batch]``, products that each sample used.
    """

    def __init__(
        self,
        backend: Backend,
        product: Callable[[Tensor], Tensor],
        g: Tensor,
        limit: Tensor,
        most: int,
    ) -> None:
        self.backend, self.product, self.g, self.limit = backend, product, g, limit
        self.basis = History.like(g, most + 1)
        self.columns: list[Tensor] = []
        self.w: list[Tensor] = []
        self.beta = norm(g)
        self.active = self.beta > limit
        self.steps = torch.zeros_like(self.active, dtype=torch.int64)
        self._append(g, self.beta.clamp(min=torch.finfo(self.beta.dtype).tiny))
        self.length = torch.ones_like(self.beta)  # 1 + |w|^2, without a graph
        # A device is asked before every fourth product whether a sample needs another one.
        every = 1 if host.on_host(self.beta) else CHECK_EVERY
        while self.size < most and (self.size % every or bool(self.active.any())):
            self._extend()

    @property
    def size(self) -> int:
        """Products spent."""
        return len(self.columns)

    def _append(self, vector: Tensor, size: Tensor) -> None:
        self.basis.append((vector / column(size).to(vector.dtype)).unsqueeze(1))

    def _extend(self) -> None:
        """One product, orthogonalised twice against the basis."""
        backend, rows, size = self.backend, self.basis.rows(), self.basis.count
        product = self.product(self.basis.last().squeeze(1))
        row = product.unsqueeze(1)
        h = backend.inner_products(rows, row)
        row = backend.axpy_history(row, h, rows, -1)
        again = backend.inner_products(rows, row)
        a = backend.axpy_history(row, again, rows, -1).squeeze(1)
        h = (h + again)[:, 0, :size].to(self.beta.dtype)
        eps = torch.finfo(h.dtype)
        below = torch.maximum(norm(a), eps.eps * norm(product)).clamp(
            min=eps.tiny
        )  # a zero is a lucky breakdown: solved
        self._append(a, below)
        self._grow(h, below)

    def _grow(self, h: Tensor, below: Tensor) -> None:
        self.steps += self.active
        self.columns.append(torch.cat((h, column(below)), 1))
        solved = (h[:, 1:] * torch.stack(self.w, 1)).sum(1) if self.w else 0
        # A sample that is done gets zeros from here on: its minimiser stays the one of its own
        # dimension.
        self.w.append(torch.where(self.active, (h[:, 0] - solved) / below, 0))
        with torch.no_grad():
            w = self.w[-1]
            self.length = torch.addcmul(self.length, w, w)
            smallest = self.beta / self.length.sqrt()
            self.active = self.active & (smallest > self.limit)

    def minimise(self) -> Tensor:
        """The s in span(V) of smallest ``|g - A s|``, ``[batch, n]``."""
        if not self.columns:
            return torch.zeros_like(self.g)
        w = torch.stack(self.w, 1)
        t = w * column(self.beta / (1 + w.square().sum(1)))
        hessenberg = torch.stack(
            [
                torch.nn.functional.pad(c[:, 1:], (0, self.size + 1 - c.shape[1]))
                for c in self.columns
            ],
            2,
        )
        y = torch.linalg.solve_triangular(hessenberg, t.unsqueeze(2), upper=True)
        rows = self.basis.written()[:, :-1]
        return self.backend.axpy_history(None, y.mT.to(rows.dtype), rows).squeeze(1)
