"""Anderson acceleration."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import NamedTuple, final

import torch
from torch import Tensor

from implicitcore.backends.root_iteration import AndersonRule
from implicitcore.options.types import Count, Fraction, HistoryDtype, Share, Tolerance
from implicitcore.root_solvers.history import History
from implicitcore.root_solvers.narrow import WIDENED_ROWS, Products, history_dtype
from implicitcore.root_solvers.stepwise import StepwiseRootSolver
from implicitcore.system.evaluation import Evaluation
from implicitcore.system.system import System
from implicitcore.tensors import host
from implicitcore.tensors.norms import column, norm, real_dtype

# Steps between two restarts, in units of the depth: a direction remembers all those it was made
# orthogonal to, and where f is far from linear, steps that long past mislead. Twice the depth cost
# the fewest evaluations over linear and nonlinear maps alike.
PERIOD = 2
# With a graph, a difference of which the earlier directions leave less than this power of the
# precision is no direction: what is left is rounding, and its derivative is not small.
RANK = 1 / 3


class _Scratch(NamedTuple):
    """What a step writes to, and views of it, which cost as much to make as to use."""

    pair: Tensor  # [batch, 1, 2 n]
    row: Tensor  # its first half, [batch, 1, n]
    q: Tensor  # the same, [batch, n]
    p: Tensor  # its second half
    scale: Tensor  # [batch]
    column: Tensor  # the same, [batch, 1, 1]

    @classmethod
    def like(cls, z: Tensor, least: Tensor) -> _Scratch:
        """For states like z ``[batch, n]``, and norms like ``least``."""
        batch, n = z.shape
        flat, scale = z.new_empty(batch, 2 * n), least.new_empty(batch)
        pair, (q, p) = flat.unsqueeze(1), flat.chunk(2, 1)
        return cls(pair, q.unsqueeze(1), q, p, scale, scale.view(-1, 1, 1))


@dataclass
class AndersonState:
    """The last directions, and the iterate they go on from."""

    # rows (q_i, p_i), [batch, depth, 2 n]: a difference of residuals, orthonormal, and of the plain
    # steps beside it
    pairs: History
    # added to the length of a new direction, in units of the residual: the regularisation's root
    ridge: float
    # the least length, whose reciprocal has a square: a sample at an exact root has no differences
    least: Tensor
    last: tuple[Tensor, Tensor] | None = (
        None  # the residual and the plain step of the iterate before, [batch, n]
    )
    alive: Tensor | None = (
        # [batch, depth], False for the directions from before a restart; None where all are in use
        None
    )
    fresh: Tensor | None = None  # [batch], the samples that restart in this step
    used: Tensor | None = None  # [batch], the others
    plain: Tensor | None = (
        None  # [batch], those whose last step was the plain one; None where there are none
    )
    # [batch], the samples whose residuals plain steps reduce fast enough, from the start on, and
    # their last residuals; None where there are none
    waiting: Tensor | None = None
    size: Tensor | None = None
    # a row, its halves and a scale, written anew in each step
    scratch: _Scratch | None = field(default=None, init=False)
    # the rows, and their halves: they cost as much to make as to use
    views: tuple[Tensor, ...] = field(default=(), init=False)

    def difference(
        self, now: tuple[Tensor, Tensor], last: tuple[Tensor, Tensor]
    ) -> tuple[Tensor, Tensor]:
        """The change of the residual and the plain step since the last ones.

        Returns:
            One row ``[batch, 1, 2 n]``, and the residual's part of it.
        """
        if torch.is_grad_enabled():
            pair = torch.cat((now[0] - last[0], now[1] - last[1]), 1).unsqueeze(1)
            return pair, pair.chunk(2, 2)[0]
        if self.scratch is None:
            self.scratch = _Scratch.like(now[0], self.least)
        pair, row, q, p = self.scratch[:4]
        torch.sub(now[0], last[0], out=q)
        torch.sub(now[1], last[1], out=p)
        return pair, row

    def scale(self, q: Tensor, size: Tensor) -> Tensor:
        """What a direction ``[batch, 1, n]`` is multiplied by, ``[batch, 1, 1]``."""
        ridge = torch.add(self.least, size, alpha=self.ridge)
        if self.scratch is None or torch.is_grad_enabled():
            return torch.hypot(norm(q.squeeze(1)), ridge).reciprocal().view(-1, 1, 1)
        torch.hypot(norm(self.scratch.q), ridge, out=self.scratch.scale).reciprocal_()
        return self.scratch.column

    def rows(self) -> tuple[Tensor, ...]:
        """All pairs ``[batch, rows, 2 n]``, the q_i and the p_i."""
        rows = self.pairs.rows()
        if not self.views or self.views[0] is not rows:
            self.views = rows, *rows.chunk(2, 2)
        return self.views

    def inner(self, kernels: Products, q: Tensor, vector: Tensor) -> Tensor:
        """Inner products of a vector ``[batch, 1, n]`` with the q_i used, ``[batch, 1, rows]``."""
        row = kernels.inner_products(q, vector)
        return row if self.alive is None else row * self.alive[:, None, : row.shape[2]]

    def append(self, pair: Tensor, scale: Tensor) -> None:
        """Take in a direction; a sample that restarts leaves it out with the others."""
        if self.alive is not None:
            # Not index_copy, whose index would come from the host, and the device waits for that.
            self.alive = self.alive.clone() if torch.is_grad_enabled() else self.alive
            self.alive[:, self.pairs.slot] = self._accelerated()
        self.pairs.append(pair, scale)

    def _accelerated(self) -> Tensor | bool:
        """Which samples take in the newest direction."""
        if self.waiting is not None:
            return ~self.waiting if self.used is None else self.used & ~self.waiting
        return True if self.used is None else self.used

    def retreat(
        self, now: tuple[Tensor, Tensor], last: tuple[Tensor, Tensor], fresh: Tensor
    ) -> tuple[Tensor, Tensor]:
        """What samples ``fresh`` go on from.

        Where an accelerated step doubled the residual, the iterate it was taken from.
        """
        # Of two bool tensors a > b is a & ~b.
        back = column(fresh if self.plain is None else fresh > self.plain)
        return torch.where(back, last[0], now[0]), torch.where(back, last[1], now[1])

    def clear(self) -> None:
        """Forget all directions."""
        self.pairs.clear()
        all_begin = self.fresh is None and self.waiting is None
        self.alive = None if self.alive is None or all_begin else torch.zeros_like(self.alive)

    def all_wait(self, size: Tensor, rate: float) -> bool:
        """Whether plain steps have brought every sample on fast enough up to here.

        Arguments:
            size: ``[batch]``, the residuals.
            rate: what they are to have fallen to, of those before.
        """
        if self.waiting is None or self.size is None:
            return False
        size, enough = size.detach(), self.size * rate
        self.size = size
        looks = host.on_host(size)  # there a look is free
        if looks and self.alive is None and torch.equal(torch.minimum(size, enough), size):
            return True
        waiting = self.waiting & (size <= enough)
        self.waiting = waiting if not looks or bool(waiting.any()) else None
        if self.waiting is not None and self.alive is None:
            self.alive = waiting.new_zeros(len(waiting), self.pairs.depth)
        return False


def _either(a: Tensor | None, b: Tensor | None) -> Tensor | None:
    """Samples ``[batch]`` that are in one of them; None is no sample."""
    if a is None or b is None:
        return b if a is None else a
    return a | b


@final
@dataclass(frozen=True, kw_only=True)
class Anderson(StepwiseRootSolver[AndersonState]):
    """Anderson acceleration (type II), per sample, by truncated Gram-Schmidt.

    With g = f(z) - z, the next iterate is p - P gamma for the plain step p = z + damping g: the
    gamma that minimises ``|g - Q gamma|``, where the columns of Q are differences of past residuals
    and those of P the differences of plain steps between the same iterates. The newest difference
    is made orthogonal to the last ``depth`` ones, and its partner follows: no least-squares problem
    is left to solve, and where J is symmetric, few directions do the work of all. Begins again
    every 2 ``depth`` steps, and for a sample whose residual doubles: it goes back and takes the
    plain step in place of the accelerated one. The first choice for an equilibrium layer: about as
    many evaluations as GMRES where f is linear.

    Attributes:
        depth: earlier directions kept.
        damping: in (0, 1].
        regularization: relative to the squared residual, added to the squared norm of each new
            direction; None is ten units of rounding.
        plain_rate: from its start on, a sample takes plain steps for as long as each leaves at most
            this share of its residual, and keeps no history meanwhile; 0 accelerates from the
            second step on. For strong contractions of large states, where the history costs more
            than f: a convolution of norm 0.9 took 0.76 of the time with 0.3, at the same
            evaluations, and an MLP of 128 up to 1.3 times.
        history_dtype: ``"bfloat16"`` halves the storage of the history, for float32 states of 1e5
            numbers and more: a sum is still one of the state's dtype, made with one row after the
            other, and no kernel of a backend. The same evaluations on nine of twelve maps of that
            size, one more on two linear ones, and two more for a J of five eigenvalues. Nothing
            changes where a graph is recorded (``Unrolled``) or the state is in half precision. None
            is the dtype of the state.

    Reference:
        Walker, Ni, Anderson Acceleration for Fixed-Point Iterations, SIAM J. Numer. Anal. 49
        (2011), p. 1715-1735; truncated Gram-Schmidt: Tang, Xu, He, Saad, Xi, Anderson Acceleration
        with Truncated Gram-Schmidt, arXiv 2403.14961.
    """

    depth: Count = 5
    damping: Fraction = 1.0
    regularization: Tolerance | None = None
    plain_rate: Share = 0.0
    history_dtype: HistoryDtype | None = None

    def update_rule(self, z: Tensor) -> AndersonRule | None:
        """See :meth:`StepwiseRootSolver.update_rule`."""
        if self.history_dtype is not None:
            return None
        period, ridge = PERIOD * self.depth, self._ridge(z)
        return AndersonRule(self.depth, period, self.damping, ridge, self.plain_rate)

    def _ridge(self, z: Tensor) -> float:
        """What is added to the length of a new direction, in units of the residual."""
        if self.regularization is None:
            return (10 * torch.finfo(real_dtype(z)).eps) ** 0.5
        return self.regularization**0.5

    def init(self, system: System, z: Tensor) -> AndersonState:
        """An empty history."""
        info = torch.finfo(real_dtype(z))
        least = torch.full((), info.tiny**0.5, dtype=real_dtype(z), device=z.device)
        dtype = history_dtype(z, self.history_dtype)
        pairs = History.like(z, self.depth, 2 * z.shape[1], dtype)
        return AndersonState(pairs, self._ridge(z), least)

    def restart(self, state: AndersonState, grown: Tensor) -> AndersonState:
        """See :meth:`StepwiseRootSolver.restart`."""
        alive, used = state.alive, ~grown
        if alive is None:  # all directions are in use, or there are none yet
            alive = grown.new_full((len(grown), self.depth), state.waiting is None)
        return replace(state, alive=alive & column(used), fresh=grown, used=used)

    def step(
        self, system: System, now: Evaluation, state: AndersonState
    ) -> tuple[Tensor, AndersonState]:
        """See :meth:`StepwiseRootSolver.step`."""
        z, fz, residual = now
        plain = fz if self.damping == 1 else torch.lerp(z, fz, self.damping)
        current, last = (residual.value, plain), state.last
        if last is None:
            state.last, state.plain = current, torch.ones_like(residual.norm, dtype=torch.bool)
            if self.plain_rate:
                state.waiting, state.size = state.plain, residual.norm.detach()
            return plain, state
        if state.pairs.count == PERIOD * self.depth:
            state.clear()
        if state.all_wait(residual.norm, self.plain_rate):
            state.pairs.skip()
            state.last = current
            return plain, state
        kernels = WIDENED_ROWS if state.pairs.narrow else system.backend
        self._learn(kernels, *state.difference(current, last), residual.norm, state)
        state.last = current if state.fresh is None else state.retreat(current, last, state.fresh)
        state.plain = _either(state.fresh, state.waiting)
        state.fresh = state.used = None
        _, q, p = state.rows()
        gamma = state.inner(kernels, q, residual.value.unsqueeze(1))
        z = kernels.axpy_history(state.last[1].unsqueeze(1), gamma, p, -1)
        return z.squeeze(1), state

    def _learn(
        self, kernels: Products, pair: Tensor, q: Tensor, size: Tensor, state: AndersonState
    ) -> None:
        """Add the last two iterates' differences as a direction, orthogonal to the others."""
        graph, before = torch.is_grad_enabled(), q
        if not state.pairs.is_empty:
            rows, others, _ = state.rows()
            weights, out = state.inner(kernels, others, q), None if graph else pair
            pair = kernels.axpy_history(pair, weights, rows, -1, out=out)
            q = pair.narrow(2, 0, q.shape[2]) if graph else q
        scale = state.scale(q, size)
        if graph:
            with torch.no_grad():
                least = torch.finfo(size.dtype).eps ** RANK * norm(before.squeeze(1))
                is_new = norm(q.squeeze(1)) > least
            scale = torch.where(is_new.view(-1, 1, 1), scale, 0)
        state.append(pair, scale)
