"""The adjoint of a trajectory, integrated backwards in time."""

from __future__ import annotations

import warnings
from dataclasses import dataclass, field, replace
from typing import ClassVar, NamedTuple, final

import torch
from torch import Tensor

from implicitcore.errors import ConvergenceWarning, GradientError
from implicitcore.gradients.base import GradientStrategy, Solve
from implicitcore.gradients.trajectory import Bound, attach, pull, total
from implicitcore.ode_solvers.base import ODESolver, Step
from implicitcore.options.options import Options
from implicitcore.options.types import Positive
from implicitcore.solution import Backward, Solution, Status
from implicitcore.system.system import System
from implicitcore.tensors.norms import column, norm
from implicitcore.tensors.restrict import SHARED, rule

_NEEDS_STAGES = (
    "does not say which stages its steps are made of: give Adjoint(solver=...) one "
    "that does (Tsit5), or use Unrolled"
)


@final
@dataclass(frozen=True)
class Adjoint(Options, GradientStrategy):
    """Integrate the state and its adjoint back from the last time.

    Memory does not grow with the number of steps. With a = dL/dz: dz/dt = g, da/dt = -a^T dg/dz,
    and dL/dtheta = -int a^T dg/dtheta dt along the way back (so for x). Every step size is a
    sample's own, and a stage costs one product of the whole batch: a product is linear in its
    cotangent, so the weight of each sample's step scales its cotangent. The parameters' integral is
    a quadrature beside the state and never steers the steps (what others offer as a seminorm). At
    each output time the state is set back to the stored one, and dL/dz there is added to a.

    Gradients reach z0, the tensors of x, the parameters of the dynamics, and leaves that the vector
    field captured. A captured tensor that is no leaf is passed through to its leaves at each step:
    give it in x rather. Captured leaves are looked for at times[0]: one that the field uses only
    later belongs in x or in a module.

    The gradient is that of the continuous trajectory: it differs from ``unrolled`` by the error of
    both integrations. Where the flow contracts strongly, going back in time is unstable; the
    reconstruction of the earlier state is compared with the stored one, and a warning says when it
    drifts. Prefer ``checkpointed`` there: it is exact, and often faster besides.

    Attributes:
        solver: integrates backwards; None takes the forward's.
        drift: warn where a reconstructed state is further off than this, relative to the state, in
            the 2-norm, per sample. The error of the gradient is then some 1e-3: it is smaller than
            the drift by one or two orders.

    Raises:
        GradientError: with a root solver; with a solver that does not tell its stages; on a second
            derivative.

    Reference:
        Chen, Rubanova, Bettencourt, Duvenaud, Neural Ordinary Differential Equations, arXiv
        1806.07366, algorithm 1; parameters outside the error norm: Kidger, Chen, Lyons, "Hey,
        that's not an ODE", arXiv 2009.09457.
    """

    solver: ODESolver | None = None
    drift: Positive = 0.05

    def run(self, solve: Solve, system: System, z0: Tensor) -> Solution:
        """See :meth:`GradientStrategy.run`."""
        if not isinstance(solve.solver, ODESolver):
            name = type(solve.solver).__name__
            raise GradientError(
                f"Adjoint differentiates a trajectory, and {name} finds an equilibrium; "
                "use Implicit"
            )
        with torch.no_grad():
            solution = solve(system, z0)
        if not torch.is_grad_enabled() or solution.times is None:
            return solution
        return attach(self, _Pullback(self, solve, solution, solution.times), system, solution, z0)


@dataclass(frozen=True)
class _Pullback:
    """The way back of one forward solve."""

    strategy: Adjoint
    solve: Solve
    solution: Solution
    times: Tensor

    def __call__(self, bound: Bound, v: Tensor) -> tuple[Tensor, list[Tensor | None]]:
        """See :data:`implicitcore.gradients.trajectory.Pullback`."""
        # The adjoint is linear in v: at unit size the tolerances mean the same whatever the scale
        # of the loss.
        size = torch.linalg.vector_norm(v, dim=(0, 2)) / max(v.shape[2], 1) ** 0.5
        unit = torch.where(size > 0, size, 1).to(self.times.dtype)
        stored = torch.cat((self.solution.z, v / column(unit).to(v.dtype)), 2).flip(0)
        system = AdjointSystem.back(bound, stored, unit)
        solve = replace(self.solve, solver=self.strategy.solver or self.solve.solver)
        back = solve(system, stored[0], self.times.flip(0))
        if system.inputs and not system.committed and bool(back.converged.any()):
            raise GradientError(f"{type(solve.solver).__name__} {_NEEDS_STAGES}")
        n = v.shape[2]
        found, expected = back.z[1:, :, :n], stored[1:, :, :n]
        extent = torch.maximum(_norms(expected), _norms(stored[:-1, :, :n])).clamp(
            min=torch.finfo(unit.dtype).tiny
        )
        self._note(system, back.status, (_norms(found - expected) / extent).amax(0))
        return (back.z[-1, :, n:] + stored[-1, :, n:]) * column(unit).to(v.dtype), system.gradients

    def _note(self, system: AdjointSystem, status: Tensor, drift: Tensor) -> None:
        """Fill the record, and warn where the way back went wrong."""
        record: Backward = self.solution.backward
        record.vjps += system.products
        record.evaluations += system.evaluations
        record.status = status
        usable = self.solution.status == Status.CONVERGED
        lost = int((~usable | (status != Status.CONVERGED)).sum())
        adrift = usable & ~(drift <= self.strategy.drift)
        if lost:
            _warn(f"is incomplete for {lost} of {len(status)} samples: their gradients are wrong")
        elif bool(adrift.any()):
            count, worst = int(adrift.sum()), drift[usable].max().item()
            _warn(
                f"missed the stored states of {count} of {len(status)} samples, by up to "
                f"{worst:.2g} of their size: "
                "the gradient is inexact; use checkpointed or unrolled, or tighter tolerances"
            )


