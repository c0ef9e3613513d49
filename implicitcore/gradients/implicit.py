"""The implicit gradient: one linear solve at the equilibrium."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, final

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from implicitcore.errors import ConvergenceWarning, GradientError
from implicitcore.gradients.backward_solver import following
from implicitcore.gradients.base import GradientStrategy, Solve, equilibrium, with_iterates
from implicitcore.options.options import Options
from implicitcore.options.types import Count, Positive
from implicitcore.root_solvers.base import RootSolver
from implicitcore.root_solvers.judgement import solve_from
from implicitcore.solution import Backward, Solution
from implicitcore.system.coupling import check_residual
from implicitcore.system.evaluation import Evaluation
from implicitcore.system.linear_system import LinearSystem, Transposed
from implicitcore.system.linearization import Linearization
from implicitcore.system.repeated import owner_of, warn_repeatedly
from implicitcore.system.system import System
from implicitcore.tensors import host
from implicitcore.tensors.autocast import without_autocast
from implicitcore.tensors.cotangent import Pullback, attach
from implicitcore.tensors.graph_leaves import graph_leaves, inputs, union
from implicitcore.tensors.norms import coarsest, column, fits, norm
from implicitcore.tensors.transforms import transformed


@final
@dataclass(frozen=True)
class Implicit(Options, GradientStrategy):
    """Differentiate the equilibrium z = f(z, x) itself.

    Solve (I - J)^T u = v, then u^T df gives theta and x. J = df/dz at z, v = dL/dz. Memory does not
    grow with the number of steps, and z0 gets no gradient, for an equilibrium does not depend on
    it. The forward solve runs without a graph and f is evaluated once more, with one. The gradient
    is as exact as the forward and the backward solve: both tolerances count. Differentiable twice:
    the linear solve has an implicit gradient of its own, by the same solver.

    An iterate z_k of ``iterates`` is no equilibrium of f. Its gradient is that of the z with
    z = f(z, x) + c, where c = z_k - f(z_k, x) is held constant: the same equation, with J at z_k.
    It costs an evaluation and a linear solve of its own.

    Attributes:
        solver: any root solver; its tolerance is relative to the 2-norm of v, per sample. None is
            ``GMRES``, which needs the fewest products, to a tenth of the forward solver's
            tolerance (of a ``Chain`` the least of its own; 1e-5 where there is none), options of
            one call included: what the forward solve leaves of the error is not made worse, and
            nothing is spent below it. No less than 32 units of rounding, 8 in half precision, and
            no more than 0.1.
        clip: u is scaled to at most so many times ``|v|``, per sample; None leaves it. Where J
            comes near 1 the gradient of one sample can outgrow those of all others; a contraction
            with rate r has ``|u| <= |v| / (1 - r)``. The gradient is then that of a first
            derivative alone.
        iterates: supervise the way: ``solution.iterates`` ``[k, batch, ...]`` holds the iterates
            after these many steps of a stepwise root solver (a sample that stopped earlier keeps
            its last), each with the implicit gradient there, for
            ``correction_loss``.

    Raises:
        GradientError: on a third derivative, or with ``clip`` on a second; ``iterates`` of a solver
            that has none to give.

    Reference:
        Bai, Kolter, Koltun, Deep Equilibrium Models, arXiv 1909.01377; backward by GMRES: arXiv
        2201.12240; at several iterates: Bai, Geng, Savani, Kolter, Deep Equilibrium Optical Flow
        Estimation, arXiv 2204.08442.
    """

    solver: RootSolver | None = None
    clip: Positive | None = None
    iterates: tuple[Count, ...] = ()

    def run(self, solve: Solve, system: System, z0: Tensor) -> Solution:
        """See :meth:`GradientStrategy.run`."""
        solution = equilibrium(self, solve, system, z0, self.iterates)
        if not torch.is_grad_enabled():
            return solution
        dtypes = system.context.dtypes
        dtype = coarsest(dtypes) if dtypes else z0.dtype
        solver, record = self.backward_solver(solve.solver, dtype), solution.backward

        def at(z: Tensor, on_the_way: bool) -> BackwardSolve:
            jacobian = system.linearize(z.detach() if z.requires_grad else z)
            found = BackwardSolve(solver, system, jacobian, record, on_the_way=on_the_way)
            return found if self.clip is None else _Clipped(**vars(found), clip=self.clip)

        end = at(solution.z, on_the_way=False)
        if self.iterates:
            solution = with_iterates(solution, lambda z: _attached(z, at(z, on_the_way=True)))
        return attached(solution, end)

    def backward_solver(self, forward: Any, dtype: torch.dtype) -> RootSolver:
        """The solver of the backward pass of a solve by ``forward``, of a state of this dtype."""
        return self.solver or following(forward.relative_tolerance(), dtype)


def attached(solution: Solution, backward: BackwardSolve) -> Solution:
    """The solution, with a graph that leads through a backward solve."""
    jacobian, system = backward.jacobian, backward.system
    check_residual(system, solution, jacobian.residual(solution.z))
    return solution.amended(z=_attached(solution.z, backward), evaluations=system.evaluations)


def _attached(z: Tensor, backward: BackwardSolve) -> Tensor:
    """z, with a graph that leads through a backward solve there."""
    jacobian, own = backward.jacobian, union(inputs(backward.system.x))
    leaves = graph_leaves(jacobian.fz, own)  # f depends on them beside the tensors of x
    others = [leaf for leaf in leaves if leaf is not jacobian.point]
    return attach(jacobian.fz, z, backward, union(own, others))


def _own(x: Any) -> list[Tensor]:
    """The tensors of x that get a gradient, each once."""
    return union(inputs(x))


@dataclass(frozen=True, eq=False)
class BackwardSolve(Pullback):
    """v -> u with (I - J)^T u = v, at the equilibrium.

    Attributes:
        solver: of the linear system.
        system: what was solved.
        jacobian: J, and the evaluation that it is of.
        record: of the products, and of how the solve ended.
        on_the_way: it is that of an earlier iterate; the record says how that of the solution
            ended.
    """

    solver: RootSolver
    system: System
    jacobian: Linearization
    record: Backward
    on_the_way: bool = field(default=False, kw_only=True)

    def __call__(self, v: Tensor) -> Tensor:
        """See :class:`Pullback`."""
        if host.on_host(v) and not transformed():
            size = norm(v)
            if fits(size, v.real.dtype):  # so v is finite, and needs no other units
                return self.solve(v, size)
        return super().__call__(v)

    def solve(self, v: Tensor, size: Tensor | None = None) -> Tensor:
        """u, ``[batch, n]``; ``size`` as :meth:`LinearSystem.transposed` takes it."""
        return without_autocast(self._solve, v, size)

    def _solve(self, v: Tensor, size: Tensor | None) -> Tensor:
        linear = LinearSystem.transposed(self.system, self.jacobian, v, size)
        solution = solve_from(self.solver, linear, self.start(linear))
        # Norms that need no units are not zero.
        scale = linear.v_norm if size is not None else linear.v_norm.clamp(min=_tiny(linear.v_norm))
        self._write_down(linear, solution, solution.residual / scale)
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

    def _write_down(self, linear: LinearSystem, solution: Solution, residual: Tensor) -> None:
        record = self.record
        record.vjps += linear.evaluations
        if not self.on_the_way:
            record.status, record.residual = solution.status, residual
        if solution.failed:
            owner = owner_of(self.system.dynamics)
            warn_repeatedly(
                owner, "backward", lambda: _inexact(solution, residual), ConvergenceWarning
            )


@dataclass(frozen=True, eq=False)
class _Clipped(BackwardSolve):
    """A backward solve whose u is at most ``clip`` times as long as v."""

    clip: float

    def solve(self, v: Tensor, size: Tensor | None = None) -> Tensor:
        """u, ``[batch, n]``."""
        u = super().solve(v, size)
        found, most = norm(u), self.clip * norm(v)
        return torch.where(column(found > most), u * column(most / found), u)

    def differentiable(
        self, v: Tensor, z: Tensor, inputs: Sequence[Tensor]
    ) -> tuple[Tensor | None, ...]:
        """Refuse: the clipped u solves no equation."""
        raise GradientError("a clipped implicit gradient has no second derivative")


def _tiny(size: Tensor) -> float:
    return torch.finfo(size.dtype).tiny


def _inexact(solution: Solution, residual: Tensor) -> str:
    count, total = int((~solution.converged).sum()), len(solution.status)
    return (
        f"the backward solve of {count} of {total} samples did not converge; worst relative "
        f"residual {residual.max().item():.3g}: their gradients are inexact"
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
