"""Diagonally implicit Runge-Kutta methods, for stiff dynamics."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, final

import torch
from torch import Tensor

from implicitcore.ode_solvers import implicit_tableaus as tableaus
from implicitcore.ode_solvers.factors import Factors
from implicitcore.ode_solvers.implicit_method import ImplicitMethod
from implicitcore.ode_solvers.implicit_tableaus import ImplicitTableau
from implicitcore.ode_solvers.newton_step import NewtonStep
from implicitcore.ode_solvers.stage_sequence import StageSequence
from implicitcore.ode_solvers.stages import Frame
from implicitcore.ode_solvers.step_cache import Kept, StepCache
from implicitcore.ode_solvers.step_size import Adaptive, StepSize
from implicitcore.ode_solvers.stepwise import EqualSteps
from implicitcore.options.shared import ErrorControl
from implicitcore.root_solvers.base import RootSolver
from implicitcore.root_solvers.broyden import Broyden
from implicitcore.root_solvers.chain import Chain
from implicitcore.root_solvers.newton import Newton
from implicitcore.system.system import System
from implicitcore.tensors.norms import column, real_dtype

# Solves the stages of states that are too large for a matrix, where no other is given.
MATRIX_FREE = Chain((Broyden(tol=0.01, max_steps=10), Newton(tol=0.01, max_steps=10)))


@dataclass(frozen=True, kw_only=True)
class ImplicitRungeKutta(ImplicitMethod):
    """A diagonally implicit Runge-Kutta method.

    Y_i = z + dt sum_{j < i} a_ij k_j + dt gamma g(t + c_i dt, Y_i) for one stage after the other,
    k_j = g(t + c_j dt, Y_j), and the last Y is the next state. All stages of a step have the same
    matrix I - dt gamma dg/dz. Where n <= ``dense_below`` it is formed (n products) and factorised,
    and the simplified Newton method solves the equations: the factors serve all stages, and further
    steps as long as dt is about the same; the Jacobian serves until the iterations become slow.

    A larger system, and one whose ``root_solver`` is given, goes to a root solver; where the matrix
    is formed, as the Picard iteration that is the simplified Newton method, which makes every
    equation well conditioned: so solvers without Jacobians converge fast, too.

    A sample of which a stage is not solved takes no step: it is tried again with a smaller one
    where steps are adaptive, and ends with the status ``non_finite`` where they are fixed. The
    gradient (``Unrolled``, ``Checkpointed``) is that of the solved stages, by the implicit function
    theorem; first derivatives only. States are real.

    Attributes:
        root_solver: solves the stage equations; its ``tol`` is relative to the error that ``rtol``
            and ``atol`` allow a step, in the root mean square, and to the stage's own move where
            that is smaller. None is the simplified Newton method with a ``tol`` of 0.01, and above
            ``dense_below`` Broyden's method, then Newton-Krylov.
        dense_below: largest n whose Jacobians are formed; the storage is n^2 per sample.
    """

    root_solver: RootSolver | None = None

    @property
    def equations(self) -> int:
        """One for each implicit stage."""
        return len(self.tableau.a) - self.tableau.explicit

    def coupling(self, z: Tensor) -> Tensor:
        """The diagonal."""
        return torch.full((1, 1), self.tableau.gamma, dtype=real_dtype(z), device=z.device)

    def init(self, system: System, t: Tensor, z: Tensor) -> StepCache:
        """The velocity and, where it is formed, the Jacobian: one evaluation and n products."""
        if self._dense(z) and self.root_solver is None:
            return super().init(system, t, z)
        self.check(z)
        if self._dense(z):
            first, jacobian = self.linearized(system, t, z)
            return first._replace(jacobian=jacobian)
        return self.evaluated(system, t, z)

    def sequence(
        self, system: System, t: Tensor, dt: Tensor, state: StepCache, frame: Frame
    ) -> StageSequence:
        """See :meth:`ImplicitMethod.sequence`."""
        return StageSequence(self.tableau, system, t, dt, state.velocity, frame)

    def frame(self, dt: Tensor, z: Tensor, state: StepCache) -> Frame:
        """See :meth:`ImplicitMethod.frame`."""
        frame = super().frame(dt, z, state)
        if state.jacobian is None:
            return frame
        factors = Factors.of(self.coupling(z), dt.to(state.jacobian.dtype), state.jacobian)
        return Frame(z, frame.weight, factors)

    def error(self, sequence: StageSequence, kept: Kept | None) -> Tensor | None:
        """See :meth:`ImplicitMethod.error`."""
        return sequence.combined(self.tableau.error) if self.tableau.error else None

    def solve_stages(self, sequence: StageSequence) -> Tensor:
        """By a root solver."""
        root_solver = self.root_solver or MATRIX_FREE
        move = torch.zeros_like(sequence.frame.z)
        solved = torch.ones_like(sequence.dt, dtype=torch.bool)
        for _ in range(self.equations):
            stage = sequence.equation().alone()
            solution = root_solver.solve(stage, move / stage.frame.weight)
            move = torch.where(column(solution.converged), solution.z * stage.frame.weight, 0)
            sequence.add(stage, move)
            solved = solved & solution.converged
        return solved


@dataclass(frozen=True, kw_only=True)
class FixedImplicitRungeKutta(EqualSteps[StepCache], ImplicitRungeKutta):
    """An implicit Runge-Kutta method with equal steps.

    No shorter step helps a sample whose stages the simplified Newton method does not solve: it goes
    to the root solver of large systems.
    """

    def rescued(self, sequence: StageSequence, newton: NewtonStep) -> tuple[StageSequence, Tensor]:
        """See :meth:`ImplicitMethod.rescued`."""
        again = sequence.started(newton.kept.factors)
        solved = newton.solved | self.solve_stages(again)
        merged = sequence.started()
        for own, other in zip(sequence.moves, again.moves, strict=True):
            move = torch.where(column(newton.solved), own, other)
            merged.add(merged.equation(), move)
        return merged, solved


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


@final
@dataclass(frozen=True, kw_only=True)
class Kvaerno5(ErrorControl, ImplicitRungeKutta):
    """Kvaerno's ESDIRK of order 5(4), adaptive and L-stable.

    Six implicit stages. For tighter tolerances than ``ESDIRK``'s; the method of diffrax.

    Its third stage lies 0.23 of a step beyond the end of the step: the field has to be defined
    there, and ``step_at`` is refused.

    Reference:
        Kvaerno, Singly diagonally implicit Runge-Kutta methods with an explicit first stage, BIT
        44 (2004), p. 489-502.
    """

    tableau: ClassVar[ImplicitTableau] = tableaus.KVAERNO5

    @property
    def step_size(self) -> StepSize:
        """Adaptive."""
        return Adaptive.of(self, self.tableau.order)


@final
@dataclass(frozen=True, kw_only=True)
class SDIRK2(FixedImplicitRungeKutta):
    """Alexander's method of two implicit stages, order 2 and L-stable.

    ``rtol`` and ``atol`` bound what the stage equations leave.

    Reference:
        Alexander, Diagonally implicit Runge-Kutta methods for stiff O.D.E.'s, SIAM J. Numer. Anal.
        14 (1977), p. 1006-1021.
    """

    tableau: ClassVar[ImplicitTableau] = tableaus.SDIRK2


@final
@dataclass(frozen=True, kw_only=True)
class TRBDF2(FixedImplicitRungeKutta):
    """The trapezoidal rule, then the second backward differentiation formula; L-stable, order 2.

    The first stage is explicit, and the two others have one matrix. ``rtol`` and ``atol`` bound
    what the stage equations leave.

    Reference:
        Bank et al., Transient simulation of silicon devices and circuits, IEEE Trans. Electron
        Devices 32 (1985), p. 1992-2007; Hosea, Shampine, Analysis and implementation of TR-BDF2,
        Appl. Numer. Math. 20 (1996), p. 21-37.
    """

    tableau: ClassVar[ImplicitTableau] = tableaus.TRBDF2
