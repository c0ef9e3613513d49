"""The implicit gradient: one linear solve at the equilibrium."""

from __future__ import annotations

import copy
import warnings
from dataclasses import dataclass, replace
from typing import Any, ClassVar, final

import torch
from torch import Tensor

from implicitcore.backends.base import Residual
from implicitcore.errors import ConvergenceWarning, GradientError
from implicitcore.gradients.base import GradientStrategy, Solve, require_equilibrium
from implicitcore.norms import norm
from implicitcore.options import Options
from implicitcore.root_solvers.base import RootSolver
from implicitcore.root_solvers.gmres import GMRES
from implicitcore.solution import Backward, Solution, Status
from implicitcore.system import Linearization, System


@final
@dataclass(frozen=True)
class Implicit(Options, GradientStrategy):
    """Differentiate the equilibrium z = f(z, x) itself: solve (I - J)^T u = v, then u^T df gives theta and x.

    J = df/dz at z, v = dL/dz. Memory does not grow with the number of steps, and z0 gets no gradient, for an equilibrium
    does not depend on it. The forward solve runs without a graph and f is evaluated once more, with one. The gradient is
    as exact as the forward and the backward solve: both tolerances count.

    Attributes:
        solver: any root solver; its tolerance is relative to the 2-norm of v, per sample. ``GMRES`` needs the fewest products.

    Raises:
        GradientError: on a second derivative.

    Reference:
        Bai, Kolter, Koltun, Deep Equilibrium Models, arXiv 1909.01377; backward by GMRES: arXiv 2201.12240.
    """

    solver: RootSolver = GMRES(tol=1e-5)

    def run(self, solve: Solve, system: System, z0: Tensor) -> Solution:
        """See :meth:`GradientStrategy.run`."""
        require_equilibrium(solve, self)
        with torch.no_grad():
            solution = solve(system, z0)
        if not torch.is_grad_enabled():
            return solution
        jacobian = system.linearize(solution.z.detach())
        backward = _BackwardSolve(self.solver, system, jacobian, solution.backward)
        z = _Attach.apply(jacobian.fz, solution.z, backward)
        return replace(solution, z=z, evaluations=system.evaluations)


class LinearSystem(System):
    """The linear fixed point u = J^T u + v of a backward pass, whose evaluations are vector-Jacobian products.

    Its tolerance is relative to ``|v|``, so that a scaled loss gets an equally accurate gradient.

    Arguments:
        system: the forward system, for its backend.
        jacobian: J, at the equilibrium.
        v: the incoming gradient, ``[batch, n]``.
    """

    linear: ClassVar[bool] = True

    def __init__(self, system: System, jacobian: Linearization, v: Tensor) -> None:
        super().__init__(system.dynamics, system.x, system.packing, backend=system.backend)
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

    def residual(self, z: Tensor, fz: Tensor) -> Residual:
        """g and ``|g|``; ``|f(z)|`` is not used, and ``|v|`` stands in for it."""
        memo = self._residual
        if memo is None or memo[0] is not z or memo[1] is not fz:
            g = fz - z
            memo = self._residual = (z, fz, False, Residual(g, norm(g), self.v_norm))
        return memo[3]

    def scale(self, update_norm: Tensor, start_norm: Tensor) -> Tensor:
        """``|v|``."""
        del update_norm, start_norm
        return self.v_norm

    def select(self, index: Tensor) -> LinearSystem:
        """See :meth:`System.select`; a product still costs one of the whole batch."""
        part = copy.copy(self)
        part.jacobian = _Selected(self.jacobian, index)
        part.packing = replace(self.packing, batch=len(index))
        part.v, part.v_norm, part.zero = (tensor.index_select(0, index) for tensor in (self.v, self.v_norm, self.zero))
        part._residual = None
        return part

    def linearize(self, z: Tensor) -> Linearization:
        """The system is linear: the same products at every z, and no evaluation."""
        return _Transposed(self, z, self.jacobian)


class _Transposed(Linearization):
    """Products with J^T, whose products are those of J the other way round."""

    def __init__(self, system: LinearSystem, point: Tensor, jacobian: Linearization) -> None:
        super().__init__(system, point, point)
        self.jacobian = jacobian

    def vjp(self, v: Tensor) -> Tensor:
        self.system.evaluations += 1
        return self.jacobian.jvp(v)

    def jvp(self, v: Tensor) -> Tensor:
        self.system.evaluations += 1
        return self.jacobian.vjp(v)

    def matrix(self) -> Tensor:
        inner = self.jacobian.system
        before = inner.evaluations
        matrix = self.jacobian.matrix().transpose(1, 2)
        self.system.evaluations += inner.evaluations - before
        return matrix


class _Selected(Linearization):
    """Products for some samples, as those of the whole batch with zeros for the others."""

    def __init__(self, jacobian: Linearization, index: Tensor) -> None:
        super().__init__(jacobian.system, jacobian.point.index_select(0, index), jacobian.fz.index_select(0, index))
        self.jacobian, self.index = jacobian, index

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


@dataclass(frozen=True)
class _BackwardSolve:
    """v -> u with (I - J)^T u = v, at the equilibrium."""

    solver: RootSolver
    system: System
    jacobian: Linearization
    record: Backward

    def __call__(self, v: Tensor) -> Tensor:
        linear = LinearSystem(self.system, self.jacobian, v)
        solution = self.solver.solve(linear, linear.zero)
        self._note(linear, solution)
        return solution.z

    def _note(self, linear: LinearSystem, solution: Solution) -> None:
        record, size = self.record, linear.v_norm.clamp(min=torch.finfo(linear.v_norm.dtype).tiny)
        record.vjps += linear.evaluations
        record.status = solution.status
        record.residual = None if solution.residual is None else solution.residual / size
        failed = int((solution.status != Status.CONVERGED).sum())
        if failed:
            worst = "" if record.residual is None else f"; worst relative residual {record.residual.max().item():.3g}"
            message = (
                f"the backward solve of {failed} of {len(solution.status)} samples did not converge{worst}: their gradients are inexact"
            )
            warnings.warn(message, ConvergenceWarning, stacklevel=2)


class _Attach(torch.autograd.Function):
    """The value z, whose gradient v reaches the graph of fz = f(z) as u = (I - J)^-T v."""

    @staticmethod
    def forward(ctx: Any, fz: Tensor, z: Tensor, backward: _BackwardSolve) -> Tensor:
        del fz
        ctx.solve = backward
        return z.view_as(z)

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Any) -> Any:
        if torch.is_grad_enabled():
            raise GradientError("implicit gives first derivatives only; use unrolled for a second derivative (create_graph=True)")
        return ctx.solve(grad_outputs[0]), None, None
