"""A step of an Adams method as data: what a backend may do in one call before and one after f."""

from __future__ import annotations

from typing import NamedTuple, Protocol

from torch import Tensor


class AdamsPast(NamedTuple):
    """What a step needs of the ones before: ``rows`` of them, at least ``max_order``."""

    differences: Tensor  # [batch, rows, n], Phi_0 .. at t; Phi_0 is the velocity
    # [batch, rows], |t - t_i| of the last times; positive, and unused where no step was made yet
    gaps: Tensor
    order: Tensor  # [batch] int64, of the next step; 0 before the first, which is of order 1


class AdamsStep(Protocol):
    """One step of :class:`~implicitcore.Adams`, which says what is computed; without a graph."""

    @property
    def z(self) -> Tensor:
        """Its end, ``[batch, n]``."""
        ...

    def correct(self, velocity: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
        """With the velocity ``[batch, n]`` there.

        Returns:
            The estimate of the error ``[batch, n]``, the three tensors of :class:`AdamsPast` for
            the next step, and the power of dt that the error goes with, ``[batch]`` int64.
        """
        ...
