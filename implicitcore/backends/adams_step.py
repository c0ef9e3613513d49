"""A step of an Adams method as data: what a backend may do in one call before and one after f."""

from __future__ import annotations

from functools import cache
from typing import NamedTuple, Protocol

import torch
from torch import Tensor


class AdamsPast(NamedTuple):
    """What a step needs of the ones before: ``rows`` of them, at least ``max_order``."""

    differences: Tensor  # [batch, rows, n], Phi_0 .. at t; Phi_0 is the velocity
    # [batch, rows], |t - t_i| of the last times; positive, and unused where no step was made yet
    gaps: Tensor
    order: Tensor  # [batch] int64, of the next step; 0 before the first, which is of order 1


class AdamsAttempt(NamedTuple):
    """A step of :class:`~implicitcore.Adams` that is to be taken."""

    max_order: int  # highest order of the next step
    z: Tensor  # [batch, n]
    dt: Tensor  # [batch], zero for a sample that takes no step
    past: AdamsPast
    # rtol and atol: the order is chosen by errors in units of atol + rtol max(|z|, |z_next|)
    tolerance: tuple[float, float]


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


@cache
def gauss(count: int) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Nodes and weights of Gauss' quadrature on [0, 1], exact for degree 2 count - 1.

    By the eigenvectors of the Jacobi matrix of Legendre's polynomials.

    Returns:
        The nodes, ascending, and their weights.

    Reference:
        Golub, Welsch, Calculation of Gauss Quadrature Rules, Math. Comp. 23 (1969), p. 221-230.
    """
    with torch.inference_mode(False):
        off = torch.arange(1.0, count, dtype=torch.float64, device="cpu")
        off = off / (4 * off * off - 1).sqrt()
        nodes, vectors = torch.linalg.eigh(off.diag(1) + off.diag(-1))
        return tuple(((1 + nodes) / 2).tolist()), tuple(vectors[0].square().tolist())