def _norms(z: Tensor) -> Tensor:
    return norm(z.flatten(0, 1)).unflatten(0, z.shape[:2])


def _warn(what: str) -> None:
    warnings.warn(f"the adjoint's way back {what}", ConvergenceWarning, stacklevel=2)


class _Evaluation(NamedTuple):
    """One evaluation of the vector field with its graph."""

    velocity: Tensor  # [batch, 2 n]; kept, so that its id stays its own
    g: Tensor
    a: Tensor


@dataclass(eq=False)
class AdjointSystem(System):
    """The state (z, a), ``[batch, 2 n]``, with dz/dt = g and da/dt = -a^T dg/dz, and the quadrature of the other gradients.

    Attributes:
        forward: the forward system in the backward pass.
        inputs: what gets a gradient.
        stored: the states and what is added to a at each output time of the way back, ``[T, batch,
            2 n]``.
        unit: ``[batch]``, what a is divided by.
    """

    quadrature: ClassVar[bool] = True

    forward: System
    inputs: list[Tensor] = field(metadata=SHARED)
    stored: Tensor = field(metadata=rule(lambda value, rows: value.index_select(1, rows)))
    unit: Tensor

    def __post_init__(self) -> None:
        self.gradients: list[Tensor | None] = [None] * len(self.inputs)
        self.products = 0
        self.committed = False
        self.stages: dict[int, _Evaluation] = {}

    @classmethod
    def back(cls, bound: Bound, stored: Tensor, unit: Tensor) -> AdjointSystem:
        """The way back, counting by itself."""
        system, inputs = bound
        return cls(system.problem, system.context.recounted(), system, inputs, stored, unit)

    def velocity(self, t: Tensor, z: Tensor) -> Tensor:
        """(g, -a^T dg/dz): one evaluation and one product.

        Its graph is kept until the step is committed. Where a graph is asked for, an implicit
        method wants the Jacobian of all this, and the step is made of other velocities.
        """
        state, a = z.tensor_split(2, 1)
        if torch.is_grad_enabled():
            return self._differentiable(t, state, a)
        with torch.enable_grad():
            point = state.detach().contiguous().requires_grad_()
            g = self.forward.velocity(t, point)
        self.evaluations += 1
        self.products += 1
        velocity = torch.empty_like(z)
        rate, back = velocity.tensor_split(2, 1)
        rate.copy_(g.detach())
        pulled = pull([g], [point], [a])[0] if g.requires_grad else None
        if pulled is None:
            back.zero_()
        else:
            torch.neg(pulled, out=back)
        self.stages[id(velocity)] = _Evaluation(velocity, g, a)
        return velocity

    def _differentiable(self, t: Tensor, state: Tensor, a: Tensor) -> Tensor:
        self.evaluations += 1
        self.products += 1
        g = self.forward.velocity(t, state)
        pulled = torch.autograd.grad(g, state, a, create_graph=True, materialize_grads=True)[0]
        return torch.cat((g, -pulled), 1)

    def commit(self, step: Step, dt: Tensor, accept: Tensor | None) -> None:
        """Add the step's share of the quadrature, -dt sum_i b_i a_i^T dg_i/dtheta, in one product over all stages."""
        self.committed = True
        if not step.stages:
            raise GradientError(f"the ODE solver {_NEEDS_STAGES}")
        used = [
            (self.stages[id(stage)], b)
            for stage, b in zip(step.stages, step.weights, strict=True)
            if b
        ]
        # The last stage may be the first of the next step.
        self.stages = {
            key: stage for key, stage in self.stages.items() if stage.velocity is step.state
        }
        used = [(stage, b) for stage, b in used if stage.g.requires_grad]
        if used and self.inputs:
            weight = column(-dt * self.unit).to(step.z.dtype)
            cotangents = [_chosen(stage.a, accept, weight * b) for stage, b in used]
            self.products += len(used)
            found = pull([stage.g for stage, _ in used], self.inputs, cotangents)
            self.gradients = [
                total(old, new) for old, new in zip(self.gradients, found, strict=True)
            ]

    def arrive(self, z: Tensor, arrived: Tensor, which: Tensor) -> Tensor:
        """At an output time: the stored state, and a with dL/dz there."""
        n = z.shape[1] // 2
        here = self.stored[
            which.clamp(max=len(self.stored) - 1), torch.arange(len(z), device=z.device)
        ]
        return torch.where(column(arrived), torch.cat((here[:, :n], z[:, n:] + here[:, n:]), 1), z)


def _chosen(a: Tensor, accept: Tensor | None, weight: Tensor) -> Tensor:
    """The weighted cotangent.

    Zero by choice and not by a factor where a sample did not accept, for one that failed may hold a
    NaN.
    """
    return a * weight if accept is None else torch.where(column(accept), a, 0).mul_(weight)
