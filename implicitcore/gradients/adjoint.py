"""The adjoint of a trajectory, integrated backwards in time."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, final

import torch
from torch import Tensor

from implicitcore.errors import ConvergenceWarning, GradientError
from implicitcore.gradients.base import GradientStrategy, Solve
from implicitcore.gradients.event_times import SpansToEvents, with_event_times
from implicitcore.gradients.quadrature import ANOTHER, AdjointSystem, Quadrature
from implicitcore.gradients.trajectory import Bound, attach, pull, total
from implicitcore.ode_solvers.additive_runge_kutta import AdditiveRungeKutta
from implicitcore.ode_solvers.base import ODESolver
from implicitcore.ode_solvers.error_scale import with_adjoints
from implicitcore.ode_solvers.loop import integrate_loop
from implicitcore.ode_solvers.split import split
from implicitcore.ode_solvers.stepwise import StepwiseODESolver
from implicitcore.ode_solvers.stops import StepAt
from implicitcore.options.options import Options
from implicitcore.options.types import Positive
from implicitcore.solution import Backward, Status, Trajectory
from implicitcore.system.repeated import owner_of, warn_repeatedly
from implicitcore.system.system import System
from implicitcore.tensors.norms import column, norm, scaled_norm
from implicitcore.tensors.transforms import check_gradient


@final
@dataclass(frozen=True)
class Adjoint(Options, GradientStrategy):
    """Integrate the state and its adjoint back from the last time.

    Memory does not grow with the number of steps. With a = dL/dz: dz/dt = g, da/dt = -a^T dg/dz,
    and dL/dtheta = -int a^T dg/dtheta dt, integrated backwards (so for x). Every step size is a
    sample's own, and a stage costs one product of the whole batch: a product is linear in its
    cotangent, so the weight of each sample's step scales its cotangent. The parameters' integral is
    a quadrature beside the state and never steers the steps (what others offer as a seminorm). At
    each output time the state is set back to the stored one, and dL/dz there is added to a: a step
    ends there, so that the way back takes at least one for each output time, where ``checkpointed``
    takes the same for any number of them. Prefer that with hundreds.

    Gradients reach z0, the tensors of x, the parameters of the dynamics, and leaves that the vector
    field captured. A captured tensor that is no leaf is passed through to its leaves at each step:
    give it in x rather. Captured leaves are looked for at the first and the last time: one that the
    field uses only between them belongs in x or in a module, and is an error.

    The gradient is that of the continuous trajectory: it differs from ``unrolled`` by the error of
    both integrations. Where the flow contracts strongly, going back in time is unstable; the
    reconstruction of the earlier state is compared with the stored one, and a warning says when it
    drifts. Prefer ``checkpointed`` there: it is exact, and often faster besides.

    Attributes:
        solver: integrates backwards; None takes the forward's (of ``Adams``, ``Tsit5`` with its
            options).
        drift: warn where a reconstructed state is further off than this, relative to the state, in
            the 2-norm, per sample. The error of the gradient is then some 1e-3: it is smaller than
            the drift by one or two orders.

    Raises:
        GradientError: with a root solver; with an additive solver of a ``SplitField``; with a
            solver whose steps cannot be followed, or do not name their stages; on a second
            derivative; where the vector field has changed since the solve.

    Reference:
        Chen, Rubanova, Bettencourt, Duvenaud, Neural Ordinary Differential Equations, arXiv
        1806.07366, algorithm 1; parameters outside the error norm: Kidger, Chen, Lyons, "Hey,
        that's not an ODE", arXiv 2009.09457.
    """

    events: ClassVar[bool] = True

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
        back = self.solver or solver.backward_solver()
        if torch.is_grad_enabled():
            _check_split(back, system)
            if solve.events and solve.step_at is not None:
                raise GradientError(_JUMPS)
        with torch.no_grad():
            solution = solve.integrate(solver, system, z0)
        if not torch.is_grad_enabled():
            return solution
        ends = solution.event_times
        if ends is None or not len(ends):
            pullback = _Pullback(self, back, solution, solve.step_at)
            return attach(self, pullback, system, solution, z0)
        spans = SpansToEvents.of(solution, ends)
        pullback = _Pullback(self, back, spans.trajectory, None, spans.divided)
        found = attach(self, pullback, system, spans.trajectory, z0)
        found = found.amended(z=spans.at_outputs(found.z), times=solution.times)
        return with_event_times(self, solve, system, found)


@dataclass(frozen=True)
class _Pullback:
    """The backward integration of one forward solve."""

    strategy: Adjoint
    solver: ODESolver
    solution: Trajectory
    step_at: StepAt | None
    divided: Tensor | None = None  # [T, batch], times at which nothing is known or asked

    def __call__(
        self, bound: Bound, v: Tensor, end: Tensor | None = None
    ) -> tuple[Tensor, list[Tensor | None]]:
        """See :data:`implicitcore.gradients.trajectory.Pullback`."""
        del end  # it is the last of the states
        check_gradient(v)
        # The adjoint is linear in v: at unit size the tolerances mean the same whatever the scale
        # of the loss.
        times, finite = self.solution.times, v.isfinite().all(2).all(0)
        v = torch.where(column(finite), v, 0)
        size = scaled_norm(v.transpose(0, 1).flatten(1)) / max(v.shape[2], 1) ** 0.5
        unit = torch.where(size > 0, size, 1).to(times.dtype)
        stored = torch.cat((self.solution.z, v / column(unit).to(v.dtype)), 2).flip(0)
        system, lost = AdjointSystem.of_bound(bound), self._lost()
        if bool(lost.any()):
            system.stand_in = lost, self.solution.z[0]
        divided, n = None if self.divided is None else self.divided.flip(0), v.shape[2]
        quadrature = Quadrature(system, self.solver, stored, unit, divided)
        back = self._integrate(system, stored[0], times.flip(0), quadrature, n)
        gradients = quadrature.gradients
        if not bool(finite.all()):
            gradients = self._with_nan(system, gradients, finite)
        found, expected = back.z[1:, :, :n], stored[1:, :, :n]
        extent = torch.maximum(_norms(expected), _norms(stored[:-1, :, :n])).clamp(
            min=torch.finfo(unit.dtype).tiny
        )
        away = _norms(found - expected) / extent
        drift = (away if divided is None else torch.where(divided[1:], 0, away)).amax(0)
        self._note(system, back.status, drift, asked=size > 0)
        a = (back.z[-1, :, n:] + stored[-1, :, n:]) * column(unit).to(v.dtype)
        return torch.where(column(finite), a, torch.nan), gradients

    def _with_nan(
        self, system: AdjointSystem, gradients: Sequence[Tensor | None], finite: Tensor
    ) -> list[Tensor | None]:
        """The gradients with NaN in what the samples that are not ``finite`` depend on.

        No step is accepted with a NaN, and a zero would hide it from who scales the loss.
        """
        z0 = self.solution.z[0]
        a = torch.where(column(finite), torch.zeros_like(z0), torch.nan)
        stage = system.stage(self.solution.times[0].expand(len(z0)), torch.cat((z0, a), 1))
        if not (stage.g.requires_grad and system.inputs):
            return list(gradients)
        return [
            total(*pair)
            for pair in zip(gradients, pull([stage.g], system.inputs, [a]), strict=True)
        ]

    def _integrate(
        self, system: AdjointSystem, z0: Tensor, times: Tensor, quadrature: Quadrature, n: int
    ) -> Trajectory:
        if not isinstance(self.solver, StepwiseODESolver):
            name = type(self.solver).__name__
            raise GradientError(
                f"{name} does not show its steps, so it cannot integrate backwards: {ANOTHER}"
            )
        solver = with_adjoints(self.solver, n)
        return integrate_loop(solver, system, z0, times, step_at=self.step_at, observer=quadrature)

    def _lost(self) -> Tensor:
        """The samples ``[batch]`` whose states or velocities were not finite."""
        status = self.solution.status
        return (status == Status.NON_FINITE) | (status == Status.DIVERGED)

    def _note(self, system: AdjointSystem, status: Tensor, drift: Tensor, asked: Tensor) -> None:
        """Fill the record, and warn where the integration of an ``asked`` gradient went wrong."""
        record: Backward = self.solution.backward
        record.vjps += system.products
        record.evaluations += system.evaluations
        record.status = status
        usable = self.solution.status == Status.CONVERGED
        lost = int((asked & (~usable | (status != Status.CONVERGED))).sum())
        adrift = asked & usable & ~(drift <= self.strategy.drift)
        if lost:
            what = f"is incomplete for {lost} of {len(status)} samples: their gradients are wrong"
            _warn(system, "incomplete", what)
        elif bool(adrift.any()):
            count, worst = int(adrift.sum()), drift[usable].max().item()
            _warn(
                system,
                "drift",
                f"missed the stored states of {count} of {len(status)} samples, by up to "
                f"{worst:.2g} of their size: "
                "the gradient is inexact; use checkpointed or unrolled, or tighter tolerances",
            )


def _check_split(solver: ODESolver, system: System) -> None:
    """Refuse to go back along a field of which a part is said to be stiff.

    That part contracts, so the way back is unstable, whatever the method: the reconstructed state
    is lost within a few of its time scales.
    """
    if isinstance(solver, AdditiveRungeKutta) and split(system) is not None:
        raise GradientError(
            f"Adjoint goes back in time, where the stiff part of a SplitField makes the state of "
            f"{type(solver).__name__} grow without bound; use Checkpointed, which is exact, or "
            "where that part is mild Adjoint(solver=Tsit5())"
        )


_JUMPS = (
    "Adjoint goes back from the event of each sample, and jumps of the field (step_at) need one "
    "clock; use Checkpointed, or Unrolled"
)


def _norms(z: Tensor) -> Tensor:
    return norm(z.flatten(0, 1)).unflatten(0, z.shape[:2])


def _warn(system: System, cause: str, what: str) -> None:
    warn_repeatedly(
        owner_of(system.dynamics),
        cause,
        lambda: f"the adjoint's backward integration {what}",
        ConvergenceWarning,
    )
