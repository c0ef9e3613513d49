"""The iterations of root solvers as pure functions of tensors, which a loop in a graph repeats.

Their counts are tensors, their histories are written by choice and not in place, and rows that were
never written are zero: they take part in every product and add nothing. Each takes the steps that
its solver takes in the eager loop.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Any, Generic, NamedTuple, TypeVar

import torch
from torch import Tensor

from implicitcore.graph.history import axpy_history, inner_products
from implicitcore.root_solvers.anderson import PERIOD, Anderson
from implicitcore.root_solvers.broyden import Broyden
from implicitcore.root_solvers.picard import Picard
from implicitcore.system.evaluation import Evaluation
from implicitcore.tensors.norms import column, norm, real_dtype

Memory = TypeVar("Memory")
Solver = TypeVar("Solver")


@dataclass(frozen=True)
class Iteration(ABC, Generic[Solver, Memory]):
    """One iteration of a solver.

    Attributes:
        solver: its options.
    """

    solver: Solver

    @abstractmethod
    def begin(self, z: Tensor) -> Memory:
        """The memory before the first step: a tuple of tensors."""

    @abstractmethod
    def step(self, now: Evaluation, grown: Tensor, memory: Memory) -> tuple[Tensor, Memory]:
        """The next iterate and memory; ``grown`` [batch] as in ``StepwiseRootSolver.restart``."""


class PicardIteration(Iteration[Picard, tuple[()]]):
    """See :class:`Picard`."""

    def begin(self, z: Tensor) -> tuple[()]:
        """Nothing."""
        del z
        return ()

    def step(self, now: Evaluation, grown: Tensor, memory: Any) -> tuple[Tensor, tuple[()]]:
        """See :meth:`Iteration.step`."""
        del grown, memory
        return _plain(now, self.solver.damping), ()


class AndersonMemory(NamedTuple):
    """See ``AndersonState``."""

    rows: Tensor  # [batch, depth, 2 n]
    alive: Tensor  # [batch, depth] bool, which rows are in use
    last: Tensor  # [batch, 1, 2 n], the residual and the plain step of the iterate before
    plain: Tensor  # [batch] bool, the samples whose last step was none of acceleration
    slot: Tensor  # [depth] bool, the row to write next; none before the first iterate
    written: Tensor  # int64, rows written; -1 before the first iterate
    waiting: Tensor  # [batch] bool, the samples that plain steps bring on fast enough
    size: Tensor  # [batch], the last residuals


class AndersonIteration(Iteration[Anderson, AndersonMemory]):
    """See :class:`Anderson`."""

    def begin(self, z: Tensor) -> AndersonMemory:
        """An empty history."""
        batch, n = z.shape
        rows = z.new_zeros(batch, self.solver.depth, 2 * n)
        no = z.new_zeros(batch, self.solver.depth, dtype=torch.bool)
        count = torch.full((), -1, dtype=torch.int64, device=z.device)
        waiting = torch.full_like(no[:, 0], self.solver.plain_rate > 0)
        size = z.new_zeros(batch, dtype=real_dtype(z))
        last = z.new_zeros(batch, 1, 2 * n)
        slot = torch.zeros_like(no[0])
        return AndersonMemory(rows, no, last, no[:, 0].clone(), slot, count, waiting, size)

    def step(
        self, now: Evaluation, grown: Tensor, memory: AndersonMemory
    ) -> tuple[Tensor, AndersonMemory]:
        """See :meth:`Iteration.step`."""
        solver, n, g = self.solver, now.z.shape[1], now.residual.value.unsqueeze(1)
        current = torch.cat((g, _plain(now, solver.damping).unsqueeze(1)), 2)
        first, full = memory.written < 0, memory.written == PERIOD * solver.depth
        count = torch.where(full, 0, memory.written)
        alive = memory.alive & ~column(grown) & ~full
        pair = current - memory.last
        pair = _without(pair, _inner(memory.rows[..., :n], pair[..., :n], alive), memory.rows)
        scale = self._length(pair[..., :n], now.residual.norm).reciprocal()
        write = memory.slot
        rows = torch.where(
            write.view(1, -1, 1), (pair * scale.view(-1, 1, 1)).to(g.dtype), memory.rows
        )
        size = now.residual.norm.clone()  # a loop in a graph returns nothing that it was given
        waiting = memory.waiting & (first | (size <= memory.size * solver.plain_rate))
        begins = grown | waiting
        alive = (alive & ~write) | (write & column(~begins))
        back = (grown & ~memory.plain).view(-1, 1, 1)
        last = torch.where(back, memory.last, current)
        z = _without(last[..., n:], _inner(rows[..., :n], g, alive), rows[..., n:])
        count = count + 1
        slot = torch.arange(solver.depth, device=g.device) == count % solver.depth
        return z.squeeze(1), AndersonMemory(
            rows, alive, last, begins | first, slot, count, waiting, size
        )

    def _length(self, q: Tensor, size: Tensor) -> Tensor:
        """See ``Anderson._learn``."""
        info, relative = torch.finfo(real_dtype(q)), self.solver.regularization
        ridge = (10 * info.eps if relative is None else relative) ** 0.5
        return _hypot(norm(q.squeeze(1)), info.tiny**0.5 + size * ridge)


class GoodMemory(NamedTuple):
    """See ``_Good`` of Broyden's methods."""

    steps: Tensor  # [batch, memory + 1, n]
    matrix: Tensor  # [batch, memory + 1, memory + 1]
    written: Tensor  # int64, steps written


