"""The leapfrog method, for separable Hamiltonian systems."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar, Literal, final

import torch
from torch import Tensor

from implicitcore.errors import InputError
from implicitcore.ode_solvers.base import Step, Stop
from implicitcore.ode_solvers.separable import halves, separable_velocity
from implicitcore.ode_solvers.stepwise import EqualSteps
from implicitcore.solution import Trajectory
from implicitcore.system.system import System
from implicitcore.tensors.norms import column


@final
@dataclass(frozen=True, kw_only=True)
class Leapfrog(EqualSteps[Tensor]):
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
    four evaluations, three of which ask whether the field is separable; dense output and events
    cost two more a step.

    Both forms are reversible: dt and then -dt give the start again. So ``Adjoint`` integrates the
    adjoint of the positions with the momenta, and gives the gradient of ``Unrolled`` up to rounding
    in memory that does not grow with the steps.

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

    def init(self, system: System, t: Tensor, z: Tensor) -> Tensor:
        """See :meth:`Stepper.init`."""
        return separable_velocity(type(self).__name__, system, t, z)

    def step(self, system: System, t: Tensor, dt: Tensor, z: Tensor, state: Tensor) -> Step:
        """See :meth:`Stepper.step`."""
        positions, momenta = halves(system, z)
        outer, inner = (momenta, positions) if self.form == "velocity" else (positions, momenta)
        half, size = outer / 2, dt if dt.ndim == 0 else column(dt)
        z = torch.addcmul(z, state, (size * half).to(z.dtype))
        middle = system.velocity(torch.add(t, dt, alpha=0.5), z)
        z = torch.addcmul(z, middle, (size * inner).to(z.dtype))
        last = system.velocity(t + dt, z)
        z = torch.addcmul(z, last, (size * half).to(z.dtype))
        return Step(z, None, last, (state, middle, last), (half, inner, half))

    def piece(
        self, system: System, t: Tensor, dt: Tensor, z: Tensor, state: Tensor, step: Step
    ) -> list[Tensor]:
        """See :meth:`Stepper.piece`: Hermite's cubic, of the velocities at both ends themselves."""
        start, end = system.velocity(t, z), system.velocity(t + dt, step.z)
        return super().piece(system, t, dt, z, start, step._replace(state=end))
