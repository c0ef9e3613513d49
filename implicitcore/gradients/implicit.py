"""The implicit gradient: one linear solve at the equilibrium."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, final

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from implicitcore.errors import ConvergenceWarning, GradientError
from implicitcore.gradients.base import GradientStrategy, Solve, equilibrium
from implicitcore.gradients.linear_system import LinearSystem, Transposed
from implicitcore.options.options import Options
from implicitcore.root_solvers.base import RootSolver
from implicitcore.root_solvers.gmres import GMRES
from implicitcore.solution import Backward, Solution, Status
from implicitcore.system.linearization import Linearization
from implicitcore.system.system import System
from implicitcore.tensors.autocast import suspended
from implicitcore.tensors.graph_leaves import graph_leaves, inputs, union


@final
@dataclass(frozen=True)
class Implicit(Options, GradientStrategy):
    """Differentiate the equilibrium z = f(z, x) itself.

    Solve (I - J)^T u = v, then u^T df gives theta and x. J = df/dz at z, v = dL/dz. Memory does not
    grow with the number of steps, and z0 gets no gradient, for an equilibrium does not depend on
    it. The forward solve runs without a graph and f is evaluated once more, with one. The gradient
    is as exact as the forward and the backward solve: both tolerances count. Differentiable twice:
    the linear solve has an implicit gradient of its own, by the same solver.

    Attributes:
        solver: any root solver; its tolerance is relative to the 2-norm of v, per sample. ``GMRES``
            needs the fewest products.

    Raises:
        GradientError: on a third derivative.

    Reference:
        Bai, Kolter, Koltun, Deep Equilibrium Models, arXiv 1909.01377; backward by GMRES: arXiv
        2201.12240.
    """

    solver: RootSolver = GMRES(tol=1e-5)

    def run(self, solve: Solve, system: System, z0: Tensor) -> Solution:
        """See :meth:`GradientStrategy.run`."""
        solution = equilibrium(self, solve, system, z0)
        if not torch.is_grad_enabled():
            return solution
        jacobian = system.linearize(solution.z.detach())
        return attached(solution, BackwardSolve(self.solver, system, jacobian, solution.backward))


def attached(solution: Solution, backward: BackwardSolve) -> Solution:
    """The solution, with a graph that leads through a backward solve."""
    jacobian, system = backward.jacobian, backward.system
    own = union(inputs(system.x))
    z = _Attach.apply(jacobian.fz, solution.z, backward, *union(own, _others(jacobian, own)))
    return solution.amended(z=z, evaluations=system.evaluations)


def _others(jacobian: Linearization, own: Sequence[Tensor]) -> list[Tensor]:
    """The leaves that f depends on beside the point and the tensors of x."""
    return [leaf for leaf in graph_leaves(jacobian.fz, own) if leaf is not jacobian.point]


@dataclass(frozen=True)
class BackwardSolve:
    """v -> u with (I - J)^T u = v, at the equilibrium."""

    solver: RootSolver
    system: System
    jacobian: Linearization
    record: Backward

    @suspended()
    def __call__(self, v: Tensor) -> Tensor:
        linear = LinearSystem(self.system, self.jacobian, v)
        solution = self.solver.solve(linear, self.start(linear))
        self._note(linear, solution)
        return solution.z

    def start(self, linear: LinearSystem) -> Tensor:
        """Where the solve begins: at zero, whose residual is known."""
        return linear.zero

    def differentiable(
        self, v: Tensor, z: Tensor, inputs: Sequence[Tensor]
    ) -> tuple[Tensor | None, ...]:
        """u^T df/dinputs with a graph to v, z and the inputs.

        Raises:
            GradientError: the solve is a backward one already: this would be a third derivative.
        """
        if self.system.linear:
            raise GradientError(
                "implicit gives first and second derivatives; use unrolled for a third"
            )
        self.system.check_function()
        switch = [False]
        own = {
            id(tensor): _Cut.apply(tensor, switch)
            for tensor in pytree.tree_leaves(self.system.x)
            if _differentiable(tensor)
        }
        # In the order of the inputs: those of x come first.
        targets = [*own.values(), *inputs[len(own) :]]
        system = self.system.bind(
            pytree.tree_map(lambda leaf: own.get(id(leaf), leaf), self.system.x)
        )
        point = _Cut.apply(z, switch)
        fz = system.update(point)
        u = self._attached(fz, point, v, targets)
        switch[0] = True
        try:
            return torch.autograd.grad(fz, targets, u, create_graph=True, allow_unused=True)
        finally:
            switch[0] = False

    def _attached(self, fz: Tensor, point: Tensor, v: Tensor, inputs: Sequence[Tensor]) -> Tensor:
        """u with (I - J)^T u = v and its own implicit gradient.

        The equilibrium of u = J^T u + v.
        """
        with torch.no_grad():
            value = self(v)
        start = value.detach().requires_grad_()
        update = (
            torch.autograd.grad(fz, point, start, create_graph=True, materialize_grads=True)[0] + v
        )
        linear = LinearSystem(self.system, self.jacobian, v.detach())
        solve = BackwardSolve(
            self.solver, linear, Transposed(linear, start, self.jacobian), self.record
        )
        return _Attach.apply(update, value, solve, v, point, *inputs)

    def _note(self, linear: LinearSystem, solution: Solution) -> None:
        record, size = self.record, linear.v_norm.clamp(min=torch.finfo(linear.v_norm.dtype).tiny)
        record.vjps += linear.evaluations
        record.status = solution.status
        record.residual = None if solution.residual is None else solution.residual / size
        failed = int((solution.status != Status.CONVERGED).sum())
        if failed:
            worst = (
                ""
                if record.residual is None
                else f"; worst relative residual {record.residual.max().item():.3g}"
            )
            message = (
                f"the backward solve of {failed} of {len(solution.status)} samples did not "
                f"converge{worst}: their gradients are inexact"
            )
            warnings.warn(message, ConvergenceWarning, stacklevel=2)


class _Attach(torch.autograd.Function):
    """The value z, whose gradient v reaches the graph of fz = f(z) as u = (I - J)^-T v.

    A second derivative takes another way: fz hangs on a detached z, which hides that z itself
    moves. So u^T df is then computed afresh at the attached z, for ``inputs``: all that f depends
    on.
    """

    @staticmethod
    def forward(ctx: Any, fz: Tensor, z: Tensor, solve: BackwardSolve, *inputs: Tensor) -> Tensor:
        del fz
        value = z.view_as(z)
        ctx.solve = solve
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(value, *inputs)
        return value

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Any) -> Any:
        v, (z, *inputs) = grad_outputs[0], ctx.saved_tensors
        if v is None:
            return None, None, None, *[None] * len(inputs)
        if torch.is_grad_enabled():
            return None, None, None, *ctx.solve.differentiable(v, z, inputs)
        return ctx.solve(v), None, None, *[None] * len(inputs)


class _Cut(torch.autograd.Function):
    """The identity, which passes no gradient back while its switch is on.

    What lies behind it is another's to differentiate.
    """

    @staticmethod
    def forward(ctx: Any, value: Tensor, switch: list[bool]) -> Tensor:
        ctx.switch = switch
        ctx.set_materialize_grads(False)
        return value.view_as(value)

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Any) -> Any:
        return None if ctx.switch[0] else grad_outputs[0], None


def _differentiable(leaf: object) -> bool:
    return isinstance(leaf, Tensor) and leaf.requires_grad
