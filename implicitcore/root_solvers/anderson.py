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
    """The last iterations: the unit residuals g_i / ``|g_i|``, their Gram matrix, and the plain steps z_i + damping g_i."""

    residuals: History
    updates: History
    gram: Tensor  # [batch, depth + 1, depth + 1]; the identity where there is no row yet
    inverse_sizes: Tensor  # [batch, depth + 1], 1 / |g_i|; zero where there is no row yet, or it is from before a restart
    ridge: Tensor  # [depth + 1, depth + 1], 1 + regularization on the diagonal
    bound: Tensor | None = None  # [batch], the residual from which on the history misleads

    def __post_init__(self) -> None:
        # Views made once: to index a tensor costs more than to write a row of this size.
        self.gram_rows, self.gram_columns = self.gram.unbind(1), self.gram.unbind(2)

    def select(self, rows: Tensor) -> AndersonState:
        """The state of some samples."""
        parts = self.residuals.select(rows), self.updates.select(rows)
        bound = None if self.bound is None else self.bound[rows]
        return AndersonState(*parts, self.gram[rows], self.inverse_sizes[rows], self.ridge, bound)


@final
@dataclass(frozen=True, kw_only=True)
class Anderson(StepwiseRootSolver[AndersonState]):
    """Anderson acceleration (type II) of the fixed-point iteration, per sample.

    With g = f(z) - z, the next iterate is sum_i w_i (z_i + damping g_i) over the last ``depth`` + 1 iterates, where the weights sum
    to one and minimise ``|sum_i w_i g_i|^2 + regularization sum_i |w_i (g_i - g)|^2``. The Gram matrix of the residuals gains one row
    an iteration; scaling its differences to unit norm makes the regularisation relative. A sample whose residual doubles restarts
    from a plain step. The first choice for an equilibrium layer: about as many evaluations as GMRES where f is linear.

    Attributes:
        depth: earlier iterates kept.
        damping: in (0, 1].
        regularization: relative to the squared norm of each difference; None is ten units of rounding.

    Reference:
        Walker, Ni, Anderson Acceleration for Fixed-Point Iterations, SIAM J. Numer. Anal. 49 (2011), p. 1715-1735.
    """

    depth: Count = 5
    damping: Fraction = 1.0
    regularization: Tolerance | None = None

    def init(self, system: System, z: Tensor) -> AndersonState:
        """An empty history."""
        rows, dtype = self.depth + 1, real_dtype(z)
        identity = torch.eye(rows, dtype=dtype, device=z.device)
        relative = 10 * torch.finfo(dtype).eps if self.regularization is None else self.regularization
        sizes = z.new_zeros(z.shape[0], rows, dtype=dtype)
        return AndersonState(History(z, rows), History(z, rows), identity.repeat(z.shape[0], 1, 1), sizes, 1 + relative * identity)

    def step(self, system: System, z: Tensor, fz: Tensor, state: AndersonState) -> tuple[Tensor, AndersonState]:
        """See :meth:`StepwiseRootSolver.step`."""
        residual = system.residual(z, fz)
        plain = fz if self.damping == 1 else torch.lerp(z, fz, self.damping)
        slot = state.residuals.slot
        inverse = column((residual.norm + torch.finfo(residual.norm.dtype).tiny).reciprocal())
        state.residuals.append(residual.value, inverse.to(z.dtype))
        state.updates.append(plain)
        _restart(slot, residual.norm, inverse, state)
        gram = _grow(system, residual.value, inverse, slot, state)
        if state.residuals.count == 1:
            return plain, state
        return system.backend.mix(None, _weights(gram, residual.norm, state), state.updates.rows()), state


def _restart(slot: int, size: Tensor, inverse: Tensor, state: AndersonState) -> None:
    """Leave out the earlier rows of the samples whose residual grew."""
    if state.bound is not None and (size.is_cuda or not torch.equal(torch.minimum(size, state.bound), size)):
        state.inverse_sizes = torch.where(column(size > state.bound), 0, state.inverse_sizes)
    state.bound = GROWTH * size.detach()
    if torch.is_grad_enabled():
        parts = state.inverse_sizes[:, :slot], inverse, state.inverse_sizes[:, slot + 1 :]
        state.inverse_sizes = torch.cat(parts, 1)
    else:
        state.inverse_sizes[:, slot : slot + 1] = inverse


def _grow(system: System, g: Tensor, inverse: Tensor, slot: int, state: AndersonState) -> Tensor:
    """The Gram matrix of the unit residuals ``[batch, used, used]``, with its new row."""
    rows = state.residuals.rows()
    used = rows.shape[1]
    if torch.is_grad_enabled():
        return torch.bmm(rows, rows.mT).to(state.gram.dtype)
    row = system.backend.gram_row(rows, g) * inverse
    whole = used == state.gram.shape[1]
    for line in (state.gram_rows[slot], state.gram_columns[slot]):
        (line if whole else line[:, :used]).copy_(row)
    return state.gram if whole else state.gram[:, :used, :used]


def _weights(gram: Tensor, size: Tensor, state: AndersonState) -> Tensor:
    """The weights ``[batch, used]``: proportional to A^-1 1 for the Gram matrix A of the residuals.

    In unit residuals, G u = 1 / ``|g_i|`` and w_i = u_i / ``|g_i|``, up to a factor that makes their sum one.
    """
    used = gram.shape[1]
    sizes, ridge = state.inverse_sizes, state.ridge
    if used < len(ridge):
        sizes, ridge = sizes[:, :used], ridge[:used, :used]
    share = sizes * column(size)
    u = torch.linalg.solve_ex(gram * ridge, share)[0] * share
    return u / u.sum(1, keepdim=True)
