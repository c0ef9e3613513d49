"""The stage equation of an implicit method, as a system that any root solver takes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from implicitcore.errors import ConvergenceWarning, GradientError
from implicitcore.ode_solvers.factors import Factors
from implicitcore.root_solvers.gmres import GMRES
from implicitcore.root_solvers.linearized import solve
from implicitcore.system.linear_system import LinearSystem
from implicitcore.system.linearization import Linearization
from implicitcore.system.repeated import owner_of, warn_repeatedly
from implicitcore.system.system import System
from implicitcore.tensors.amended import amended
from implicitcore.tensors.autocast import suspended
from implicitcore.tensors.cotangent import Pullback, attach
from implicitcore.tensors.norms import column, norm, real_dtype

# What the tolerance is relative to is never less than this many units of rounding of the state.
ROUNDING = 100.0

# The Krylov space of a stage's backward solve, and how often it begins again.
RESTART, CYCLES = 30, 10


@dataclass(frozen=True, eq=False)
class Frame:
    """What the stages of one step share.

    The unknown u = (Y - z) / weight, and the matrix of a simplified Newton iteration. In these
    units a step may be wrong by one, entry by entry: that is what a root solver's ``tol`` is then a
    fraction of. The move Y - z is what is solved for, as Y would lose it in its rounding.

    Attributes:
        z: the state before the step, ``[batch, n]``.
        weight: ``[batch, n]``, positive.
        factors: of I - dt gamma dg/dz, where they are used.
    """

    z: Tensor
    weight: Tensor
    factors: Factors | None

    def correction(self, defect: Tensor) -> Tensor:
        """The Newton step of u for a defect of the move.

        Where there is no matrix, the defect itself in the units of u.
        """
        found = defect if self.factors is None else self.factors.solve(defect)
        return found / self.weight


@dataclass(eq=False)
class Stage(System):
    """The move m = offset + dt g(t, z + m) of a stage, as a fixed point.

    u = u + M^-1 (offset + dt g(t, z + m) - m) / weight with m = weight u, where M is the matrix of
    the frame. So Picard iteration is the simplified Newton method, a residual is
    the error of u that is left, and a solver that does not know the Jacobian converges on stiff
    dynamics as well.

    Attributes:
        outer: the dynamics; its counter counts here too.
        t: the time of the stage, ``[batch]``.
        dt: the step times gamma, ``[batch]``; zero where a sample is done.
        offset: the move that the earlier stages give, ``[batch, n]``.
        frame: the units and the matrix.
        relative_to: the residual at the start of a solve, and what its tolerance is relative to.
    """

    outer: System
    t: Tensor
    dt: Tensor
    offset: Tensor
    frame: Frame
    relative_to: tuple[Tensor, Tensor] | None = field(default=None, init=False)

    def alone(self) -> Stage:
        """The same for a root solver: its solve stops alone, and records nothing."""
        scope = self.context.scope.stopping_with(None)
        return amended(self, context=amended(self.context, scope=scope, recorder=None))

    def image(self, move: Tensor) -> Tensor:
        """Offset + dt g(t, z + move): one evaluation."""
        return torch.addcmul(
            self.offset,
            column(self.dt).to(move.dtype),
            self.outer.velocity(self.t, self.frame.z + move),
        )

    def defect(self, move: Tensor) -> Tensor:
        """What the image differs from the move by."""
        return self.image(move) - move

    def map(self, z: Tensor) -> tuple[Tensor, Tensor]:
        """See :meth:`System.map`: g is as that of a vector field."""
        move = self.frame.weight * z
        g = self.frame.correction(self.image(move) - move)
        return z + g, g

    def velocity(self, t: Tensor, z: Tensor) -> Tensor:
        """The residual, whose steady state is the solution."""
        del t
        return self.map(z)[1]

    def scale(self, update_norm: Tensor, start_norm: Tensor) -> Tensor:
        """One in the root mean square of u; less where the stage moves less, above the rounding."""
        del update_norm
        if self.relative_to is None or self.relative_to[0] is not start_norm:
            z = self.frame.z.detach()
            rounding = ROUNDING * torch.finfo(z.dtype).eps * norm(z / self.frame.weight)
            largest = z.shape[1] ** 0.5
            self.relative_to = start_norm, torch.maximum(start_norm.clamp(max=largest), rounding)
        return self.relative_to[1]


def attached(stage: Stage, move: Tensor, *, dense: bool) -> Tensor:
    """The value of a move with the implicit gradient of its stage equation.

    One evaluation, with a graph.

    Arguments:
        stage: the equation that it solves.
        move: ``[batch, n]``, without a graph.
        dense: form dt dg/dz for the backward solve (n products); else GMRES.
    """
    with torch.enable_grad():
        point = move.detach().requires_grad_()
        image = stage.image(point)
    return attach(image, move, StagePullback(Linearization(stage, point, image), dense))


@dataclass(frozen=True, eq=False)
class StagePullback(Pullback):
    """v -> u with (I - J)^T u = v, where J = dt dg/dz at the stage."""

    jacobian: Linearization
    dense: bool

    @suspended()
    def solve(self, v: Tensor) -> Tensor:
        """u, ``[batch, n]``."""
        u, failed = self._dense(v) if self.dense else self._krylov(v)
        wanted = (v != 0).any(1)
        u = torch.where(column(wanted), u, 0)  # a step that was not taken may have no Jacobian
        count = int((failed & wanted).sum())
        if count:
            warn_repeatedly(
                owner_of(self.jacobian.system.dynamics),
                "stage",
                lambda: (
                    f"the backward solve of a stage did not converge for {count} of {len(v)} "
                    "samples: their gradients are inexact"
                ),
                ConvergenceWarning,
            )
        return u

    def differentiable(
        self, v: Tensor, z: Tensor, inputs: Sequence[Tensor]
    ) -> tuple[Tensor | None, ...]:
        """Refuse."""
        raise GradientError(
            "an implicit ODE solver gives first derivatives only: use an explicit one "
            "for a second (create_graph=True)"
        )

    def _dense(self, v: Tensor) -> tuple[Tensor, Tensor]:
        jacobian = self.jacobian.matrix().to(real_dtype(v))
        unit = torch.eye(v.shape[1], dtype=jacobian.dtype, device=v.device)
        u, singular = solve(unit - jacobian.mT, v)
        return u, singular

    def _krylov(self, v: Tensor) -> tuple[Tensor, Tensor]:
        tol = torch.finfo(real_dtype(v)).eps ** 0.75
        solver = GMRES(tol=tol, restart=RESTART, max_products=CYCLES * (RESTART + 1))
        linear = LinearSystem.transposed(self.jacobian.system, self.jacobian, v)
        solution = solver.solve_from(linear, linear.initial())
        return linear.solution(solution.z), ~solution.converged
