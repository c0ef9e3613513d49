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
    """

    def __init__(
        self,
        backend: Backend,
        product: Callable[[Tensor], Tensor],
        g: Tensor,
        limit: Tensor,
        most: int,
    ) -> None:
        self.backend, self.product, self.g = backend, product, g
        self.beta = norm(g)
        # The residual is above the limit where 1 + |w|^2 is below this; never, where it is a NaN.
        self.bound = (self.beta.detach() / limit).square()
        self.length = torch.ones_like(self.beta)  # 1 + |w|^2
        self.columns: list[tuple[Tensor, Tensor]] = []  # of H, the last entry apart
        self.w: list[Tensor] = []
        self.used: Tensor | int = 0
        self.basis = History.like(g, most)
        self._run(most)

    def _run(self, most: int) -> None:
        row, size = self.g.unsqueeze(1), self.beta.clamp(min=torch.finfo(self.beta.dtype).tiny)
        # A device is asked before every fourth product whether a sample needs another one.
        on_host = host.on_host(self.beta)
        every, whole = 1 if on_host else CHECK_EVERY, False
        while self.size < most:
            if self.size % every == 0:
                left = int(self._active().sum())
                if not left:
                    return
                whole = on_host and left == len(self.g)
            # Here, and not after a product: that of the last one is never made.
            self.basis.append_quotient(row, size.view(-1, 1, 1))
            row, size = self._extend(whole)

    @property
    def size(self) -> int:
        """Products spent."""
        return len(self.columns)

    @property
    def steps(self) -> Tensor:
        """``[batch]``, products that each sample used."""
        if isinstance(self.used, Tensor):
            return self.used
        return torch.full_like(self.beta, self.used, dtype=torch.int64)

    def _active(self) -> Tensor:
        return self.length < self.bound

    def _extend(self, whole: bool) -> tuple[Tensor, Tensor]:
        """One product, orthogonalised twice against the basis.

        ``whole``: every sample is active. What is left of it ``[batch, 1, n]``, and its size.
        """
        backend, rows = self.backend, self.basis.rows()
        product = self.product(self.basis.last().squeeze(1))
        row = product.unsqueeze(1)
        h = backend.inner_products(rows, row)
        row = backend.axpy_history(row, h, rows, -1)
        again = backend.inner_products(rows, row)
        row = backend.axpy_history(row, again, rows, -1)
        h = (h + again).squeeze(1).to(self.beta.dtype)
        eps = torch.finfo(h.dtype)
        below = torch.maximum(norm(row.squeeze(1)), eps.eps * norm(product)).clamp(
            min=eps.tiny
        )  # a zero is a lucky breakdown: solved
        self._grow(h, below, whole)
        return row, below

    def _grow(self, h: Tensor, below: Tensor, whole: bool) -> None:
        size, w = self.size, h[:, 0]
        if size:
            w = w - (h.narrow(1, 1, size) * torch.stack(self.w, 1)).sum(1)
        w = w / below
        if not whole:
            # A sample that is done gets zeros from here on: its minimiser stays the one of its own
            # dimension.
            active = self._active()
            w = torch.where(active, w, 0)
            self.used = active.long() + self.used
        else:
            self.used += 1
        self.columns.append((h, below))
        self.w.append(w)
        self.length = torch.addcmul(self.length, w, w)

    def minimise(self) -> Tensor:
        """The s in span(V) of smallest ``|g - A s|``, ``[batch, n]``."""
        size = self.size
        if not size:
            return torch.zeros_like(self.g)
        scale = self.beta / self.length
        if size == 1:
            y = (self.w[0] * scale / self.columns[0][1])[:, None, None]
        else:
            t = torch.stack(self.w, 1) * column(scale)
            y = torch.linalg.solve_triangular(self._triangle(), t.unsqueeze(2), upper=True).mT
        rows = self.basis.written()
        return self.backend.axpy_history(None, y.to(rows.dtype), rows).squeeze(1)

    def _triangle(self) -> Tensor:
        """R, ``[batch, size, size]``; what is below its diagonal is not read."""
        rows, diagonal = zip(*self.columns, strict=True)
        width = max(self.size + 1, rows[-1].shape[1])
        padded = [
            h if h.shape[1] == width else torch.nn.functional.pad(h, (0, width - h.shape[1]))
            for h in rows
        ]
        above = torch.stack(padded, 1).narrow(2, 1, self.size)
        return torch.diagonal_scatter(above, torch.stack(diagonal, 1), 0, 1, 2).mT
