"""What the Krylov spaces that kernels make have in common: all they remember is on the device."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import ClassVar

import torch
from torch import Tensor

from implicitcore.backends.device_iteration import DeviceIteration
from implicitcore.errors import InputError
from implicitcore.tensors.norms import real_dtype


class DeviceKrylov(ABC):
    """The Krylov spaces of one cycle of GMRES by kernels.

    See :class:`~implicitcore.extend.KrylovSpace`. A derived class launches the kernels
    (:meth:`launch`, :meth:`combine`). The host waits behind the first product, and then behind
    every fourth, for what was so before that one, while the device has work: how many samples need
    no more products goes to pinned memory, and up to four products are taken in for nothing. What
    they are changes no minimiser.

    Arguments:
        g: the residual to make small, ``[batch, n]``.
        limit: ``[batch]``, in the 2-norm; infinite leaves a sample out.
        most: largest dimension.

    Attributes:
        g: contiguous, as all here.
        limit: in the dtype of norms, float32 at least, as ``rest``, ``columns`` and ``reals``.
        basis: ``[most, batch, n]``, in the dtype of the state: each vector is one piece of memory.
        rest: ``[batch, n]``, what the first pass leaves of a product.
        columns: ``[batch, most, most + 1]``: of each product the column of the triangle R, and at
            the end its entry of w.
        reals: ``[most + 3, batch]``: ``|g|``, its square over that of the limit, and 1 + ``|w|^2``
            before each product and behind the last.
        counters: ``[batch + 1]`` int64, zero at the start: the products that each sample used, and
            how many samples need no more.
        size: products taken in.
    """

    LOOK_EVERY: ClassVar[int] = 4

    def __init__(self, g: Tensor, limit: Tensor, most: int) -> None:
        (batch, n), real = g.shape, real_dtype(g)
        if tuple(limit.shape) != (batch,):
            raise InputError(
                f"the limits have the shape {tuple(limit.shape)}, expected {(batch,)}, one of each "
                "sample"
            )
        self.g, self.limit, self.most = g.contiguous(), limit.to(real).contiguous(), most
        self.basis = g.new_empty(most, batch, n)
        self.rest = g.new_empty(batch, n, dtype=real)
        self.columns = g.new_empty(batch, most, most + 1, dtype=real)
        self.reals = g.new_empty(most + 3, batch, dtype=real)
        self.counters = torch.zeros(batch + 1, dtype=torch.int64, device=g.device)
        self.size = 0
        self.asked: Callable[[], int] | None = None

    @abstractmethod
    def launch(self, product: Tensor, rows: int, following: Tensor | None) -> None:
        """Take in a product.

        Arguments:
            product: ``[batch, n]`` and contiguous; g itself at first.
            rows: vectors of the basis so far, of which the last is that of the product; none at
                first.
            following: what to write the next vector to, zeros for a sample that did not need this
                product; None where there is none.
        """

    @abstractmethod
    def combine(self, out: Tensor) -> None:
        """Write the minimisers, of one product or more; a NaN where ``|g|`` is not finite."""

    def later(self, number: Tensor) -> Callable[[], int]:
        """See :meth:`DeviceIteration.value_later`."""
        return DeviceIteration.value_later(number)

    def extend(self, product: Tensor | None) -> Tensor | None:
        """See :meth:`KrylovSpace.extend`."""
        if product is None:
            product = self.g
        else:
            if product.shape != self.g.shape or product.dtype != self.g.dtype:
                raise InputError(
                    f"a product is {product.dtype} of shape {tuple(product.shape)}, expected "
                    f"{self.g.dtype} of shape {tuple(self.g.shape)}, as g"
                )
            self.size += 1
        following = self.basis[self.size] if self.size < self.most else None
        self.launch(product.contiguous(), self.size, following)
        return None if following is None or self._all_done() else following

    def _all_done(self) -> bool:
        """Whether no sample needed another product, when the host last asked."""
        asked, self.asked = self.asked, None
        if asked is not None and asked() == len(self.g):
            return True
        if self.size == 0 or self.size % self.LOOK_EVERY == self.LOOK_EVERY - 1:
            self.asked = self.later(self.counters[-1])
        return False

    def minimise(self) -> Tensor:
        """See :meth:`KrylovSpace.minimise`."""
        if not self.size:
            return torch.zeros_like(self.g)
        out = torch.empty_like(self.g)
        self.combine(out)
        return out

    @property
    def steps(self) -> Tensor:
        """See :attr:`KrylovSpace.steps`."""
        return self.counters[:-1].clone()
