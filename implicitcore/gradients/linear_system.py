"""The linear system of a backward pass, as a system that any root solver takes."""

from __future__ import annotations

import copy
from dataclasses import replace
from typing import ClassVar

import torch
from torch import Tensor

from implicitcore.backends.base import Residual
from implicitcore.system.linearization import Linearization
from implicitcore.system.system import System
from implicitcore.tensors.norms import norm


class LinearSystem(System):
    """The linear fixed point u = J^T u + v of a backward pass, whose evaluations are vector-Jacobian products.

    Its tolerance is relative to ``|v|``, so that a scaled loss gets an equally accurate gradient.

    Arguments:
        system: the forward system, for its backend.
        jacobian: J, at the equilibrium.
        v: the incoming gradient, ``[batch, n]``.
    """

    linear: ClassVar[bool] = True
    compact_below: ClassVar[float] = 1 / 2  # to leave costs an evaluation of those that stay

    def __init__(self, system: System, jacobian: Linearization, v: Tensor) -> None:
        super().__init__(system.dynamics, system.x, system.packing, backend=system.backend)
        self.scope, self.autocast = system.scope, system.autocast
        self.tol_floor = max(
            (torch.finfo(dtype).eps / 2 for _, dtype in system.autocast), default=0.0
        )
        self.jacobian, self.v, self.v_norm = jacobian, v, norm(v)
        self.zero = torch.zeros_like(v)

    def update(self, z: Tensor) -> Tensor:
        """J^T z + v; free at ``zero``, where every solve starts."""
        if z is self.zero:
            return self.v
        self.evaluations += 1
        return self.jacobian.vjp(z) + self.v

    def velocity(self, t: Tensor, z: Tensor) -> Tensor:
        """The residual J^T z + v - z, whose steady state is the solution."""
        del t
        return self.update(z) - z

    def residual(self, z: Tensor, fz: Tensor, out: Tensor | None = None) -> Residual:
        """g and ``|g|``; ``|f(z)|`` is not used, and ``|v|`` stands in for it."""
        memo = self._residual
        if memo is None or memo[0] is not z or memo[1] is not fz:
            g = fz - z if out is None else torch.sub(fz, z, out=out)
            memo = self._residual = (z, fz, False, Residual(g, norm(g), self.v_norm))
        return memo[3]

    def scale(self, update_norm: Tensor, start_norm: Tensor) -> Tensor:
        """``|v|``."""
        del update_norm, start_norm
        return self.v_norm

    def select(self, index: Tensor) -> LinearSystem:
        """See :meth:`System.select`."""
        part = copy.copy(self)
        part.jacobian = self.jacobian.select(index)
        part.packing = replace(self.packing, batch=len(index))
        part.v, part.v_norm, part.zero = (
            tensor.index_select(0, index) for tensor in (self.v, self.v_norm, self.zero)
        )
        part._residual = None
        return part

    def linearize(self, z: Tensor) -> Linearization:
        """The system is linear: the same products at every z, and no evaluation."""
        return Transposed(self, z, self.jacobian)


class Transposed(Linearization):
    """Products with J^T, whose products are those of J the other way round."""

    def __init__(self, system: System, point: Tensor, jacobian: Linearization) -> None:
        super().__init__(system, point, point)
        self.jacobian = jacobian

    def vjp(self, v: Tensor) -> Tensor:
        self.system.evaluations += 1
        return self.jacobian.jvp(v)

    def jvp(self, v: Tensor) -> Tensor:
        self.system.evaluations += 1
        return self.jacobian.vjp(v)

    def select(self, index: Tensor) -> Linearization:
        """A product still costs one of the whole batch."""
        return _Selected(self, index)

    def matrix(self) -> Tensor:
        inner = self.jacobian.system
        before = inner.evaluations
        matrix = self.jacobian.matrix().transpose(1, 2)
        self.system.evaluations += inner.evaluations - before
        return matrix


class _Selected(Linearization):
    """Products for some samples, as those of the whole batch with zeros for the others."""

    def __init__(self, jacobian: Linearization, index: Tensor) -> None:
        super().__init__(
            jacobian.system,
            jacobian.point.index_select(0, index),
            jacobian.fz.index_select(0, index),
        )
        self.jacobian, self.index = jacobian, index

    def select(self, index: Tensor) -> Linearization:
        return _Selected(self.jacobian, self.index.index_select(0, index))

    def vjp(self, v: Tensor) -> Tensor:
        return self._pick(self.jacobian.vjp(self._spread(v)))

    def jvp(self, v: Tensor) -> Tensor:
        return self._pick(self.jacobian.jvp(self._spread(v)))

    def matrix(self) -> Tensor:
        return self._pick(self.jacobian.matrix())

    def _spread(self, v: Tensor) -> Tensor:
        return v.new_zeros(self.jacobian.point.shape).index_copy(0, self.index, v)

    def _pick(self, product: Tensor) -> Tensor:
        return product.index_select(0, self.index)
