"""One cycle of GMRES: the least residual over a Krylov space, per sample."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from implicitcore.backends.base import Backend
from implicitcore.backends.krylov_space import KrylovSpace
from implicitcore.root_solvers.history import History
from implicitcore.root_solvers.stop_criterion import CHECK_EVERY
from implicitcore.tensors import host
from implicitcore.tensors.norms import column, norm
from implicitcore.tensors.transforms import transformed


def krylov_space(
    backend: Backend, product: Callable[[Tensor], Tensor], g: Tensor, limit: Tensor, most: int
) -> KrylovSpace:
    """The space in which each sample's residual is within its limit, or of dimension ``most``.

    Arguments:
        backend: makes it, or orthogonalises.
        product: v -> A v, ``[batch, n]``.
        g: the residual to make small, ``[batch, n]``.
        limit: ``[batch]``, in the 2-norm: a sample whose residual is no larger needs no more
            products; infinite leaves it out.
        most: largest dimension.
    """
    space = backend.krylov_space(g, limit, most) or Krylov(backend, g, limit, most)
    v = space.extend(None)
    while v is not None:
        v = space.extend(product(v))
    return space


class Krylov:
    """A Krylov space in torch, the reference (see :class:`KrylovSpace`), with A V_k = V_{k+1} H.

    H has the first row h and, below it, the triangle R. With w = R^-T h the smallest residual over
    the space is ``|g| / sqrt(1 + |w|^2)``, reached at R y = ``|g|`` w / (1 + ``|w|^2``): w grows by
    one entry a product, without rotations.

    Arguments:
        backend: orthogonalises.
        g: see :func:`krylov_space`.
        limit: the same.
        most: the same.
    """

    def __init__(self, backend: Backend, g: Tensor, limit: Tensor, most: int) -> None:
        self.backend, self.g, self.most = backend, g, most
        self.beta = norm(g)
        # The residual is above the limit where 1 + |w|^2 is below this; never, where it is a NaN.
        self.bound = (self.beta.detach() / limit).square()
        self.length = torch.ones_like(self.beta)  # 1 + |w|^2
        # Of H, the last entry d of each apart, and w times d.
        self.columns: list[tuple[Tensor, Tensor, Tensor]] = []
        self.w: list[Tensor] = []
        self.used: Tensor | int = 0
        self.basis = History.like(g, most)
        # A device is asked before every fourth product whether a sample needs another one.
        self.on_host = host.on_host(g)
        self.whole = False  # every sample needs more products, as far as is known

    def extend(self, product: Tensor | None) -> Tensor | None:
        """See :meth:`KrylovSpace.extend`."""
        if product is None:
            row, size = self.g.unsqueeze(1), self.beta.clamp(min=torch.finfo(self.beta.dtype).tiny)
        else:
            row, size = self._orthogonal(product)
        if self.size == self.most or not self._goes_on():
            return None
        # Here, and not where it is found: that of the last product is never made.
        self.basis.append_quotient(row, size.view(-1, 1, 1))
        return self.basis.last().squeeze(1)

    def _goes_on(self) -> bool:
        """Whether a sample needs another product."""
        if not self.on_host and self.size % CHECK_EVERY:
            return True
        left = int(self._active().sum())
        self.whole = self.on_host and left == len(self.g)
        return left > 0

    @property
    def size(self) -> int:
        """See :attr:`KrylovSpace.size`."""
        return len(self.columns)

    @property
    def steps(self) -> Tensor:
        """See :attr:`KrylovSpace.steps`."""
        if isinstance(self.used, Tensor):
            return self.used
        return torch.full_like(self.beta, self.used, dtype=torch.int64)

    def _active(self) -> Tensor:
        return self.length < self.bound

    def _orthogonal(self, product: Tensor) -> tuple[Tensor, Tensor]:
        """What is left of a product beside the basis, ``[batch, 1, n]``, and its size."""
        backend, rows = self.backend, self.basis.rows()
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
        self._grow(h, below)
        return row, below

    def _grow(self, h: Tensor, below: Tensor) -> None:
        size, w = self.size, h[:, 0]
        if size:
            w = w - (h.narrow(1, 1, size) * torch.stack(self.w, 1)).sum(1)
        if not self.whole:
            # A sample that is done gets zeros from here on: its minimiser stays the one of its own
            # dimension.
            active = self._active()
            w = torch.where(active, w, 0)
            self.used = active.long() + self.used
        else:
            self.used += 1
        self.columns.append((h, below, w))
        w = w / below
        self.w.append(w)
        self.length = torch.addcmul(self.length, w, w)

    def minimise(self) -> Tensor:
        """See :meth:`KrylovSpace.minimise`."""
        size = self.size
        if not size:
            return torch.zeros_like(self.g)
        if self.length.requires_grad or transformed():
            y = self._differentiable()
        elif size == 1:
            y = (self.w[0] * (self.beta / self.length) / self.columns[0][1])[:, None, None]
        else:
            t = torch.stack(self.w, 1) * column(self.beta / self.length)
            y = torch.linalg.solve_triangular(self._triangle(), t.unsqueeze(2), upper=True).mT
        rows = self.basis.written()
        return self.backend.axpy_history(None, y.to(rows.dtype), rows).squeeze(1)

    def _differentiable(self) -> Tensor:
        """The same y, without two derivatives that are large and cancel.

        Where the space holds the solution, the last diagonal d of R is rounding, and the last w =
        a / d as large as 1 / d: y = w / (d (l + w^2)) is a / (d^2 l + a^2), which is smooth in d.
        """
        _, below, above = zip(*self.columns, strict=True)
        d, a = torch.stack(below, 1), torch.stack(above, 1)
        squares = torch.stack(self.w, 1).square()
        others = 1 + _before(squares) + _before(squares.flip(1)).flip(1)
        size = torch.maximum(d, a.abs()).detach()  # so that no square underflows
        d, a, t = d / size, a / size, column(self.beta) / size
        right, rows = a * t / (d.square() * others + a.square()), self._triangle()
        rows = rows / torch.diagonal(rows, 0, 1, 2).unsqueeze(2)
        right = right.unsqueeze(2)
        return torch.linalg.solve_triangular(rows, right, upper=True, unitriangular=True).mT

    def _triangle(self) -> Tensor:
        """R, ``[batch, size, size]``; what is below its diagonal is not read."""
        rows, diagonal, _ = zip(*self.columns, strict=True)
        width = max(self.size + 1, rows[-1].shape[1])
        padded = [
            h if h.shape[1] == width else torch.nn.functional.pad(h, (0, width - h.shape[1]))
            for h in rows
        ]
        above = torch.stack(padded, 1).narrow(2, 1, self.size)
        return torch.diagonal_scatter(above, torch.stack(diagonal, 1), 0, 1, 2).mT


def _before(rows: Tensor) -> Tensor:
    """The sums of the entries before each one, ``[batch, size]``."""
    return torch.nn.functional.pad(rows.cumsum(1), (1, -1))
