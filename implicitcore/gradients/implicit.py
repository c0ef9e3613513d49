"""The implicit gradient: one linear solve at the equilibrium."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, final

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from implicitcore.errors import ConvergenceWarning, GradientError
from implicitcore.gradients.base import GradientStrategy, Solve, equilibrium
from implicitcore.options.options import Options
from implicitcore.options.types import Positive
from implicitcore.root_solvers.base import RootSolver
from implicitcore.root_solvers.gmres import GMRES
from implicitcore.root_solvers.judgement import solve_from
from implicitcore.solution import Backward, Solution
from implicitcore.system.coupling import check_residual
from implicitcore.system.evaluation import Evaluation
from implicitcore.system.linear_system import LinearSystem, Transposed
from implicitcore.system.linearization import Linearization
from implicitcore.system.repeated import owner_of, warn_repeatedly
from implicitcore.system.system import System
from implicitcore.tensors.autocast import suspended
from implicitcore.tensors.cotangent import Pullback, attach
from implicitcore.tensors.graph_leaves import graph_leaves, inputs, union
from implicitcore.tensors.norms import column, norm


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
        clip: u is scaled to at most so many times ``|v|``, per sample; None leaves it. Where J
            comes near 1 the gradient of one sample can outgrow those of all others; a contraction
            with rate r has ``|u| <= |v| / (1 - r)``. The gradient is then that of a first
            derivative alone.

    Raises:
        GradientError: on a third derivative, or with ``clip`` on a second.

    Reference:
        Bai, Kolter, Koltun, Deep Equilibrium Models, arXiv 1909.01377; backward by GMRES: arXiv
        2201.12240.
    """

    solver: RootSolver = GMRES(tol=1e-5)
    clip: Positive | None = None

    def run(self, solve: Solve, system: System, z0: Tensor) -> Solution:
        """See :meth:`GradientStrategy.run`."""
        solution = equilibrium(self, solve, system, z0)
        if not torch.is_grad_enabled():
            return solution
        jacobian = system.linearize(solution.z.detach())
        backward = BackwardSolve(self.solver, system, jacobian, solution.backward)
        if self.clip is not None:
            backward = _Clipped(**vars(backward), clip=self.clip)
        return attached(solution, backward)


def attached(solution: Solution, backward: BackwardSolve) -> Solution:
    """The solution, with a graph that leads through a backward solve."""
    jacobian, system = backward.jacobian, backward.system
    check_residual(system, solution, jacobian.evaluation(solution.z).residual)
    own = _own(system.x)
    z = attach(jacobian.fz, solution.z, backward, union(own, _others(jacobian, own)))
    return solution.amended(z=z, evaluations=system.evaluations)


def _own(x: Any) -> list[Tensor]:
    """The tensors of x that get a gradient, each once."""
    return union(inputs(x))


def _others(jacobian: Linearization, own: Sequence[Tensor]) -> list[Tensor]:
    """The leaves that f depends on beside the point and the tensors of x."""
    return [leaf for leaf in graph_leaves(jacobian.fz, own) if leaf is not jacobian.point]


@dataclass(frozen=True, eq=False)
class BackwardSolve(Pullback):
    """v -> u with (I - J)^T u = v, at the equilibrium."""

    solver: RootSolver
    system: System
    jacobian: Linearization
    record: Backward

    @suspended()
    def solve(self, v: Tensor) -> Tensor:
        """u, ``[batch, n]``."""
        linear = LinearSystem.transposed(self.system, self.jacobian, v)
        solution = solve_from(self.solver, linear, self.start(linear))
        self._write_down(linear, solution)
        return linear.solution(solution.z)

    def start(self, linear: LinearSystem) -> Evaluation:
        """Where the solve begins: at zero, whose residual is known."""
        return linear.initial()

    def differentiable(
        self, v: Tensor, z: Tensor, inputs: Sequence[Tensor]
    ) -> tuple[Tensor | None, ...]:
        """u^T df/dinputs with a graph to v, z and the inputs.

        Raises:
            GradientError: the solve is a backward one already: this would be a third derivative.
        """
        if isinstance(self.system, LinearSystem):
            raise GradientError(
                "implicit gives first and second derivatives; use unrolled for a third"
            )
        self.system.check_function()
        switch = [False]
        x = self.system.x
        own: dict[Any, Tensor] = {tensor: _Cut.apply(tensor, switch) for tensor in _own(x)}
        # In the order of the inputs: those of x come first.
        targets = [*own.values(), *inputs[len(own) :]]
        system = self.system.bind(
            pytree.tree_map_only(Tensor, lambda tensor: own.get(tensor, tensor), x)
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
        linear = LinearSystem.transposed(self.system, self.jacobian, v.detach())
        solve = BackwardSolve(
            self.solver, linear, Transposed(linear, start, self.jacobian), self.record
        )
        return attach(update, value, solve, (v, point, *inputs))

    def _write_down(self, linear: LinearSystem, solution: Solution) -> None:
        record, size = self.record, linear.v_norm.clamp(min=torch.finfo(linear.v_norm.dtype).tiny)
        record.vjps += linear.evaluations
        record.status, record.residual = solution.status, solution.residual / size
        if solution.failed:
            owner = owner_of(self.system.dynamics)
            warn_repeatedly(
                owner, "backward", lambda: _inexact(solution, record), ConvergenceWarning
            )


@dataclass(frozen=True, eq=False)
class _Clipped(BackwardSolve):
    """A backward solve whose u is at most ``clip`` times as long as v."""

    clip: float

    def solve(self, v: Tensor) -> Tensor:
        """u, ``[batch, n]``."""
        u = super().solve(v)
        size, most = norm(u), self.clip * norm(v)
        return torch.where(column(size > most), u * column(most / size), u)

    def differentiable(
        self, v: Tensor, z: Tensor, inputs: Sequence[Tensor]
    ) -> tuple[Tensor | None, ...]:
        """Refuse: the clipped u solves no equation."""
        raise GradientError("a clipped implicit gradient has no second derivative")


def _inexact(solution: Solution, record: Backward) -> str:
    count, total = int((~solution.converged).sum()), len(solution.status)
    worst = "" if record.residual is None else f"{record.residual.max().item():.3g}"
    return (
        f"the backward solve of {count} of {total} samples did not converge; worst relative "
        f"residual {worst}: their gradients are inexact"
    )


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
