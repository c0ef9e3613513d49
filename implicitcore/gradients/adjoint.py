"""The adjoint of a trajectory, integrated backwards in time."""

from __future__ import annotations

import copy
import warnings
from dataclasses import dataclass, replace
from typing import NamedTuple, final

import torch
from torch import Tensor

from implicitcore.errors import ConvergenceWarning, GradientError
from implicitcore.gradients.base import GradientStrategy, Solve
from implicitcore.gradients.trajectory import Bound, attach, pull, total
from implicitcore.ode_solvers.base import ODESolver, Step
from implicitcore.ode_solvers.integration import integrate_loop
from implicitcore.ode_solvers.stepper import StepObserver
from implicitcore.ode_solvers.stepwise import StepwiseODESolver
from implicitcore.options.options import Options
from implicitcore.options.types import Positive
from implicitcore.solution import Backward, Status, Trajectory
from implicitcore.system.system import System
from implicitcore.tensors.norms import column, norm

_ANOTHER = "give Adjoint(solver=...) another one (Tsit5), or use Unrolled"


@final
@dataclass(frozen=True)
class Adjoint(Options, GradientStrategy):
    """Integrate the state and its adjoint back from the last time.

    Memory does not grow with the number of steps. With a = dL/dz: dz/dt = g, da/dt = -a^T dg/dz,
    and dL/dtheta = -int a^T dg/dtheta dt, integrated backwards (so for x). Every step size is a
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
        GradientError: with a root solver; with a solver whose steps cannot be followed, or do not
            name their stages; on a second derivative.

    Reference:
        Chen, Rubanova, Bettencourt, Duvenaud, Neural Ordinary Differential Equations, arXiv
        1806.07366, algorithm 1; parameters outside the error norm: Kidger, Chen, Lyons, "Hey,
        that's not an ODE", arXiv 2009.09457.
    """

    solver: ODESolver | None = None
    drift: Positive = 0.05

    def run(self, solve: Solve, system: System, z0: Tensor) -> Trajectory:
        """See :meth:`GradientStrategy.run`."""
        solver = solve.solver
        if not isinstance(solver, ODESolver):
            raise GradientError(
                f"Adjoint differentiates a trajectory, and {type(solver).__name__} finds an "
                "equilibrium; use Implicit"
            )
        with torch.no_grad():
            solution = solver.solve(system, z0, solve.grid)
        if not torch.is_grad_enabled():
            return solution
        return attach(self, _Pullback(self, self.solver or solver, solution), system, solution, z0)


@dataclass(frozen=True)
class _Pullback:
    """The backward integration of one forward solve."""

    strategy: Adjoint
    solver: ODESolver
    solution: Trajectory

    def __call__(self, bound: Bound, v: Tensor) -> tuple[Tensor, list[Tensor | None]]:
        """See :data:`implicitcore.gradients.trajectory.Pullback`."""
        # The adjoint is linear in v: at unit size the tolerances mean the same whatever the scale
        # of the loss.
        times = self.solution.times
        size = torch.linalg.vector_norm(v, dim=(0, 2)) / max(v.shape[2], 1) ** 0.5
        unit = torch.where(size > 0, size, 1).to(times.dtype)
        stored = torch.cat((self.solution.z, v / column(unit).to(v.dtype)), 2).flip(0)
        system = AdjointSystem(bound)
        quadrature = Quadrature(system, self.solver, stored, unit)
        back = self._integrate(system, stored[0], times.flip(0), quadrature)
        n = v.shape[2]
        found, expected = back.z[1:, :, :n], stored[1:, :, :n]
        extent = torch.maximum(_norms(expected), _norms(stored[:-1, :, :n])).clamp(
            min=torch.finfo(unit.dtype).tiny
        )
        self._note(system, back.status, (_norms(found - expected) / extent).amax(0))
        return (back.z[-1, :, n:] + stored[-1, :, n:]) * column(unit).to(
            v.dtype
        ), quadrature.gradients

    def _integrate(
        self, system: AdjointSystem, z0: Tensor, times: Tensor, quadrature: Quadrature
    ) -> Trajectory:
        if not isinstance(self.solver, StepwiseODESolver):
            name = type(self.solver).__name__
            raise GradientError(
                f"{name} does not show its steps, so it cannot integrate backwards: {_ANOTHER}"
            )
        return integrate_loop(self.solver, system, z0, times, observer=quadrature)

    def _note(self, system: AdjointSystem, status: Tensor, drift: Tensor) -> None:
        """Fill the record, and warn where the integration went wrong."""
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
    warnings.warn(f"the adjoint's backward integration {what}", ConvergenceWarning, stacklevel=2)


class Evaluation(NamedTuple):
    """One evaluation of the vector field with its graph."""

    velocity: Tensor  # [batch, 2 n]
    g: Tensor  # [batch, n], with its graph
    a: Tensor  # [batch, n]


