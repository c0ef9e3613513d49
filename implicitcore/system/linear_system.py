"""The linear system of a backward pass, as a system that any root solver takes."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from implicitcore.backends.base import Residual
from implicitcore.system.evaluation import Evaluation
from implicitcore.system.linearization import Linearization
from implicitcore.system.system import System
from implicitcore.tensors import host
from implicitcore.tensors.norms import column, fits, norm, power_of_two


@dataclass(eq=False)
class LinearSystem(System):
    """The linear fixed point u = J^T u + v of a backward pass.

    Its evaluations are vector-Jacobian products. Its tolerance is relative to ``|v|``, so that a
    scaled loss gets an equally accurate gradient. A
    solver that is given one may trust its own residuals, for g is affine in u.

    Attributes:
        jacobian: J, at the equilibrium.
        v: the incoming gradient, ``[batch, n]``, in the unit.
        unit: ``[batch]``, the power of two that v and u are multiples of; None where that is 1.
        v_norm: ``[batch]``.
    """

    jacobian: Linearization
    v: Tensor
    v_norm: Tensor
    unit: Tensor | None

    @classmethod
    def transposed(
        cls, system: System, jacobian: Linearization, v: Tensor, size: Tensor | None = None
    ) -> LinearSystem:
        """The system of v in the backward pass of another one, counting by itself.

        Where norms need it in units of the largest entry of v: a gradient has any size, and its
        square none. Processes that stop together stay in their units, for their samples may depend
        on each other.

        Arguments:
            system: the other one.
            jacobian: J, at its solution.
            v: ``[batch, n]``.
            size: the norms of v, where they are known to need no units.
        """
        problem, context = system.problem, system.context.recounted()
        if size is not None:
            return cls(problem, context, jacobian, v, size, None)
        v_norm = norm(v.detach())
        alone = context.scope.group is None
        if not alone or (host.on_host(v) and fits(v_norm, v.real.dtype)):
            return cls(problem, context, jacobian, v, v_norm, None)
        size = v.detach().abs().amax(1) if v.shape[1] else v_norm
        known = (size > 0) & size.isfinite()
        unit = torch.where(known, power_of_two(size), 1).to(size.dtype)
        scaled = v / column(unit).to(v.dtype)
        return cls(problem, context, jacobian, scaled, norm(scaled.detach()), unit)

    def solution(self, u: Tensor) -> Tensor:
        """What is a solution of this system, in the units of the incoming gradient."""
        return u if self.unit is None else u * column(self.unit).to(u.dtype)

    def absolute(self, atol: float) -> Tensor | float:
        """See :meth:`System.absolute`."""
        return atol if self.unit is None or not atol else atol / self.unit

    def initial(self) -> Evaluation:
        """u = 0, where the residual is v: no evaluation."""
        return Evaluation(
            torch.zeros_like(self.v), self.v, Residual(self.v, self.v_norm, self.v_norm)
        )

    def update(self, z: Tensor) -> Tensor:
        """J^T z + v."""
        self.context.counter.evaluations += 1
        return self.jacobian.vjp(z) + self.v

    def evaluate(self, z: Tensor, out: Tensor | None = None) -> Evaluation:
        """See :meth:`System.evaluate`."""
        fz = self.update(z)
        return Evaluation(z, fz, self.residual(z, fz, out=out))

    def velocity(self, t: Tensor, z: Tensor) -> Tensor:
        """The residual J^T z + v - z, whose steady state is the solution."""
        del t
        return self.update(z) - z

    def residual(
        self, z: Tensor, fz: Tensor, g: Tensor | None = None, out: Tensor | None = None
    ) -> Residual:
        """g and ``|g|``; ``|f(z)|`` is not used, and ``|v|`` stands in for it."""
        del g
        g = fz - z if out is None else torch.sub(fz, z, out=out)
        return Residual(g, norm(g), self.v_norm)

    def scale(self, update_norm: Tensor, start_norm: Tensor) -> Tensor:
        """``|v|``."""
        del update_norm, start_norm
        return self.v_norm

    def stop_scale(self) -> Tensor:
        """See :meth:`System.stop_scale`."""
        return self.v_norm

    def map(self, z: Tensor) -> tuple[Tensor, None]:
        """See :meth:`System.map`."""
        return self.update(z), None

    def tolerance(self, tol: float) -> float:
        """``tol``, but no less than the products can meet.

        Under autocast they are rounded to its dtype, and of a state of several to theirs.
        """
        context = self.context
        return context.tolerance(tol, 1 / 2) if context.autocast or context.dtypes else tol

    def compacts(self, active: int, batch: int) -> bool:
        """At most half: to leave costs an evaluation of those that stay."""
        return 2 * active <= batch

    def linearize(self, z: Tensor) -> Linearization:
        """The system is linear: the same products at every z, and no evaluation."""
        return Transposed(self, z, self.jacobian)


class Products(Linearization):
    """Products that are made of another Jacobian's, of the whole batch."""

    def __init__(self, system: System, point: Tensor, jacobian: Linearization) -> None:
        super().__init__(system, point, point)  # which is not differentiated
        self.jacobian = jacobian

    def evaluation(self, z: Tensor) -> Evaluation:
        """f was not evaluated for them."""
        return self.system.evaluate(z)

    def residual(self, z: Tensor) -> Residual:
        """See :meth:`evaluation`."""
        return self.evaluation(z).residual

    def restrict(self, rows: Tensor) -> Linearization:
        """A product still costs one of the whole batch."""
        return _Embedded(self, rows)


class Transposed(Products):
    """Products with J^T, whose products are those of J the other way round."""

    def vjp(self, v: Tensor) -> Tensor:
        self.counter.evaluations += 1
        return self.jacobian.jvp(v)

    def jvp(self, v: Tensor) -> Tensor:
        self.counter.evaluations += 1
        return self.jacobian.vjp(v)

    def matrix(self) -> Tensor:
        inner = self.jacobian.system
        before = inner.evaluations
        matrix = self.jacobian.matrix().transpose(1, 2)
        self.system.evaluations += inner.evaluations - before
        return matrix


class _Embedded(Products):
    """Products for some samples, as those of the whole batch with zeros for the others."""

    def __init__(self, jacobian: Linearization, rows: Tensor) -> None:
        super().__init__(jacobian.system, jacobian.point.index_select(0, rows), jacobian)
        self.rows = rows

    def vjp(self, v: Tensor) -> Tensor:
        return self._pick(self.jacobian.vjp(self._spread(v)))

    def jvp(self, v: Tensor) -> Tensor:
        return self._pick(self.jacobian.jvp(self._spread(v)))

    def matrix(self) -> Tensor:
        return self._pick(self.jacobian.matrix())

    def _spread(self, v: Tensor) -> Tensor:
        return v.new_zeros(self.jacobian.point.shape).index_copy(0, self.rows, v)

    def _pick(self, product: Tensor) -> Tensor:
        return product.index_select(0, self.rows)
