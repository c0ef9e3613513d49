"""The adjoint of a trajectory, integrated backwards in time."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple, final

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from implicitcore.errors import ConvergenceWarning, GradientError
from implicitcore.gradients.base import GradientStrategy, Solve
from implicitcore.gradients.leaves import leaves, union
from implicitcore.norms import column, norm
from implicitcore.ode_solvers.base import ODESolver, Step
from implicitcore.options import Options
from implicitcore.solution import Backward, Solution, Status
from implicitcore.system import System
from implicitcore.tolerances import Positive


@final
@dataclass(frozen=True)
class Adjoint(Options, GradientStrategy):
    """Integrate the state and its adjoint back from the last time: memory does not grow with the number of steps.

    With a = dL/dz: dz/dt = g, da/dt = -a^T dg/dz, and dL/dtheta = -int a^T dg/dtheta dt along the way back (so for x). Every step
    size is a sample's own, and a stage costs one product of the whole batch: a product is linear in its cotangent, so the
    weight of each sample's step scales its cotangent. The parameters' integral is a quadrature beside the state and never
    steers the steps. At each output time the state is set back to the stored one.

    The gradient is that of the continuous trajectory: it differs from ``unrolled`` by the error of both integrations. Where the
    flow contracts strongly, going back in time is unstable; the reconstruction of the earlier state is compared with the stored
    one, and a warning says when it drifts. Prefer ``unrolled`` there.

    Attributes:
        solver: integrates backwards; None takes the forward's.
        drift: warn where the reconstructed state is further off than this, relative to the state, in the 2-norm.

    Raises:
        GradientError: with a root solver; on a second derivative.

    Reference:
        Chen, Rubanova, Bettencourt, Duvenaud, Neural Ordinary Differential Equations, arXiv 1806.07366, algorithm 1; parameters
        outside the error norm: Kidger, Chen, Lyons, "Hey, that's not an ODE", arXiv 2009.09457.
    """

    solver: ODESolver | None = None
    drift: Positive = 0.1

    def run(self, solve: Solve, system: System, z0: Tensor) -> Solution:
        """See :meth:`GradientStrategy.run`."""
        if not isinstance(solve.solver, ODESolver):
            name = type(solve.solver).__name__
            raise GradientError(f"Adjoint differentiates a trajectory, and {name} finds an equilibrium; use Implicit")
        with torch.no_grad():
            solution = solve(system, z0)
        if not torch.is_grad_enabled() or solution.times is None:
            return solution
        tensors = _dependencies(system, solution.times, solution.z)
        call = _Call(self, solve, system, solution, solution.times, tensors)
        return replace(solution, z=_Trajectory.apply(call, z0, *tensors), evaluations=system.evaluations)


def _dependencies(system: System, times: Tensor, z: Tensor) -> list[Tensor]:
    """The tensors in x and the leaves elsewhere that the vector field depends on: one evaluation."""
    inputs = [leaf for leaf in pytree.tree_leaves(system.x) if isinstance(leaf, Tensor) and leaf.requires_grad]
    detached = system.bind(pytree.tree_map_only(Tensor, torch.detach, system.x))
    with torch.enable_grad():
        found = leaves(detached.velocity(times[:1].expand(z.shape[1]), z[0].detach()))
    system.evaluations += 1
    return union(inputs, found)


class _Call(NamedTuple):
    """What the backward pass needs to know about the forward."""

    strategy: Adjoint
    solve: Solve
    system: System
    solution: Solution
    times: Tensor
    tensors: list[Tensor]


class _Trajectory(torch.autograd.Function):
    """The stored trajectory, differentiable with respect to z0 and the tensors of the vector field."""

    @staticmethod
    def forward(ctx: Any, call: _Call, z0: Tensor, *tensors: Tensor) -> Tensor:
        del z0, tensors
        ctx.call = call
        return call.solution.z.clone()

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Any) -> Any:
        if torch.is_grad_enabled():
            raise GradientError("adjoint gives first derivatives only; use unrolled for a second derivative (create_graph=True)")
        a, gradients = _backsolve(ctx.call, grad_outputs[0])
        return None, a, *gradients


def _backsolve(call: _Call, v: Tensor) -> tuple[Tensor, list[Tensor | None]]:
    """dL/dz0 and the gradients of the tensors, from v = dL/dz at each output time."""
    strategy, z, times = call.strategy, call.solution.z, call.times
    # The adjoint is linear in v: at unit size the tolerances mean the same whatever the scale of the loss.
    size = v.transpose(0, 1).flatten(1).norm(dim=1)
    unit = torch.where(size > 0, size, 1)
    system = AdjointSystem(call.system, call.tensors, unit)
    solve = replace(call.solve, solver=strategy.solver or call.solve.solver)
    scaled = v / unit[:, None]
    a, n = scaled[-1], z.shape[2]
    status = torch.zeros_like(call.solution.status)
    drift = torch.zeros_like(unit)
    for k in range(len(times) - 1, 0, -1):
        back = solve(system, torch.cat((z[k], a), 1), times[[k, k - 1]])
        end = back.z[-1]
        status = torch.maximum(status, back.status)
        extent = torch.maximum(norm(z[k]), norm(z[k - 1])).clamp(min=torch.finfo(unit.dtype).tiny)
        drift = torch.maximum(drift, norm(end[:, :n] - z[k - 1]) / extent)
        a = end[:, n:] + scaled[k - 1]
    _note(call, system, status, drift)
    return a * column(unit), system.gradients


def _note(call: _Call, system: AdjointSystem, status: Tensor, drift: Tensor) -> None:
    """Fill the record, and warn where the way back went wrong."""
    record: Backward = call.solution.backward
    record.vjps += system.products
    record.evaluations += system.evaluations
    record.status = status
    usable = call.solution.status == Status.CONVERGED
    lost = int((usable & (status != Status.CONVERGED)).sum())
    if lost:
        _warn(f"did not arrive at the first time for {lost} of {len(status)} samples: their gradients are wrong")
    elif bool((usable & ~(drift <= call.strategy.drift)).any()):
        worst = drift[usable].max().item()
        _warn(f"missed the stored state by {worst:.2g} of its size: the gradient is inexact; use unrolled, or tighter tolerances")


def _warn(what: str) -> None:
    warnings.warn(f"the adjoint's way back {what}", ConvergenceWarning, stacklevel=2)


class AdjointSystem(System):
    """The state (z, a), ``[batch, 2 n]``, with dz/dt = g and da/dt = -a^T dg/dz, and the quadrature of the other gradients.

    Arguments:
        system: the forward system.
        tensors: what else gets a gradient.
        unit: ``[batch]``, what a is divided by.
    """

    quadrature = True

    def __init__(self, system: System, tensors: Sequence[Tensor], unit: Tensor) -> None:
        super().__init__(system.dynamics, system.x, system.packing, backend=system.backend)
        # Tensors of x become leaves of their own: what they were computed from is autograd's to follow, not ours.
        own = {id(t): t.detach().requires_grad_() for t in pytree.tree_leaves(system.x) if isinstance(t, Tensor) and t.requires_grad}
        self.forward = system.bind(pytree.tree_map_only(Tensor, lambda t: own.get(id(t), t), system.x))
        self.inputs = [own.get(id(t), t) for t in tensors]
        self.gradients: list[Tensor | None] = [None] * len(self.inputs)
        self.unit = unit
        self.products = 0
        self.stages: dict[int, tuple[Tensor, Tensor, Tensor]] = {}

    def velocity(self, t: Tensor, z: Tensor) -> Tensor:
        """(g, -a^T dg/dz): one evaluation and one product; its graph is kept until the step is committed."""
        state, a = z.tensor_split(2, 1)
        with torch.enable_grad():
            point = state.detach().requires_grad_()
            g = self.forward.velocity(t, point)
        self.evaluations += 1
        self.products += 1
        if g.requires_grad:
            pulled = torch.autograd.grad(g, point, a, retain_graph=True, materialize_grads=True)[0]
        else:
            pulled = torch.zeros_like(state)
        velocity = torch.cat((g.detach(), -pulled), 1)
        self.stages[id(velocity)] = velocity, g, a
        return velocity

    def commit(self, step: Step, dt: Tensor, accept: Tensor) -> None:
        """Add the step's share of the quadrature, -dt sum_i b_i a_i^T dg_i/dtheta, in one product over all stages."""
        if not step.stages:
            raise GradientError("this ODE solver does not say which stages its steps are made of, and Adjoint needs them; use Unrolled")
        weight = column(torch.where(accept, -dt * self.unit, 0))
        used = [(self.stages[id(stage)], b) for stage, b in zip(step.stages, step.weights, strict=True) if b]
        self.stages.clear()
        outputs = [g for (_, g, _), _ in used if g.requires_grad]
        if not outputs or not self.inputs:
            return
        cotangents = [torch.where(weight != 0, a * (b * weight), 0) for (_, g, a), b in used if g.requires_grad]
        self.products += len(outputs)
        found = torch.autograd.grad(outputs, self.inputs, cotangents, allow_unused=True)
        self.gradients = [new if old is None else old if new is None else old + new for old, new in zip(self.gradients, found, strict=True)]
