"""The leapfrog method, for separable Hamiltonian systems."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar, Literal, NamedTuple, final

import torch
from torch import Tensor

from implicitcore.errors import InputError
from implicitcore.ode_solvers.base import Step, Stop
from implicitcore.ode_solvers.separable import halves, separable_velocity
from implicitcore.ode_solvers.stepwise import EqualSteps
from implicitcore.solution import Trajectory
from implicitcore.system.system import System
from implicitcore.tensors.norms import column, real_dtype


class Velocities(NamedTuple):
    """What a step begins with, and what the continuous extension needs of the step before."""

    velocity: Tensor  # [batch, n], of the outer half here
    middle: Tensor  # [batch, n], of the inner half in the middle of the last step; at first here
    dt: Tensor  # [batch], of that step; at first zero


@final
@dataclass(frozen=True, kw_only=True)
class Leapfrog(EqualSteps[Velocities]):
    """The leapfrog or Störmer-Verlet method, order 2, symplectic: two evaluations a step.

    For Hamiltonian systems H = T(p) + V(q) over long times, and for all fields that are separable:
    dq/dt = G(t, p) and dp/dt = F(t, q). The error of the energy stays O(dt^2) over times that grow
    exponentially with 1/dt, where that of other methods grows with each step; the phase is as
    exact as the order says. Over few periods, or to a tight tolerance, prefer ``Tsit5`` or
    ``DOP853``; for a field with friction, or one that is not separable, any other solver.

    The state is a pair (q, p) of tensors of one shape, or one tensor ``[batch, 2 k, ...]`` whose
    first half is q; real or complex. The velocity form (kick, drift, kick) is
    p_1/2 = p + dt/2 F(t, q), q_1 = q + dt G(t + dt/2, p_1/2), p_1 = p_1/2 + dt/2 F(t + dt, q_1);
    the position form exchanges the two. Both are one method, begun half a step apart. A start costs
    four evaluations, three of which ask whether the field is separable. Between the steps the half
    that moves at their ends (p, in the velocity form) is Hermite's cubic, and the other a parabola,
    whose curvature is that of two steps: of order 2, and no evaluation.

    Both forms are reversible: dt and then -dt give the start again. So ``Adjoint`` integrates the
    adjoint of the positions with the momenta, and gives the gradient of ``Unrolled`` up to rounding
    in memory that does not grow with the steps: where steps end at the output times, as those of
    two times, of a grid of dt, or of ``hit_times`` do.

    Attributes:
        form: ``"velocity"`` moves p first and evaluates F at the ends of a step, ``"position"``
            moves q first.

    Raises:
        InputError: the state has no two equal halves; dq/dt changes with q or dp/dt with p (asked
            at the start, near z0); a steady state is wanted.

    Reference:
        Hairer, Lubich, Wanner, Geometric numerical integration illustrated by the Störmer-Verlet
        method, Acta Numerica 12 (2003), p. 399-450; Verlet, Phys. Rev. 159 (1967), p. 98-103. The
        gradient: Sanz-Serna, Symplectic Runge-Kutta schemes for adjoint equations, automatic
        differentiation, optimal control, and more, SIAM Review 58 (2016), p. 3-33.
    """

    separable: ClassVar[bool] = True
    lockstep: ClassVar[bool] = True
    velocity_beside: ClassVar[bool] = True
    order: ClassVar[int] = 2
    form: Literal["velocity", "position"] = "velocity"

    def solve(
        self,
        system: System,
        z0: Tensor,
        times: Tensor,
        stop: Stop | None = None,
        **options: Any,
    ) -> Trajectory:
        """See :meth:`StepwiseODESolver.solve`.

        Raises:
            InputError: it is to end at a steady state.
        """
        if stop is not None:
            raise InputError(
                "Leapfrog keeps the energy, and a system that keeps it comes to no steady state: "
                "use another ODE solver (Adams, Tsit5)"
            )
        return super().solve(system, z0, times, **options)

    def init(self, system: System, t: Tensor, z: Tensor) -> Velocities:
        """See :meth:`Stepper.init`."""
        velocity = separable_velocity(type(self).__name__, system, t, z)
        return Velocities(velocity, velocity, torch.zeros_like(t, dtype=real_dtype(z)))

    def velocity(self, state: Velocities) -> Tensor:
        """See :meth:`Stepper.velocity`."""
        return state.velocity

    def step(self, system: System, t: Tensor, dt: Tensor, z: Tensor, state: Velocities) -> Step:
        """See :meth:`Stepper.step`."""
        outer, inner = self._halves(system, z)
        half, size = outer / 2, dt if dt.ndim == 0 else column(dt)
        z = torch.addcmul(z, state.velocity, (size * half).to(z.dtype))
        middle = system.velocity(torch.add(t, dt, alpha=0.5), z)
        z = torch.addcmul(z, middle, (size * inner).to(z.dtype))
        last = system.velocity(t + dt, z)
        z = torch.addcmul(z, last, (size * half).to(z.dtype))
        following = Velocities(last, middle, dt.expand(len(z)))
        return Step(z, None, following, (state.velocity, middle, last), (half, inner, half))

    @property
    def piece_needs_state(self) -> bool:
        """Not: it is made of the velocities of this step and the last."""
        return False

    def piece(  # noqa: PLR0913 - that of every solver
        self, system: System, t: Tensor, dt: Tensor, z: Tensor, state: Velocities, step: Step
    ) -> list[Tensor]:
        """See :meth:`Stepper.piece`."""
        outer, inner = self._halves(system, z)
        first, middle, last = step.stages
        dt = dt.to(state.dt.dtype)
        # The slope of the inner half here lies between those in the middle of the steps.
        both = state.dt + dt
        share = column(dt * dt / torch.where(both == 0, 1, both)).to(z.dtype)
        width, move = column(dt).to(z.dtype), step.z - z
        bend = width * first - move
        twist = outer * (move - width * last - bend)
        return [z, move, outer * bend + inner * (share * (state.middle - middle)), twist]

    def _halves(self, system: System, z: Tensor) -> tuple[Tensor, Tensor]:
        """One in the half that moves at the ends of a step, and in the one that moves between."""
        positions, momenta = halves(system, z)
        return (momenta, positions) if self.form == "velocity" else (positions, momenta)
