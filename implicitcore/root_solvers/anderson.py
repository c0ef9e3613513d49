"""Anderson acceleration."""

from __future__ import annotations

from dataclasses import dataclass
from typing import final

import torch
from torch import Tensor

from implicitcore.norms import column, real_dtype
from implicitcore.root_solvers.base import StepwiseRootSolver
from implicitcore.root_solvers.history import History
from implicitcore.system import System
from implicitcore.tolerances import Count, Fraction, Tolerance

# After a residual this many times the last one, the history misleads: the sample restarts from a plain step.
GROWTH = 2.0


@dataclass
class AndersonState:
    """The differences of the last iterations, and what is needed to form the next one."""

    residuals: History  # dG, rows g_j - g_{j-1}
    moves: History  # rows of the move that a unit of the matching residual difference stands for
    gram: Tensor  # [batch, depth, depth], of dG
    valid: Tensor  # [batch, depth], rows that this sample may use
    last: tuple[Tensor, Tensor, Tensor] | None = None  # z, g and |g| of the last iterate


@final
@dataclass(frozen=True, kw_only=True)
class Anderson(StepwiseRootSolver[AndersonState]):
    """Anderson acceleration (type II) of the fixed-point iteration, per sample.

    With g = f(z) - z, the step is z + damping g - sum_i gamma_i (dz_i + damping dg_i), where gamma minimises
    ``|g - sum_i gamma_i dg_i|^2 + regularization sum_i |gamma_i dg_i|^2`` over the last ``depth`` differences. The Gram
    matrix gains one row an iteration; scaling its columns to unit norm makes the regularisation relative. A sample whose
    residual doubles restarts from a plain step. The first choice for an equilibrium layer: about as many
    evaluations as GMRES where f is linear.

    Attributes:
        depth: differences kept.
        damping: in (0, 1].
        regularization: relative to the squared norm of each difference; None is ten units of rounding.

    Reference:
        Walker, Ni, Anderson Acceleration for Fixed-Point Iterations, SIAM J. Numer. Anal. 49 (2011), p. 1715-1735, eq. 2.2.
    """

    depth: Count = 5
    damping: Fraction = 1.0
    regularization: Tolerance | None = None

    def init(self, system: System, z: Tensor) -> AndersonState:
        """An empty history."""
        gram = z.new_zeros(z.shape[0], self.depth, self.depth, dtype=real_dtype(z))
        valid = torch.zeros(z.shape[0], self.depth, dtype=torch.bool, device=z.device)
        return AndersonState(History(z, self.depth), History(z, self.depth), gram, valid)

    def step(self, system: System, z: Tensor, fz: Tensor, state: AndersonState) -> tuple[Tensor, AndersonState]:
        """See :meth:`StepwiseRootSolver.step`."""
        residual = system.residual(z, fz)
        z_next = fz if self.damping == 1 else torch.lerp(z, fz, self.damping)
        now = z, residual.value, residual.norm
        if state.last is not None:
            self._remember(system, now, state.last, state)
            z_next = system.backend.mix(z_next, self._weights(system, residual.value, state), state.moves.rows())
        state.last = now
        return z_next, state

    def _remember(self, system: System, now: tuple[Tensor, ...], last: tuple[Tensor, ...], state: AndersonState) -> None:
        dz, dg = now[0] - last[0], now[1] - last[1]
        slot = state.residuals.slot
        state.residuals.append(dg)
        state.moves.append(torch.add(dz, dg, alpha=self.damping))
        state.valid[:, slot] = True
        state.valid &= column(now[2] <= GROWTH * last[2])
        rows = state.residuals.rows()
        if torch.is_grad_enabled():
            state.gram = torch.bmm(rows, rows.transpose(1, 2)).to(state.gram.dtype)
        else:
            row = system.backend.gram_row(rows, dg).to(state.gram.dtype)
            used = row.shape[1]
            state.gram[:, slot, :used] = row
            state.gram[:, :used, slot] = row

    def _weights(self, system: System, g: Tensor, state: AndersonState) -> Tensor:
        """-gamma, ``[batch, used]``, from the normal equations with unit diagonal."""
        rows = state.residuals.rows()
        used = rows.shape[1]
        gram, valid = state.gram[:, :used, :used], state.valid[:, :used]
        squares = gram.diagonal(dim1=1, dim2=2)
        usable = valid & (squares > 0)
        scale = torch.where(usable, torch.where(usable, squares, 1).rsqrt(), 0)
        scaled = gram * scale.unsqueeze(1) * scale.unsqueeze(2)
        ridge = 10 * torch.finfo(gram.dtype).eps if self.regularization is None else self.regularization
        scaled = scaled + torch.diag_embed(torch.where(usable, ridge, 1.0).to(gram.dtype))
        right = system.backend.gram_row(rows, g).to(gram.dtype) * scale
        return torch.linalg.solve_ex(scaled, right)[0].mul(scale).neg()
