"""Implicit Runge-Kutta methods, for stiff dynamics.

Any root solver solves their stage equations.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, NamedTuple, final

import torch
from torch import Tensor

from implicitcore.errors import InputError
from implicitcore.ode_solvers import implicit_tableaus as tableaus
from implicitcore.ode_solvers.base import Step
from implicitcore.ode_solvers.implicit_tableaus import ImplicitTableau
from implicitcore.ode_solvers.stages import Frame, Stage, attached
from implicitcore.ode_solvers.step_size import Adaptive, StepSize
from implicitcore.ode_solvers.stepwise import EqualSteps, StepwiseODESolver
from implicitcore.options.shared import ErrorControl, ErrorTolerance
from implicitcore.options.types import Whole
from implicitcore.root_solvers.base import RootSolver
from implicitcore.root_solvers.broyden import Broyden
from implicitcore.root_solvers.chain import Chain
from implicitcore.root_solvers.newton import Newton
from implicitcore.system.linearization import Linearization
from implicitcore.system.system import System
from implicitcore.tensors.norms import column, real_dtype
from implicitcore.tensors.transforms import check_products


class StepCache(NamedTuple):
    """What a step begins with."""

    velocity: Tensor  # [batch, n], g(t, z)
    jacobian: (
        Tensor  # [batch, n, n], dg/dz there, without a graph; [batch, 0, 0] where it is not formed
    )


@dataclass(frozen=True, kw_only=True)
class ImplicitRungeKutta(ErrorTolerance, StepwiseODESolver[StepCache]):
    """A diagonally implicit Runge-Kutta method.

    Its tableau, and the root solver of its stage equations. Y_i = z + dt sum_{j < i} a_ij k_j + dt
    gamma g(t + c_i dt, Y_i) for one stage after the other, k_j = g(t + c_j dt, Y_j), and the last Y
    is the next state. All stages of a step have the same matrix I - dt gamma dg/dz: where n <=
    ``dense_below`` it is formed and factorised once a step (n products), and makes every equation
    well conditioned, so that also solvers without Jacobians converge fast. A larger system goes to
    the root solver as it stands.

    A sample of which a stage is not solved takes no step: it is tried again with a smaller one
    where steps are adaptive, and ends with the status ``non_finite`` where they are fixed. The
    gradient (``Unrolled``, ``Checkpointed``) is that of the solved stages, by the implicit function
    theorem; first derivatives only. States are real.

    Attributes:
        root_solver: solves the stage equations; its ``tol`` is relative to the error that ``rtol``
            and ``atol`` allow a step, in the root mean square, and to the stage's own move where
            that is smaller.
        dense_below: largest n whose Jacobians are formed; the storage is n^2 per sample.
    """

    tableau: ClassVar[ImplicitTableau]
    root_solver: RootSolver = Chain(
        (Broyden(tol=0.01, max_steps=10), Newton(tol=0.01, max_steps=10))
    )
    dense_below: Whole = 64

    def init(self, system: System, t: Tensor, z: Tensor) -> StepCache:
        """The velocity and, where it is formed, the Jacobian: one evaluation and n products."""
        if z.is_complex():
            raise InputError(
                f"{type(self).__name__}: expected a real state, received {z.dtype}; give "
                "real and imaginary part as two"
            )
        if not self._dense(z):
            return StepCache(system.velocity(t, z), z.new_zeros(len(z), 0, 0))
        check_products()
        attached = torch.is_grad_enabled() and z.requires_grad
        with torch.enable_grad():
            point = z if attached else z.detach().requires_grad_()
            velocity = system.velocity(t, point)
        with torch.no_grad():
            jacobian = Linearization(system, point, velocity).matrix()
        return StepCache(velocity if torch.is_grad_enabled() else velocity.detach(), jacobian)

    def velocity(self, state: StepCache) -> Tensor:
        """See :meth:`Stepper.velocity`."""
        return state.velocity

    def step(self, system: System, t: Tensor, dt: Tensor, z: Tensor, state: StepCache) -> Step:
        """See :meth:`Stepper.step`."""
        tableau, stage_combination, one = (
            self.tableau,
            system.backend.stage_combination,
            torch.ones_like(dt),
        )
        frame = self._frame(dt, z, state.jacobian)
        # dt k_i at the points of the stages; the first of some methods is the state itself
        increments = [state.velocity * column(dt).to(z.dtype) for _ in range(tableau.explicit)]
        points = [(t, z)] * tableau.explicit
        solved, move = torch.ones_like(dt, dtype=torch.bool), torch.zeros_like(z)
        for row, node in zip(
            tableau.a[tableau.explicit :], tableau.c[tableau.explicit :], strict=True
        ):
            offset = (
                stage_combination(None, one, increments, row[:-1])
                if increments
                else torch.zeros_like(z)
            )
            stage = Stage.within(system, t + node * dt, dt * tableau.gamma, offset, frame)
            move, done = self._solve(stage, move)
            solved = solved & done
            # From the equation and not by another evaluation, which would multiply what is left of
            # the error by dt dg/dz.
            increments.append((move - offset) / tableau.gamma)
            points.append((stage.t, z + move))
        # The last stage is the next state; one that is not solved has no value.
        z_next = torch.where(column(solved), points[-1][1], torch.nan)
        error = stage_combination(None, one, increments, tableau.error) if tableau.error else None
        return Step(z_next, error, weights=tableau.b, points=points)

    @property
    def piece_needs_state(self) -> bool:
        """Not where the continuous extension is made of the stages."""
        return not self.tableau.dense

    def piece(
        self, system: System, t: Tensor, dt: Tensor, z: Tensor, state: StepCache, step: Step
    ) -> list[Tensor]:
        """See :meth:`Stepper.piece`.

        The method's own continuous extension, where the tableau has one.
        """
        if not self.tableau.dense:
            return super().piece(system, t, dt, z, state, step)
        combine, one = system.backend.stage_combination, torch.ones_like(dt)
        moves = [point - z for _, point in step.points[self.tableau.explicit :]]
        return [z, step.z - z, *(combine(None, one, moves, row) for row in self.tableau.dense)]

    def _solve(self, stage: Stage, start: Tensor) -> tuple[Tensor, Tensor]:
        """The move of a stage with its gradient, and which samples have one; else zero."""
        with torch.no_grad():
            solution = self.root_solver.solve(stage, start / stage.frame.weight)
            move = torch.where(column(solution.converged), solution.z * stage.frame.weight, 0)
        if torch.is_grad_enabled():
            move = attached(stage, move, dense=self._dense(move))
        return move, solution.converged

    @torch.no_grad()
    def _frame(self, dt: Tensor, z: Tensor, jacobian: Tensor) -> Frame:
        weight = z.abs() * self.rtol + self.atol
        if not self._dense(z):
            return Frame(z, weight, None)
        scale = (dt * self.tableau.gamma).to(real_dtype(z))[:, None, None]
        matrix = torch.eye(z.shape[1], dtype=scale.dtype, device=z.device) - scale * jacobian.to(
            scale.dtype
        )
        factors, pivots, _ = torch.linalg.lu_factor_ex(matrix)
        return Frame(z, weight, (factors, pivots))

    def _dense(self, z: Tensor) -> bool:
        return z.shape[1] <= self.dense_below


@dataclass(frozen=True, kw_only=True)
class FixedImplicitRungeKutta(EqualSteps[StepCache], ImplicitRungeKutta):
    """An implicit Runge-Kutta method with equal steps."""


@final
@dataclass(frozen=True, kw_only=True)
class ImplicitEuler(FixedImplicitRungeKutta):
    """The implicit Euler method, order 1: z_next = z + dt g(t + dt, z_next).

    L-stable: what is fast decays at once, whatever dt is. For steady states in long steps, where
    each nears a Newton iteration; on a trajectory ``ESDIRK`` reaches the same error in far fewer
    steps. ``rtol`` and ``atol`` bound what the stage equation leaves.

    Reference:
        Hairer, Wanner, Solving Ordinary Differential Equations II (1996), section IV.3.
    """

    tableau: ClassVar[ImplicitTableau] = tableaus.IMPLICIT_EULER


@final
@dataclass(frozen=True, kw_only=True)
class Trapezoid(FixedImplicitRungeKutta):
    """The trapezoidal rule, order 2: z_next = z + dt/2 (g(t, z) + g(t + dt, z_next)).

    A-stable and no more: it keeps the size of an oscillation, and what is fast decays slowly, with
    changing sign. Prefer ``ESDIRK`` on stiff dynamics. ``rtol`` and ``atol`` bound what the stage
    equation leaves.

    Reference:
        Hairer, Wanner, Solving Ordinary Differential Equations II (1996), section IV.3.
    """

    tableau: ClassVar[ImplicitTableau] = tableaus.TRAPEZOID


@final
@dataclass(frozen=True, kw_only=True)
class ESDIRK(ErrorControl, ImplicitRungeKutta):
    """Kennedy and Carpenter's ESDIRK4(3)6L[2]SA, adaptive and L-stable.

    Order 4 with an error estimate of order 3; five implicit stages.

    The first choice for stiff dynamics, where the steps of an explicit method follow the fastest
    rate and not the solution; elsewhere ``Tsit5`` is cheaper by far. The local error of each step
    stays below atol + rtol ``|z|``, entry by entry in the root mean square.

    Reference:
        Kennedy, Carpenter, Additive Runge-Kutta schemes for convection-diffusion-reaction
        equations, Appl. Numer. Math. 44 (2003), p. 139-181, appendix C.
    """

    tableau: ClassVar[ImplicitTableau] = tableaus.ESDIRK436

    @property
    def step_size(self) -> StepSize:
        """Adaptive."""
        return Adaptive.of(self, self.tableau.order)
