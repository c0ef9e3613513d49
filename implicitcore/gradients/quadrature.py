"""The adjoint system, and the quadrature of the other gradients along its steps."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import ClassVar, NamedTuple

import torch
from torch import Tensor

from implicitcore.errors import GradientError
from implicitcore.gradients.trajectory import Bound, pull, total
from implicitcore.ode_solvers.base import ODESolver, Step
from implicitcore.ode_solvers.stepper import StepObserver
from implicitcore.system.system import System
from implicitcore.tensors.norms import column
from implicitcore.tensors.restrict import SHARED

ANOTHER = "give Adjoint(solver=...) another one (Tsit5), or use Unrolled"
"""What to do about a solver that cannot integrate backwards."""


class Stage(NamedTuple):
    """One evaluation of the vector field with its graph."""

    velocity: Tensor  # [batch, 2 n]
    g: Tensor  # [batch, n], with its graph
    a: Tensor  # [batch, n]


@dataclass(eq=False)
class AdjointSystem(System):
    """The state (z, a), ``[batch, 2 n]``, with dz/dt = g and da/dt = -a^T dg/dz.

    Attributes:
        forward: the forward system in the backward pass.
        inputs: what gets a gradient.
        evaluated: the stages since it was last emptied, in order.
        products: vector-Jacobian products so far.
        stand_in: samples that failed, ``[batch]``, and states ``[batch, n]`` at which f is asked
            for them: their own are not finite, and would make NaN of what all samples add up to.
        momenta: of a separable field: the adjoint of the positions moves with the momenta.
    """

    momenta: ClassVar[tuple[bool, ...]] = (False, True, True, False)
    forward: System
    inputs: list[Tensor] = field(metadata=SHARED)

    def __post_init__(self) -> None:
        self.products = 0
        self.stand_in: tuple[Tensor, Tensor] | None = None
        self.evaluated: list[Stage] = []

    @classmethod
    def of_bound(cls, bound: Bound) -> AdjointSystem:
        """The adjoint of the forward system, counting by itself."""
        system, inputs = bound
        return cls(system.problem, system.context.recounted(), system, inputs)

    def velocity(self, t: Tensor, z: Tensor) -> Tensor:
        """(g, -a^T dg/dz): one evaluation and one product.

        Where a graph is asked for, an implicit method wants the Jacobian of all this: that is no
        stage of a step.
        """
        if torch.is_grad_enabled():
            return self._differentiable(t, *z.tensor_split(2, 1))
        stage = self.stage(t, z)
        self.evaluated.append(stage)
        return stage.velocity

    def stage(self, t: Tensor, z: Tensor) -> Stage:
        """The velocity with the graph of g."""
        state, a = z.tensor_split(2, 1)
        if self.stand_in is not None:
            failed, start = self.stand_in
            state = torch.where(column(failed), start, state)
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
        return Stage(velocity, g, a)

    def _differentiable(self, t: Tensor, state: Tensor, a: Tensor) -> Tensor:
        self.evaluations += 1
        self.products += 1
        g = self.forward.velocity(t, state)
        pulled = torch.autograd.grad(g, state, a, create_graph=True, materialize_grads=True)[0]
        return torch.cat((g, -pulled), 1)


class Quadrature(StepObserver):
    """The gradients beside the state, -int a^T dg/dtheta dt, by the weights of each step.

    Arguments:
        system: evaluates the stages.
        solver: named in errors.
        stored: the states and what is added to a at each output time, backwards, ``[T, batch,
            2 n]``.
        unit: ``[batch]``, what a is divided by.
        divided: ``[T, batch]`` bool, where nothing is stored and the state goes on as it is.

    Attributes:
        gradients: one for each input of the system; None is zero.
    """

    def __init__(
        self,
        system: AdjointSystem,
        solver: ODESolver,
        stored: Tensor,
        unit: Tensor,
        divided: Tensor | None = None,
    ) -> None:
        self.system, self.stored, self.unit, self.divided = system, stored, unit, divided
        self.gradients: list[Tensor | None] = [None] * len(system.inputs)
        self._name = type(solver).__name__
        self._first: list[Stage] = []  # that of the state, if there is one
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
        cotangents = [_chosen(stage.a, accept, weight * _of_state(b)) for stage, b in used]
        system.products += len(used)
        found = pull([stage.g for stage, _ in used], system.inputs, cotangents)
        self.gradients = [total(old, new) for old, new in zip(self.gradients, found, strict=True)]

    def _stages(self, step: Step) -> list[tuple[Stage, float | Tensor]]:
        """The evaluations that a step is made of, with their weights: none that is zero."""
        if step.points:
            pairs = zip(step.points, step.weights, strict=True)
            return [(self.system.stage(t, z), b) for (t, z), b in pairs if _counts(b)]
        stages = [*self._first, *self.system.evaluated]
        self._first = [] if step.state is None else self.system.evaluated[-1:]
        self._check(step, stages)
        return [(stage, b) for stage, b in zip(stages, step.weights, strict=True) if _counts(b)]

    def _check(self, step: Step, stages: list[Stage]) -> None:
        """Raise where the step does not name its stages, all of them.

        At the first step they are compared with those that were evaluated: the order of a method is
        the same at every step.
        """
        if not step.stages:
            raise GradientError(
                f"{self._name} does not name the stages of its steps, so it cannot integrate "
                f"backwards: {ANOTHER}"
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
        place = which.clamp(max=len(self.stored) - 1), torch.arange(len(z), device=z.device)
        here = self.stored[place]
        if self.divided is not None:
            arrived = arrived & ~self.divided[place]
        return torch.where(column(arrived), torch.cat((here[:, :n], z[:, n:] + here[:, n:]), 1), z)


def _counts(weight: float | Tensor) -> bool:
    """Whether a stage has a weight that is not zero; those of its entries are not looked at."""
    return isinstance(weight, Tensor) or weight != 0


def _of_state(weight: float | Tensor) -> float | Tensor:
    """The weights of the entries of g, ``[n]``, from those of (g, -a^T dg/dz)."""
    return weight.tensor_split(2)[0] if isinstance(weight, Tensor) else weight


def _same(named: Tensor, stage: Stage) -> bool:
    """Whether two velocities are equal; NaN is equal to NaN."""
    return torch.allclose(named, stage.velocity, rtol=0, atol=0, equal_nan=True)


def _chosen(a: Tensor, accept: Tensor | None, weight: Tensor) -> Tensor:
    """The weighted cotangent.

    Zero by choice and not by a factor where a sample did not accept, for one that failed may hold a
    NaN.
    """
    return a * weight if accept is None else torch.where(column(accept), a, 0).mul_(weight)
