"""The stage equation of an implicit method, as a system that any root solver takes, and its gradient."""

from __future__ import annotations

import copy
import warnings
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from implicitcore.backends.base import Residual
from implicitcore.errors import ConvergenceWarning, GradientError
from implicitcore.root_solvers.krylov import Krylov
from implicitcore.root_solvers.linearized import solve
from implicitcore.system.linearization import Linearization
from implicitcore.system.system import System
from implicitcore.tensors.autocast import suspended
from implicitcore.tensors.norms import column, norm, real_dtype

# What the tolerance is relative to is never less than this many units of rounding of the state.
ROUNDING = 100.0

# The Krylov space of a stage's backward solve, and how often it begins again.
RESTART, CYCLES = 30, 10


@dataclass(frozen=True)
class Frame:
    """What the stages of one step share.

    The unknown u = (Y - z) / weight, and the matrix of a simplified Newton iteration. In these
    units a step may be wrong by one, entry by entry: that is what a root solver's ``tol`` is then a
    fraction of. The move Y - z is what is solved for, as Y would lose it in its rounding.

    Attributes:
        z: the state before the step, ``[batch, n]``.
        weight: ``[batch, n]``, positive.
        factors: LU factors of I - dt gamma dg/dz ``[batch, n, n]`` with their pivots, where they
            are used.
    """

    z: Tensor
    weight: Tensor
    factors: tuple[Tensor, Tensor] | None

    def correction(self, defect: Tensor) -> Tensor:
        """The Newton step of u for a defect of the move.

        Where there is no matrix, the defect itself in the units of u.
        """
        if self.factors is not None:
            right = defect.to(self.factors[0].dtype).unsqueeze(2)
            defect = torch.linalg.lu_solve(*self.factors, right).squeeze(2).to(defect.dtype)
        return defect / self.weight

    def select(self, index: Tensor) -> Frame:
        """The frame of some samples."""
        factors = (
            None
            if self.factors is None
            else (self.factors[0].index_select(0, index), self.factors[1].index_select(0, index))
        )
        return Frame(self.z.index_select(0, index), self.weight.index_select(0, index), factors)


class Stage(System):
    """The move m = offset + dt g(t, z + m), as the fixed point u = u + M^-1 (offset + dt g(t, z + m) - m) / weight, m = weight u.

    M is the matrix of the frame. So Picard iteration is the simplified Newton method, a residual is
    the error of u that is left, and a solver that does not know the Jacobian converges on stiff
    dynamics as well.

    Arguments:
        system: the dynamics; its counter counts here too.
        t: the time of the stage, ``[batch]``.
        dt: the step times gamma, ``[batch]``; zero where a sample is done.
        offset: the move that the earlier stages give, ``[batch, n]``.
        frame: the units and the matrix.
    """

    def __init__(self, system: System, t: Tensor, dt: Tensor, offset: Tensor, frame: Frame) -> None:
        super().__init__(system.dynamics, system.x, system.packing, backend=system.backend)
        self.scope = system.scope.stopping_with(None)
        self._counter = system._counter
        self.outer, self.t, self.dt, self.offset, self.frame = system, t, dt, offset, frame

    def image(self, move: Tensor) -> Tensor:
        """Offset + dt g(t, z + move): one evaluation."""
        return torch.addcmul(
            self.offset,
            column(self.dt).to(move.dtype),
            self.outer.velocity(self.t, self.frame.z + move),
        )

    def update(self, z: Tensor) -> Tensor:
        """See the class."""
        move = self.frame.weight * z
        g = self.frame.correction(self.image(move) - move)
        fz = z + g
        # As for a vector field: taken from z + g, it would be lost in the rounding of a large z.
        self._residual = z, fz, torch.is_grad_enabled(), Residual(g, norm(g), norm(fz))
        return fz

    def velocity(self, t: Tensor, z: Tensor) -> Tensor:
        """The residual, whose steady state is the solution."""
        del t
        return self.residual(z, self.update(z)).value

    def scale(self, update_norm: Tensor, start_norm: Tensor) -> Tensor:
        """One in the root mean square of u, less where the stage itself moves less, but above the rounding."""
        del update_norm
        z = self.frame.z.detach()
        rounding = ROUNDING * torch.finfo(z.dtype).eps * norm(z / self.frame.weight)
        return torch.maximum(start_norm.clamp(max=z.shape[1] ** 0.5), rounding)

    def select(self, index: Tensor) -> Stage:
        """See :meth:`System.select`."""
        part = copy.copy(self)
        part.outer, part.frame = self.outer.select(index), self.frame.select(index)
        part.t, part.dt, part.offset = (
            tensor.index_select(0, index) for tensor in (self.t, self.dt, self.offset)
        )
        part.x, part.packing, part._residual = (
            part.outer.x,
            replace(self.packing, batch=len(index)),
            None,
        )
        return part


def attach(stage: Stage, move: Tensor, *, dense: bool) -> Tensor:
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
    return _Attach.apply(image, move, _Pullback(Linearization(stage, point, image), dense))


@dataclass(frozen=True)
class _Pullback:
    """v -> u with (I - J)^T u = v, where J = dt dg/dz at the stage."""

    jacobian: Linearization
    dense: bool

    @suspended()
    def __call__(self, v: Tensor) -> Tensor:
        u, failed = self._dense(v) if self.dense else self._krylov(v)
        wanted = (v != 0).any(1)  # a step that was not taken may have no Jacobian
        u = torch.where(column(wanted), u, 0)
        count = int((failed & wanted & v.isfinite().all(1)).sum())
        if count:
            message = (
                f"the backward solve of a stage did not converge for {count} of {len(v)} "
                "samples: their gradients are inexact"
            )
            warnings.warn(message, ConvergenceWarning, stacklevel=2)
        return u

    def _dense(self, v: Tensor) -> tuple[Tensor, Tensor]:
        jacobian = self.jacobian.matrix().to(real_dtype(v))
        unit = torch.eye(v.shape[1], dtype=jacobian.dtype, device=v.device)
        u, singular = solve(unit - jacobian.mT, v)
        return u, singular

    def _krylov(self, v: Tensor) -> tuple[Tensor, Tensor]:
        u, g = torch.zeros_like(v), v
        limit = norm(v) * torch.finfo(real_dtype(v)).eps ** 0.75
        for _ in range(CYCLES):
            if not bool((norm(g) > limit).any()):
                break
            u = (
                u
                + Krylov(self.jacobian.system.backend, self._product, g, limit, RESTART).minimise()
            )
            g = v - self._product(u)
        return u, norm(g) > limit

    def _product(self, u: Tensor) -> Tensor:
        return u - self.jacobian.vjp(u)


class _Attach(torch.autograd.Function):
    """The value of the move, whose gradient v reaches the graph of its image as (I - J)^-T v."""

    @staticmethod
    def forward(ctx: Any, *arguments: Any) -> Tensor:
        _, move, ctx.pullback = arguments
        return move.view_as(move)

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Any) -> Any:
        if torch.is_grad_enabled():
            raise GradientError(
                "an implicit ODE solver gives first derivatives only: use an explicit one "
                "for a second (create_graph=True)"
            )
        return ctx.pullback(grad_outputs[0]), None, None
