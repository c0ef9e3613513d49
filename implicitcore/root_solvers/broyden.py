"""Broyden's methods with limited memory."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Literal, NamedTuple, final

import torch
from torch import Tensor

from implicitcore.backends.root_iteration import BroydenRule
from implicitcore.errors import GradientError
from implicitcore.options.types import Count, HistoryDtype
from implicitcore.root_solvers.history import History
from implicitcore.root_solvers.narrow import Products, history_dtype, products
from implicitcore.root_solvers.stepwise import StepwiseRootSolver, iterate
from implicitcore.solution import Solution
from implicitcore.system.evaluation import Evaluation
from implicitcore.system.system import System
from implicitcore.tensors import host
from implicitcore.tensors.norms import real_dtype
from implicitcore.tensors.products import BADDBMM, BMM
from implicitcore.tensors.restrict import SHARED


@final
@dataclass(frozen=True, kw_only=True)
class Broyden(StepwiseRootSolver[Any]):
    """Broyden's methods on g(z) = f(z) - z, per sample, with limited memory.

    The inverse Jacobian estimate B begins as -I (a plain fixed-point step); after a step s with
    residual change y the good method makes it B + (s - B y) s^T B / (s^T B y), the bad one B + (s -
    B y) y^T / (y^T y). When ``memory`` updates are full it begins again: writing over the oldest
    instead was seen to stall. A sample whose denominator vanishes skips that update. Converges
    superlinearly near a root and needs no contraction: prefer it where Picard and Anderson diverge
    or stall. The good method keeps its steps alone; the bad one keeps two vectors a step, and now
    and then needs fewer of them.

    Attributes:
        memory: updates kept; the storage is that many states (twice for the bad method), whatever
            ``max_steps`` is.
        variant: ``"good"`` or ``"bad"``: the names are Broyden's own and no verdict.
        history_dtype: ``"bfloat16"`` halves the storage, as that of ``Anderson``. The good method
            takes the steps that it keeps, rounded: as many evaluations on nine of twelve maps of
            1e5 numbers, up to a fifth more on two linear ones, and up to 2.8 times as many for a J
            of five eigenvalues. Prefer ``Anderson`` with it.

    Reference:
        Broyden, Math. Comp. 19 (1965), p. 577-593, eq. 4.12; one vector a step: Kelley, Iterative
        Methods for Linear and Nonlinear Equations (1995), section 7.3; products of updates as one
        matrix: Byrd, Nocedal, Schnabel, Math. Program. 63 (1994), p. 129-156.
    """

    memory: Count = 20
    variant: Literal["good", "bad"] = "good"
    history_dtype: HistoryDtype | None = None

    @property
    def keeps_residual(self) -> bool:
        """See :attr:`StepwiseRootSolver.keeps_residual`: the good method keeps its steps alone."""
        return self.variant == "bad"

    def update_rule(self, z: Tensor) -> BroydenRule | None:
        """See :meth:`StepwiseRootSolver.update_rule`."""
        del z
        whole = self.variant == "good" and self.history_dtype is None
        return BroydenRule(self.memory) if whole else None

    def init(self, system: System, z: Tensor) -> _Good | _Bad:
        """B = -I."""
        dtype = history_dtype(z, self.history_dtype)
        kernels = products(system.backend, z, dtype)
        kind = _Good if self.variant == "good" else _Bad
        return kind.empty(kernels, z, self.memory, dtype)

    def solve_keeping(
        self, system: System, z0: Tensor
    ) -> tuple[Solution, Callable[[Tensor], Tensor]]:
        """The solution, and the estimate at its end.

        V -> -B^H v, near (I - J)^-H v for ``[batch, n]``.

        Raises:
            GradientError: of the bad variant, or where samples leave the batch (``compact``) or
                wait for others (``sync_steps``).
        """
        if self.variant == "bad" or self.compact or system.scope.group is not None:
            raise GradientError(
                "the inverse is kept by Broyden's good method, without compact and "
                f"sync_steps; received {self}"
            )
        solution, state = iterate(self, system, system.evaluate(z0))
        return solution, partial(state.transposed, solution.steps)

    def step(
        self, system: System, now: Evaluation, state: _Good | _Bad
    ) -> tuple[Tensor, _Good | _Bad]:
        """See :meth:`StepwiseRootSolver.step`."""
        del system
        return now.z + state.step(now.residual.value.unsqueeze(1)).squeeze(1), state


class _Window(NamedTuple):
    """Views for so many steps, which cost as much to make as to use."""

    rows: Tensor  # the steps and zero rows, [batch, size, n]
    block: Tensor  # of the matrix
    turned: Tensor  # transposed
    lines: Sequence[Tensor]  # its rows
    unit_rows: Sequence[Tensor]  # those of the identity
    c: Tensor  # coefficients [batch, 1, size], written anew in each step
    shares: Sequence[Tensor]  # each of them
    gram: Tensor  # inner products with a step, the same
    squares: Sequence[Tensor]

    @classmethod
    def of(cls, rows: Tensor, matrix: Tensor, units: Tensor) -> _Window:
        """For the rows ``[batch, size, n]``, of all of the matrix and the identity."""
        batch, size, _ = rows.shape
        block, unit = matrix[:, :size, :size], units[:size, :size]
        c, gram = matrix.new_empty(2, batch, 1, size).unbind(0)
        parts = block.split(1, 1), unit.split(1), c, c.split(1, 2), gram, gram.split(1, 2)
        return cls(rows, block, block.mT, *parts)


@dataclass(eq=False)
class _Good:
    """The steps s_0, s_1, ... since the last restart.

    With t_j = s_j / ``|s_j|^2``, -B is the product of all I + s_{j+1} t_j^T, the newest on the
    left, and the next step s = -B g is in its own newest factor: s = d / (1 - c_{k-1}), where d = g
    + sum_{j<k-1} c_j s_{j+1} and c_j = t_j^T (g + sum_{i<j} c_i s_{i+1}). Without a graph, the
    matrix that takes S g to the coefficients of S gains a row a step, and all else is three
    products with S.
    """

    products: Products
    steps: History
    matrix: Tensor  # [batch, memory + 1, memory + 1]
    units: Tensor = field(metadata=SHARED)  # the identity
    forgotten: int = 0
    kept: list[Tensor] = field(default_factory=list)
    window: _Window | None = field(default=None, init=False)

    def __post_init__(self) -> None:
        self.one = self.units[0, 0]
        info = torch.finfo(self.units.dtype)
        self.limit, self.tiny = 10 * info.eps, info.tiny
        # Where the host looks for free: a look is less than what it may show to be needless.
        self.looks = host.on_host(self.matrix) and not self.matrix.is_complex()

    @classmethod
    def empty(cls, kernels: Products, z: Tensor, memory: int, kept: torch.dtype) -> _Good:
        """No step has been taken."""
        dtype = z.dtype if z.is_complex() else real_dtype(z)
        matrix = z.new_zeros(z.shape[0], memory + 1, memory + 1, dtype=dtype)
        units = torch.eye(memory + 1, dtype=dtype, device=z.device)
        return cls(kernels, History.like(z, memory + 1, dtype=kept), matrix, units)

    def step(self, g: Tensor) -> Tensor:
        """-B g, taken in as the next step."""
        if self.steps.count == self.steps.depth:
            self.forgotten += self.steps.count
            self.steps.clear()
            self.matrix.zero_()
            self.kept = []
        if torch.is_grad_enabled():
            self.steps.append(self._chain(g) if self.steps.count else g)
        else:
            self.steps.append(*(self._solve(g) if self.steps.count else (g,)))
            if self.steps.count < self.steps.depth:
                self._take_in(self.steps.last())
        return self.steps.last()

    def _solve(self, g: Tensor) -> tuple[Tensor, Tensor]:
        """d and 1 / (1 - c)."""
        window, newest = self._window(), self.steps.count
        inner = self.products.inner_products(window.rows, g)
        c = BMM[g.is_cpu](inner.to(self.units.dtype), window.turned, out=window.c)
        scale = self._scale(window.shares[newest], window.lines[newest])
        # The row of the step to be found is still zero, so its own coefficient adds nothing here.
        return self.products.axpy_history(g, c.to(g.dtype), window.rows), scale

    def _scale(self, c: Tensor, line: Tensor) -> Tensor:
        """1 / (1 - c), and no line of the matrix where that is division by rounding."""
        if self.looks:
            scale, most = (1 - c).reciprocal_(), (1 - self.limit) / self.limit
            if torch.equal(torch.clamp(scale, -most, most), scale):
                return scale
        scale, safe = _scale(c, self.limit, self.one)
        line.mul_(safe)
        return scale

    def _take_in(self, s: Tensor) -> None:
        """The coefficient of the step that follows s."""
        window, newest = self._window(), self.steps.count - 1
        if self.steps.narrow:  # its square may be beyond what a narrow sum can hold
            s = s.to(self.units.dtype)
        gram = self.products.inner_products(window.rows, s).to(self.units.dtype)
        row = BADDBMM[s.is_cpu](window.unit_rows[newest], gram, window.block)
        torch.add(gram, self.tiny, out=window.gram)
        torch.div(row, window.squares[newest], out=window.lines[newest + 1])

    def _window(self) -> _Window:
        """That of the steps so far and a zero row."""
        rows, window = self.steps.rows(ahead=1), self.window
        if window is None or rows is not window.rows:
            self.window = window = _Window.of(rows, self.matrix, self.units)
        return window

    def _chain(self, g: Tensor) -> Tensor:
        """The same, factor by factor: autograd must keep what the matrix would write over."""
        d, steps = g, self.steps.each()
        for s, after, kept in zip(steps, steps[1:], self.kept, strict=False):
            d = d + after * _share(s, d) * kept
        scale, safe = _scale(_share(steps[-1], d), self.limit, self.one)
        self.kept.append(safe)
        return d * scale

    def transposed(self, taken: Tensor, v: Tensor) -> Tensor:
        """-B^H v, ``[batch, n]``, of the estimate at which each sample stopped.

        That of the start, v itself, where a step was so large that the product is not finite: a
        sample that ran away is not to spoil the gradient of what it shares with others.

        Arguments:
            taken: the number of that iterate, ``[batch]``: later steps of the loop do not count.
            v: ``[batch, n]``.
        """
        u, steps = v.unsqueeze(1), self.steps.each()
        for newer in range(len(steps) - 1, 0, -1):
            own = (taken - self.forgotten - 2 >= newer).view(-1, 1, 1)
            share = self.matrix[:, newer, newer - 1].to(v.dtype).view(-1, 1, 1)
            change = steps[newer - 1] * (share * (steps[newer].conj() * u).sum(2, keepdim=True))
            u = torch.where(own, u + change, u)
        return torch.where(u.isfinite().all(2), u.squeeze(1), v)


def _scale(c: Tensor, limit: float, one: Tensor) -> tuple[Tensor, Tensor]:
    """1 / (1 - c), and where that is no division by rounding: one elsewhere."""
    denominator = 1 - c
    safe = denominator.abs() > limit
    return torch.where(safe, denominator, one).reciprocal(), safe


def _share(s: Tensor, d: Tensor) -> Tensor:
    """The coefficient of d along s, ``[batch, 1, 1]``; zero along a zero."""
    square = (s.conj() * s).sum(2, keepdim=True)
    return (s.conj() * d).sum(2, keepdim=True) / torch.where(square == 0, 1, square)


@dataclass(eq=False)
class _Bad:
    """B = -I + sum_i u_i v_i^H, and the last residual g, from which the step -B g was taken."""

    products: Products
    left: History
    right: History
    last: Tensor | None = None

    @classmethod
    def empty(cls, kernels: Products, z: Tensor, memory: int, kept: torch.dtype) -> _Bad:
        """No step has been taken."""
        left, right = (History.like(z, memory, dtype=kept) for _ in range(2))
        return cls(kernels, left, right)

    def step(self, g: Tensor) -> Tensor:
        """-B g, after the last step is taken in.

        B y = B g - B g_last = B g + s, so s - B y is -B g of the estimate before.
        """
        last, self.last = self.last, g
        if last is None or self.left.count == self.left.depth:
            self.left.clear()
            self.right.clear()
            return g
        rows, y = self.right, g - last
        direction = (
            g
            if not rows.count
            else self.products.axpy_history(
                g, self.products.inner_products(rows.rows(), g), self.left.rows(), -1
            )
        )
        square = (y.conj() * y).sum(2, keepdim=True)
        u = torch.where(square.abs() > 0, direction / torch.where(square == 0, 1, square), 0)
        self.left.append(u)
        self.right.append(y)
        return direction - u * (y.conj() * g).sum(2, keepdim=True)
