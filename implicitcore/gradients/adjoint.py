"""The adjoint of a trajectory, integrated backwards in time."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar, NamedTuple, final

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from implicitcore.errors import ConvergenceWarning, GradientError
from implicitcore.gradients.base import GradientStrategy, Solve
from implicitcore.gradients.leaves import inputs, leaves, union
from implicitcore.norms import column, norm
from implicitcore.ode_solvers.base import ODESolver, Step
from implicitcore.options import Options
from implicitcore.solution import Backward, Solution, Status
from implicitcore.system import System
from implicitcore.tolerances import Positive

_NEEDS_STAGES = "does not say which stages its steps are made of: give Adjoint(solver=...) one that does (Tsit5), or use Unrolled"


@final
@dataclass(frozen=True)
class Adjoint(Options, GradientStrategy):
    """Integrate the state and its adjoint back from the last time: memory does not grow with the number of steps.

    With a = dL/dz: dz/dt = g, da/dt = -a^T dg/dz, and dL/dtheta = -int a^T dg/dtheta dt along the way back (so for x). Every step
    size is a sample's own, and a stage costs one product of the whole batch: a product is linear in its cotangent, so the
    weight of each sample's step scales its cotangent. The parameters' integral is a quadrature beside the state and never
    steers the steps. At each output time the state is set back to the stored one, and dL/dz there is added to a.

    Gradients reach z0, the tensors of x, the parameters of the dynamics, and leaves that the vector field captured. A captured
    tensor that is no leaf is passed through to its leaves at each step: give it in x rather.

    The gradient is that of the continuous trajectory: it differs from ``unrolled`` by the error of both integrations. Where the
    flow contracts strongly, going back in time is unstable; the reconstruction of the earlier state is compared with the stored
    one, and a warning says when it drifts. Prefer ``unrolled`` there.

    Attributes:
        solver: integrates backwards; None takes the forward's.
        drift: warn where a reconstructed state is further off than this, relative to the state, in the 2-norm, per sample.
            The error of the gradient is then some 1e-3: it is smaller than the drift by one or two orders.

    Raises:
        GradientError: with a root solver; with a solver that does not tell its stages; on a second derivative.

    Reference:
        Chen, Rubanova, Bettencourt, Duvenaud, Neural Ordinary Differential Equations, arXiv 1806.07366, algorithm 1; parameters
        outside the error norm: Kidger, Chen, Lyons, "Hey, that's not an ODE", arXiv 2009.09457.
    """

    solver: ODESolver | None = None
    drift: Positive = 0.05

    def run(self, solve: Solve, system: System, z0: Tensor) -> Solution:
        """See :meth:`GradientStrategy.run`."""
        if not isinstance(solve.solver, ODESolver):
            name = type(solve.solver).__name__
            raise GradientError(f"Adjoint differentiates a trajectory, and {name} finds an equilibrium; use Implicit")
        with torch.no_grad():
            solution = solve(system, z0)
        if not torch.is_grad_enabled() or solution.times is None:
            return solution
        own = union(inputs(system.x))
        captured = _captured(system, solution.times, solution.z)
        call = _Call(self, solve, system, solution, solution.times, own, captured)
        return replace(solution, z=_Trajectory.apply(call, z0, *own, *captured), evaluations=system.evaluations)


def _captured(system: System, times: Tensor, z: Tensor) -> list[Tensor]:
    """The leaves, other than in x, that the vector field depends on: one evaluation, for those that no module lists."""
    detached = system.bind(pytree.tree_map_only(Tensor, torch.detach, system.x))
    with torch.enable_grad():
        found = leaves(detached.velocity(times[:1].expand(z.shape[1]), z[0].detach()))
    system.evaluations += 1
    return union((p for p in system.dynamics.parameters() if p.requires_grad), found)


class _Call(NamedTuple):
    """What the backward pass needs to know about the forward."""

    strategy: Adjoint
    solve: Solve
    system: System
    solution: Solution
    times: Tensor
    inputs: list[Tensor]
    captured: list[Tensor]


class _Trajectory(torch.autograd.Function):
    """The stored trajectory, differentiable with respect to z0 and the tensors of the vector field."""

    @staticmethod
    def forward(ctx: Any, call: _Call, z0: Tensor, *tensors: Tensor) -> Tensor:
        del z0
        ctx.call = call
        ctx.save_for_backward(*tensors)
        return call.solution.z.clone()

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Any) -> Any:
        if torch.is_grad_enabled():
            raise GradientError("adjoint gives first derivatives only; use unrolled for a second derivative (create_graph=True)")
        _ = ctx.saved_tensors  # autograd's own error, where one of them was changed in place since
        a, gradients = _backsolve(ctx.call, grad_outputs[0])
        return None, a, *gradients


def _backsolve(call: _Call, v: Tensor) -> tuple[Tensor, list[Tensor | None]]:
    """dL/dz0 and the gradients of the tensors, from v = dL/dz at each output time."""
    # The adjoint is linear in v: at unit size the tolerances mean the same whatever the scale of the loss.
    size = torch.linalg.vector_norm(v, dim=(0, 2)) / max(v.shape[2], 1) ** 0.5
    unit = torch.where(size > 0, size, 1).to(call.times.dtype)
    stored = torch.cat((call.solution.z, v / column(unit).to(v.dtype)), 2).flip(0)
    system = AdjointSystem(call, stored, unit)
    solve = replace(call.solve, solver=call.strategy.solver or call.solve.solver)
    back = solve(system, stored[0], call.times.flip(0))
    if system.inputs and not system.committed and bool(back.converged.any()):
        raise GradientError(f"{type(solve.solver).__name__} {_NEEDS_STAGES}")
    n = v.shape[2]
    found, expected = back.z[1:, :, :n], stored[1:, :, :n]
    extent = torch.maximum(_norms(expected), _norms(stored[:-1, :, :n])).clamp(min=torch.finfo(unit.dtype).tiny)
    _note(call, system, back.status, (_norms(found - expected) / extent).amax(0))
    return (back.z[-1, :, n:] + stored[-1, :, n:]) * column(unit).to(v.dtype), system.gradients


def _norms(z: Tensor) -> Tensor:
    return norm(z.flatten(0, 1)).unflatten(0, z.shape[:2])


def _note(call: _Call, system: AdjointSystem, status: Tensor, drift: Tensor) -> None:
    """Fill the record, and warn where the way back went wrong."""
    record: Backward = call.solution.backward
    record.vjps += system.products
    record.evaluations += system.evaluations
    record.status = status
    usable = call.solution.status == Status.CONVERGED
    lost = int((~usable | (status != Status.CONVERGED)).sum())
    adrift = usable & ~(drift <= call.strategy.drift)
    if lost:
        _warn(f"is incomplete for {lost} of {len(status)} samples: their gradients are wrong")
    elif bool(adrift.any()):
        count, worst = int(adrift.sum()), drift[usable].max().item()
        _warn(
            f"missed the stored states of {count} of {len(status)} samples, by up to {worst:.2g} of their size: "
            "the gradient is inexact; use unrolled, or tighter tolerances"
        )


def _warn(what: str) -> None:
    warnings.warn(f"the adjoint's way back {what}", ConvergenceWarning, stacklevel=2)


class _Evaluation(NamedTuple):
    """One evaluation of the vector field with its graph."""

    velocity: Tensor  # [batch, 2 n]; kept, so that its id stays its own
    g: Tensor
    a: Tensor


class AdjointSystem(System):
    """The state (z, a), ``[batch, 2 n]``, with dz/dt = g and da/dt = -a^T dg/dz, and the quadrature of the other gradients.

    Arguments:
        call: the forward solve.
        stored: the states and what is added to a at each output time of the way back, ``[T, batch, 2 n]``.
        unit: ``[batch]``, what a is divided by.
    """

    quadrature: ClassVar[bool] = True

    def __init__(self, call: _Call, stored: Tensor, unit: Tensor) -> None:
        system = call.system
        super().__init__(system.dynamics, system.x, system.packing, backend=system.backend)
        # Tensors of x become leaves of their own: what they were computed from is autograd's to follow, not ours.
        own = {id(tensor): tensor.detach().requires_grad_() for tensor in call.inputs}
        self.forward = system.bind(pytree.tree_map_only(Tensor, lambda tensor: own.get(id(tensor), tensor.detach()), system.x))
        self.inputs = [*own.values(), *call.captured]
        self.gradients: list[Tensor | None] = [None] * len(self.inputs)
        self.stored, self.unit = stored, unit
        self.products = 0
        self.committed = False
        self.stages: dict[int, _Evaluation] = {}

    def velocity(self, t: Tensor, z: Tensor) -> Tensor:
        """(g, -a^T dg/dz): one evaluation and one product; its graph is kept until the step is committed.

        Where a graph is asked for, an implicit method wants the Jacobian of all this, and the step is made of other velocities.
        """
        state, a = z.tensor_split(2, 1)
        if torch.is_grad_enabled():
            return self._differentiable(t, state, a)
        with torch.enable_grad():
            point = state.detach().contiguous().requires_grad_()
            g = self.forward.velocity(t, point)
        self.evaluations += 1
        self.products += 1
        pulled = _product([g], [point], [a])[0] if g.requires_grad else None
        velocity = torch.cat((g.detach(), torch.zeros_like(state) if pulled is None else -pulled), 1)
        self.stages[id(velocity)] = _Evaluation(velocity, g, a)
        return velocity

    def _differentiable(self, t: Tensor, state: Tensor, a: Tensor) -> Tensor:
        self.evaluations += 1
        self.products += 1
        g = self.forward.velocity(t, state)
        pulled = torch.autograd.grad(g, state, a, create_graph=True, materialize_grads=True)[0]
        return torch.cat((g, -pulled), 1)

    def select(self, index: Tensor) -> AdjointSystem:
        """See :meth:`System.select`; for the stage equations of an implicit method, whose velocities are no stages themselves."""
        part = copy.copy(self)
        part.forward, part.packing = self.forward.select(index), replace(self.packing, batch=len(index))
        part.stages = {}
        return part

    def commit(self, step: Step, dt: Tensor, accept: Tensor) -> None:
        """Add the step's share of the quadrature, -dt sum_i b_i a_i^T dg_i/dtheta, in one product over all stages."""
        self.committed = True
        if not step.stages:
            raise GradientError(f"the ODE solver {_NEEDS_STAGES}")
        weight = column(torch.where(accept, -dt * self.unit, 0))
        used = [(self.stages[id(stage)], b) for stage, b in zip(step.stages, step.weights, strict=True) if b]
        # The last stage may be the first of the next step.
        self.stages = {key: stage for key, stage in self.stages.items() if stage.velocity is step.state}
        used = [(stage, b) for stage, b in used if stage.g.requires_grad]
        if used and self.inputs:
            # A choice and not a factor: a sample that failed may hold a NaN.
            cotangents = [torch.where(weight != 0, stage.a * (b * weight).to(stage.a.dtype), 0) for stage, b in used]
            self.products += len(used)
            found = _product([stage.g for stage, _ in used], self.inputs, cotangents)
            self.gradients = [_sum(old, new) for old, new in zip(self.gradients, found, strict=True)]

    def arrive(self, z: Tensor, arrived: Tensor, which: Tensor) -> Tensor:
        """At an output time: the stored state, and a with dL/dz there."""
        n = z.shape[1] // 2
        here = self.stored[which.clamp(max=len(self.stored) - 1), torch.arange(len(z), device=z.device)]
        return torch.where(column(arrived), torch.cat((here[:, :n], z[:, n:] + here[:, n:]), 1), z)


def _product(outputs: Sequence[Tensor], inputs: Sequence[Tensor], cotangents: Sequence[Tensor]) -> tuple[Tensor | None, ...]:
    # The graph is kept for the sake of what lies before the solve: a captured tensor that is no leaf.
    return torch.autograd.grad(outputs, inputs, cotangents, retain_graph=True, allow_unused=True)


def _sum(old: Tensor | None, new: Tensor | None) -> Tensor | None:
    return new if old is None else old if new is None else old + new
