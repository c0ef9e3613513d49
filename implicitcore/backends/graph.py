"""Iterations and Krylov spaces as operations of a graph: what a backend may put into one."""

from __future__ import annotations

from typing import NamedTuple, Protocol

from torch import Tensor


class GraphResult(NamedTuple):
    """What a solve in a graph gives."""

    z: Tensor  # [batch, n], the iterate that met the tolerance, or that of least residual
    residual: Tensor  # [batch], its residual
    status: Tensor  # [batch] int8
    steps: Tensor  # [batch] int64, the evaluations until a sample stopped
    evaluations: Tensor  # int64


class RootGraph(Protocol):
    """The iterations of :class:`RootIteration` as operations, each of tensors to new tensors.

    What a solve remembers (its history, its best iterates) is behind the tensor ``state``, which a
    graph neither copies nor writes. It knows of no order but that of tensors: so each operation is
    given the ``going`` of the one before it. Norms take the whole range of their dtype.
    """

    def begin(self, z: Tensor, relative_to: Tensor | None) -> Tensor:
        """The ``state`` of a solve from z, ``[batch, n]``; see ``StopRule.scale`` of the other."""
        ...

    def advance(
        self, state: Tensor, z: Tensor, fz: Tensor, g: Tensor | None, going: Tensor
    ) -> tuple[Tensor, Tensor]:
        """The next iterate, and whether there is one, ``[]``; see :meth:`RootIteration.advance`."""
        ...

    def result(self, state: Tensor, z: Tensor, going: Tensor) -> GraphResult:
        """Where each sample is, after the last iterate."""
        ...


class KrylovGraph(Protocol):
    """The spaces of :class:`KrylovSpace` as operations, as those of :class:`RootGraph`."""

    def begin(self, g: Tensor, limit: Tensor, most: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """The ``state``, the first vector, and whether it needs a product; ``most`` int64."""
        ...

    def extend(self, state: Tensor, product: Tensor, going: Tensor) -> tuple[Tensor, Tensor]:
        """The next vector, and whether it needs a product, ``[]``."""
        ...

    def minimise(self, state: Tensor, v: Tensor, going: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """The minimisers, ``[batch, n]``, the products of each sample, ``[batch]``, and all.

        After the last vector.
        """
        ...