class GoodBroydenIteration(Iteration[Broyden, GoodMemory]):
    """See :class:`Broyden`."""

    def begin(self, z: Tensor) -> GoodMemory:
        """B = -I."""
        depth = self.solver.memory + 1
        matrix = z.new_zeros(z.shape[0], depth, depth, dtype=real_dtype(z))
        count = torch.zeros((), dtype=torch.int64, device=z.device)
        return GoodMemory(z.new_zeros(z.shape[0], depth, z.shape[1]), matrix, count)

    def step(self, now: Evaluation, grown: Tensor, memory: GoodMemory) -> tuple[Tensor, GoodMemory]:
        """See :meth:`Iteration.step`."""
        del grown
        depth, g = self.solver.memory + 1, now.residual.value.unsqueeze(1)
        dtype = memory.matrix.dtype
        full = memory.written == depth
        count = torch.where(full, 0, memory.written)
        rows = torch.where(full, 0, memory.steps)
        matrix = torch.where(full, 0, memory.matrix)
        place = torch.arange(depth, device=g.device)
        newest = (place == count).to(dtype)
        c = torch.bmm(inner_products(rows, g).to(dtype), matrix.mT)
        denominator = 1 - (c * newest).sum(2, keepdim=True)
        safe = denominator.abs() > 10 * torch.finfo(dtype).eps
        scale = torch.where(safe, denominator, 1).reciprocal()
        s = (axpy_history(g, c.to(g.dtype), rows) * scale).to(g.dtype)
        here = place.view(1, -1, 1)
        rows = torch.where(here == count, s, rows)
        matrix = torch.where((here == count) & ~safe, 0, matrix)
        gram = inner_products(rows, s).to(dtype)
        square = (gram * newest).sum(2, keepdim=True) + torch.finfo(dtype).tiny
        row = (newest + torch.bmm(gram, matrix)) / square
        matrix = torch.where(here == count + 1, row, matrix)
        return now.z + s.squeeze(1), GoodMemory(rows, matrix, count + 1)


class BadMemory(NamedTuple):
    """See ``_Bad`` of Broyden's methods."""

    left: Tensor  # [batch, memory, n]
    right: Tensor  # [batch, memory, n]
    last: Tensor  # [batch, 1, n], the last residual
    written: Tensor  # int64, updates written; -1 before the first iterate


class BadBroydenIteration(Iteration[Broyden, BadMemory]):
    """See :class:`Broyden`."""

    def begin(self, z: Tensor) -> BadMemory:
        """B = -I."""
        rows = z.new_zeros(z.shape[0], self.solver.memory, z.shape[1])
        count = torch.full((), -1, dtype=torch.int64, device=z.device)
        return BadMemory(rows, rows.clone(), z.new_zeros(z.shape[0], 1, z.shape[1]), count)

    def step(self, now: Evaluation, grown: Tensor, memory: BadMemory) -> tuple[Tensor, BadMemory]:
        """See :meth:`Iteration.step`."""
        del grown
        g, full = now.residual.value.unsqueeze(1), memory.written == self.solver.memory
        # Where it begins again nothing is learnt of the last step, as before the first one.
        begins = full | (memory.written < 0)
        left, right = torch.where(begins, 0, memory.left), torch.where(begins, 0, memory.right)
        y = g - memory.last
        direction = _without(g, inner_products(right, g), left)
        square = y.square().sum(2, keepdim=True)
        learnt = (square > 0) & ~begins
        u = torch.where(learnt, direction / torch.where(square == 0, 1, square), 0)
        here = torch.arange(self.solver.memory, device=g.device).view(1, -1, 1) == memory.written
        count = torch.where(begins, 0, memory.written + 1)
        left = torch.where(here & ~begins, u, left)
        right = torch.where(here & ~begins, y, right)
        s = direction - u * (y * g).sum(2, keepdim=True)
        return now.z + s.squeeze(1), BadMemory(left, right, g.clone(), count)


def _hypot(a: Tensor, b: Tensor) -> Tensor:
    """sqrt(a^2 + b^2) of positive numbers: ``torch.hypot``, which ONNX does not have."""
    larger = torch.maximum(a, b)
    return larger * (1 + (torch.minimum(a, b) / larger).square()).sqrt()


def _plain(now: Evaluation, damping: float) -> Tensor:
    """The damped step."""
    return now.fz if damping == 1 else torch.lerp(now.z, now.fz, damping)


def _inner(rows: Tensor, vector: Tensor, alive: Tensor) -> Tensor:
    """Inner products of a vector with the rows in use, ``[batch, 1, rows]``."""
    return inner_products(rows, vector) * alive.unsqueeze(1)


def _without(row: Tensor, weights: Tensor, rows: Tensor) -> Tensor:
    """Row - sum_i weights_i rows_i, ``[batch, 1, n]``."""
    return axpy_history(row, weights, rows, -1)