class AdjointSystem(System):
    """The state (z, a), ``[batch, 2 n]``, with dz/dt = g and da/dt = -a^T dg/dz.

    Arguments:
        bound: the forward system, and what gets a gradient.

    Attributes:
        evaluated: the evaluations since it was last emptied, in order.
        products: vector-Jacobian products so far.
    """

    def __init__(self, bound: Bound) -> None:
        self.forward, self.inputs = bound
        system = self.forward
        super().__init__(system.dynamics, system.x, system.packing, backend=system.backend)
        self.products = 0
        self.evaluated: list[Evaluation] = []

    def velocity(self, t: Tensor, z: Tensor) -> Tensor:
        """(g, -a^T dg/dz): one evaluation and one product.

        Where a graph is asked for, an implicit method wants the Jacobian of all this: that is no
        stage of a step.
        """
        if torch.is_grad_enabled():
            return self._differentiable(t, *z.tensor_split(2, 1))
        evaluation = self.evaluate(t, z)
        self.evaluated.append(evaluation)
        return evaluation.velocity

    def evaluate(self, t: Tensor, z: Tensor) -> Evaluation:
        """The velocity with the graph of g."""
        state, a = z.tensor_split(2, 1)
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
        return Evaluation(velocity, g, a)

    def _differentiable(self, t: Tensor, state: Tensor, a: Tensor) -> Tensor:
        self.evaluations += 1
        self.products += 1
        g = self.forward.velocity(t, state)
        pulled = torch.autograd.grad(g, state, a, create_graph=True, materialize_grads=True)[0]
        return torch.cat((g, -pulled), 1)

    def select(self, index: Tensor) -> AdjointSystem:
        """See :meth:`System.select`.

        For the stage equations of an implicit method, whose velocities are no stages themselves.
        """
        part = copy.copy(self)
        part.forward, part.packing = (
            self.forward.select(index),
            replace(self.packing, batch=len(index)),
        )
        part.evaluated = []
        return part


class Quadrature(StepObserver):
    """The gradients beside the state, -int a^T dg/dtheta dt, by the weights of each step.

    Arguments:
        system: evaluates the stages.
        solver: named in errors.
        stored: the states and what is added to a at each output time, backwards, ``[T, batch,
            2 n]``.
        unit: ``[batch]``, what a is divided by.

    Attributes:
        gradients: one for each input of the system; None is zero.
    """

    def __init__(
        self, system: AdjointSystem, solver: ODESolver, stored: Tensor, unit: Tensor
    ) -> None:
        self.system, self.stored, self.unit = system, stored, unit
        self.gradients: list[Tensor | None] = [None] * len(system.inputs)
        self._name = type(solver).__name__
        self._first: list[Evaluation] = []  # that of the state, if there is one
        self._checked = False

    def after_init(self) -> None:
        """See :meth:`StepObserver.after_init`."""
        self._first = self.system.evaluated[-1:]

    def before_step(self) -> None:
        """See :meth:`StepObserver.before_step`."""
        self.system.evaluated = []

    def after_step(self, step: Step, dt: Tensor, accept: Tensor | None) -> None:
        """Add -dt sum_i b_i a_i^T dg_i/dtheta, in one product over all stages."""
        stages, system = self._stages(step), self.system
        used = [(stage, b) for stage, b in stages if stage.g.requires_grad]
        if not used or not system.inputs:
            return
        weight = column(-dt * self.unit).to(step.z.dtype)
        cotangents = [_chosen(stage.a, accept, weight * b) for stage, b in used]
        system.products += len(used)
        found = pull([stage.g for stage, _ in used], system.inputs, cotangents)
        self.gradients = [total(old, new) for old, new in zip(self.gradients, found, strict=True)]

    def _stages(self, step: Step) -> list[tuple[Evaluation, float]]:
        """The evaluations that a step is made of, with their weights: none that is zero."""
        if step.points:
            pairs = zip(step.points, step.weights, strict=True)
            return [(self.system.evaluate(t, z), b) for (t, z), b in pairs if b]
        stages = [*self._first, *self.system.evaluated]
        self._first = [] if step.state is None else self.system.evaluated[-1:]
        self._check(step, stages)
        return [(stage, b) for stage, b in zip(stages, step.weights, strict=True) if b]

    def _check(self, step: Step, stages: list[Evaluation]) -> None:
        """Raise where the step does not name its stages, all of them.

        At the first step they are compared with those that were evaluated: the order of a method is
        the same at every step.
        """
        if not step.stages:
            raise GradientError(
                f"{self._name} does not name the stages of its steps, so it cannot integrate "
                f"backwards: {_ANOTHER}"
            )
        named, weights = len(step.stages), len(step.weights)
        wrong = f"{len(stages)} velocities were evaluated for a step"
        if named == weights == len(stages):
            if self._checked or all(map(_same, step.stages, stages)):
                self._checked = True
                return
            wrong = "they are not the velocities of the step in the order of their evaluation"
        raise GradientError(
            f"{self._name} names {named} stages and {weights} weights, and {wrong}: expected that "
            "of the state first, then each that step() evaluated, with weight zero for one that z "
            "does not need"
        )

    def arrive(self, z: Tensor, arrived: Tensor, which: Tensor) -> Tensor:
        """At an output time: the stored state, and a with dL/dz there."""
        n = z.shape[1] // 2
        here = self.stored[
            which.clamp(max=len(self.stored) - 1), torch.arange(len(z), device=z.device)
        ]
        return torch.where(column(arrived), torch.cat((here[:, :n], z[:, n:] + here[:, n:]), 1), z)


def _same(named: Tensor, stage: Evaluation) -> bool:
    """Whether two velocities are equal; NaN is equal to NaN."""
    return torch.allclose(named, stage.velocity, rtol=0, atol=0, equal_nan=True)


def _chosen(a: Tensor, accept: Tensor | None, weight: Tensor) -> Tensor:
    """The weighted cotangent.

    Zero by choice and not by a factor where a sample did not accept, for one that failed may hold a
    NaN.
    """
    return a * weight if accept is None else torch.where(column(accept), a, 0).mul_(weight)
