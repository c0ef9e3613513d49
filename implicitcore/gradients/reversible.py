"""Backpropagation through a reversible solve in bounded memory."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, final

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from implicitcore.errors import GradientError
from implicitcore.gradients.base import GradientStrategy, Solve
from implicitcore.gradients.checkpoints import Checkpoints
from implicitcore.gradients.trajectory import agrees, backward_pass, pull, require_same, total
from implicitcore.options.options import Options
from implicitcore.options.types import Count
from implicitcore.root_solvers.reversible import Pair, Path, Reversible
from implicitcore.solution import Solution
from implicitcore.system.coupling import check_residual
from implicitcore.system.system import System
from implicitcore.tensors.graph_leaves import graph_leaves, inputs, union
from implicitcore.tensors.norms import column


@final
@dataclass(frozen=True)
class ReversibleGradient(Options, GradientStrategy):
    """Backpropagate through every step of ``Reversible``, whose steps are taken back.

    The gradient of ``unrolled`` in memory that does not grow with the number of steps. The forward
    pass has no graph. The backward pass takes the steps back one by one and gives each a graph of
    its own, of one evaluation at a time. Taking back enlarges rounding, the more the stronger f
    contracts: so a few states of the forward pass are kept, and after every few steps (6 at a
    damping of 0.5) the pair comes from the last of these and not from its successor. The gradient
    is then exact whatever their number. Where no more steps are taken than that, nothing is kept.

    A step costs four evaluations in backward, or five where there are hundreds, and two products.

    Gradients reach z0, the tensors of x, the parameters of the dynamics, and captured leaves.

    Attributes:
        checkpoints: most states kept beside z0.

    Raises:
        GradientError: with another solver; on a second derivative; with ``sync_steps``.

    Reference:
        Reversible Deep Equilibrium Models, arXiv 2509.12917; the states kept: Griewank, Walther,
        ACM Trans. Math. Softw. 26 (2000), p. 19-45.
    """

    checkpoints: Count = 4

    def run(self, solve: Solve, system: System, z0: Tensor) -> Solution:
        """See :meth:`GradientStrategy.run`."""
        solver = solve.solver
        if not isinstance(solver, Reversible) or system.scope.group is not None:
            raise GradientError(_refusal(solver))
        kept, span = Checkpoints[Pair](self.checkpoints), solver.undoable

        def keep(index: int, pair: Pair) -> None:
            if index % span == 0:
                kept.offer(index // span, pair)

        with torch.no_grad():
            solution, path = solver.solve_keeping(system, z0.detach(), keep)
        if not torch.is_grad_enabled():
            return solution
        probe = system.bind(pytree.tree_map_only(Tensor, torch.detach, system.x))
        with torch.enable_grad():
            found = probe.evaluate(solution.z.detach())
        system.evaluations += 1
        check_residual(system, solution, found.residual)
        listed = (p for p in system.dynamics.parameters() if p.requires_grad)
        captured = union(listed, graph_leaves(found.fz))
        call = _Call(solver, system, captured, path, kept, solution)
        z = _Attached.apply(call, solution.z, z0, *inputs(system.x), *captured)
        return solution.amended(z=z, start=z0, evaluations=system.evaluations)


def _refusal(solver: object) -> str:
    name = type(solver).__name__
    if isinstance(solver, Reversible):
        return "ReversibleGradient and sync_steps do not go together; use Implicit"
    return (
        f"ReversibleGradient takes the steps of Reversible back, and {name} has none that can be; "
        "use solver=Reversible(), or Unrolled"
    )


class _Call(NamedTuple):
    """What the backward pass needs to know about the forward."""

    solver: Reversible
    system: System
    captured: list[Tensor]
    path: Path
    kept: Checkpoints[Pair]
    solution: Solution


class _Attached(torch.autograd.Function):
    """The solution, differentiable in z0 and the tensors that f depends on."""

    @staticmethod
    def forward(ctx: Any, call: _Call, z: Tensor, *tensors: Tensor) -> Tensor:
        ctx.call = call
        ctx.save_for_backward(*tensors)
        return z.clone()

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Any) -> Any:
        call: _Call = ctx.call
        with backward_pass(ctx, "ReversibleGradient", call.system):
            z0, gradients = _Backward(call).run(grad_outputs[0])
        return None, None, z0, *gradients


class _Backward:
    """One backward pass."""

    def __init__(self, call: _Call) -> None:
        x = pytree.tree_map_only(
            Tensor, lambda leaf: leaf.detach().requires_grad_(leaf.requires_grad), call.system.x
        )
        self.call, self.system = call, call.system.bind(x)
        self.leaves = [*inputs(x), *call.captured]
        self.gradients: list[Tensor | None] = [torch.zeros_like(leaf) for leaf in self.leaves]
        self.same: list[Tensor] = []

    def run(self, v: Tensor) -> tuple[Tensor, Sequence[Tensor | None]]:
        """The gradients of z0 and of the leaves for v = dL/dz, ``[batch, n]``."""
        solver, system, path, kept = self.call.solver, self.system, self.call.path, self.call.kept
        span, after = solver.undoable, path.end

        def advance(pair: Pair, index: int, spans: int) -> Pair:
            del index
            return solver.advance(system, pair, spans * span)

        cotangent = Pair(torch.zeros_like(after.y), self._arriving(v, path.steps))
        for index in reversed(range(path.steps)):
            with torch.no_grad():
                if index % span:
                    before = solver.undo(system, after)
                else:
                    before = kept.take(index // span, advance)
            cotangent = self._step(before, after, cotangent)
            cotangent = cotangent._replace(z=cotangent.z + self._arriving(v, index))
            after = before
        require_same(self.same)
        self.call.solution.backward.evaluations += system.evaluations
        return (cotangent.y + cotangent.z).to(v.dtype), self.gradients

    def _arriving(self, v: Tensor, index: int) -> Tensor:
        """v of the samples whose result is the iterate after so many steps."""
        path = self.call.path
        return torch.where(column(path.best == index), v, 0).to(path.end.z.dtype)

    def _step(self, before: Pair, after: Pair, v: Pair) -> Pair:
        """The cotangent of the pair before a step for that of the pair after it."""
        b = self._b
        y = v.y + self._pull(after.y, b * v.z, after.z, before.z)
        z = (1 - b) * v.z + self._pull(before.z, b * y, after.y, before.y)
        return Pair((1 - b) * y, z)

    def _pull(self, point: Tensor, u: Tensor, result: Tensor, damped: Tensor) -> Tensor:
        """u^T df/dz at a point; u^T df of the leaves goes to their gradients.

        Arguments:
            point: where f was evaluated.
            u: the cotangent of f.
            result: (1 - b) ``damped`` + b f(point), to compare f with.
            damped: the other state.
        """
        dtype = self.system.packing.dtype
        with torch.enable_grad():
            z = point.to(dtype).requires_grad_()
            fz = self.system.update(z)
        expected = torch.lerp(damped, fz.detach().to(damped.dtype), self._b)
        self.same.append(agrees(expected.to(dtype), result.to(dtype)))
        self.call.solution.backward.vjps += 1
        if not fz.requires_grad:
            return torch.zeros_like(u)
        slope, *others = pull([fz], [z, *self.leaves], [u.to(fz.dtype)])
        self.gradients = [total(*pair) for pair in zip(self.gradients, others, strict=True)]
        return torch.zeros_like(u) if slope is None else slope.to(u.dtype)

    @property
    def _b(self) -> float:
        return self.call.solver.damping
