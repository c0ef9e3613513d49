"""A Krylov space as data: what a backend may do in one call a product."""

from __future__ import annotations

from typing import Protocol

from torch import Tensor


class KrylovSpace(Protocol):
    """An orthonormal basis of each sample's Krylov space of A and g, for GMRES.

    Each vector is the last one's product with A, made orthogonal to all before (twice: rounding
    parts the first result from them). A sample whose least residual over its space is within its
    limit needs no more products: its minimiser stays that of its own dimension.
    """

    def extend(self, product: Tensor | None) -> Tensor | None:
        """Take in A v, ``[batch, n]``, of the vector v that was returned last.

        Arguments:
            product: A v; None at first.

        Returns:
            The next vector, ``[batch, n]``, which may not be written to; it means nothing for
            samples that need none. None where no sample does, or at the largest dimension.
        """
        ...

    def minimise(self) -> Tensor:
        """The s in each space of smallest ``|g - A s|``, ``[batch, n]``."""
        ...

    @property
    def size(self) -> int:
        """Products taken in."""
        ...

    @property
    def steps(self) -> Tensor:
        """``[batch]`` int64, products that each sample used."""
        ...
