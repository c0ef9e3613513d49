"""What the gradient strategies of trajectories have in common."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from implicitcore.errors import GradientError
from implicitcore.solution import Trajectory
from implicitcore.system.system import System
from implicitcore.tensors.autocast import suspended
from implicitcore.tensors.graph_leaves import graph_leaves, inputs, union


class Bound(NamedTuple):
    """The forward system in a backward pass.

    Attributes:
        system: counts by itself; the tensors of its x are leaves of their own, for what they were
            computed from is autograd's to follow.
        inputs: those leaves, then the leaves that the vector field captured: what gets a gradient.
    """

    system: System
    inputs: list[Tensor]


Pullback = Callable[[Bound, Tensor], tuple[Tensor | None, Sequence[Tensor | None]]]
"""From v = dL/dz at each output time, ``[T, batch, n]``: dL/dz0 and the gradients of the inputs."""


def attach(
    strategy: object, pullback: Pullback, system: System, solution: Trajectory, z0: Tensor
) -> Trajectory:
    """The trajectory, solved without a graph, whose z is differentiated by ``pullback``.

    Gradients reach z0, the tensors of x, the parameters of the dynamics, and the leaves that the
    vector field depends on at the first time: one evaluation finds those that no module lists.
    """
    captured = _captured(system, solution.times, solution.z)
    call = _Call(type(strategy).__name__, pullback, system, captured)
    z = _Attached.apply(call, solution.z, z0, *inputs(system.x), *captured)
    return solution.amended(z=z, evaluations=system.evaluations)


def _captured(system: System, times: Tensor, z: Tensor) -> list[Tensor]:
    detached = system.bind(pytree.tree_map_only(Tensor, torch.detach, system.x))
    with torch.enable_grad():
        found = graph_leaves(detached.velocity(times[:1].expand(z.shape[1]), z[0].detach()))
    system.evaluations += 1
    return union((p for p in system.dynamics.parameters() if p.requires_grad), found)


class _Call(NamedTuple):
    """What the backward pass needs to know about the forward."""

    strategy: str
    pullback: Pullback
    system: System
    captured: list[Tensor]

    def bound(self) -> Bound:
        x = pytree.tree_map_only(Tensor, _leaf, self.system.x)
        return Bound(self.system.bind(x), [*inputs(x), *self.captured])


def _leaf(tensor: Tensor) -> Tensor:
    """The tensor as a leaf of its own, in its place of x: a gradient is found for each place."""
    return tensor.detach().requires_grad_(tensor.requires_grad)


class _Attached(torch.autograd.Function):
    """The stored trajectory, differentiable in z0 and the tensors of the vector field."""

    @staticmethod
    def forward(ctx: Any, call: _Call, z: Tensor, *tensors: Tensor) -> Tensor:
        ctx.call = call
        ctx.save_for_backward(*tensors)
        return z.clone()

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Any) -> Any:
        call: _Call = ctx.call
        if torch.is_grad_enabled():
            raise GradientError(
                f"{call.strategy} gives first derivatives only; use Unrolled for a second "
                "derivative (create_graph=True)"
            )
        _ = ctx.saved_tensors  # autograd's own error, where one of them was changed in place since
        with call.system.scope.entered(), suspended():
            z0, gradients = call.pullback(call.bound(), grad_outputs[0])
        return None, None, z0, *gradients


def pull(
    outputs: Sequence[Tensor], inputs: Sequence[Tensor], cotangents: Sequence[Tensor]
) -> tuple[Tensor | None, ...]:
    """The product of the cotangents with the Jacobian.

    None for an input that no output depends on.
    """
    # The graph is kept for the sake of what lies before the solve: a captured tensor that is no
    # leaf.
    return torch.autograd.grad(outputs, inputs, cotangents, retain_graph=True, allow_unused=True)


def total(old: Tensor | None, new: Tensor | None) -> Tensor | None:
    """The sum of two gradients, where None is zero."""
    return new if old is None else old if new is None else old + new
