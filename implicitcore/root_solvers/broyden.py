"""Broyden's method with limited memory."""

from __future__ import annotations

from dataclasses import dataclass
from typing import final

import torch
from torch import Tensor

from implicitcore.root_solvers.base import StepwiseRootSolver
from implicitcore.root_solvers.history import History
from implicitcore.system import System
from implicitcore.tolerances import Count


@dataclass
class BroydenState:
    """The inverse Jacobian estimate B = -I + sum_i u_i v_i^T, and the last step."""

    left: History  # rows u_i
    right: History  # rows v_i
    s: Tensor | None = None  # the last step, -B g of the last iterate


@final
@dataclass(frozen=True, kw_only=True)
class Broyden(StepwiseRootSolver[BroydenState]):
    """Broyden's good method on g(z) = f(z) - z, per sample, with the inverse estimate in low-rank form.

    B begins as -I (a plain fixed-point step); after a step s with residual change y it becomes
    B + (s - B y) s^T B / (s^T B y). When ``memory`` updates are full it begins again: writing over the oldest instead was
    seen to stall. A sample whose denominator vanishes skips that update.
    Converges superlinearly near a root and needs no contraction: prefer it where Picard and Anderson diverge or stall.

    Attributes:
        memory: updates kept; the storage is 2 x memory states, whatever ``max_steps`` is.

    Reference:
        Broyden, Math. Comp. 19 (1965), p. 577-593, eq. 4.12; low-rank form: Kelley, Iterative Methods for Linear and
        Nonlinear Equations (1995), section 7.3.
    """

    memory: Count = 20

    def init(self, system: System, z: Tensor) -> BroydenState:
        """B = -I."""
        return BroydenState(History(z, self.memory), History(z, self.memory))

    def step(self, system: System, z: Tensor, fz: Tensor, state: BroydenState) -> tuple[Tensor, BroydenState]:
        """See :meth:`StepwiseRootSolver.step`."""
        g = system.residual(z, fz).value
        s = self._direction(system, g, state) if state.s is None else self._update(system, g, state.s, state)
        state.s = s
        return z + s, state

    def _direction(self, system: System, g: Tensor, state: BroydenState) -> Tensor:
        """-B g."""
        if not state.left.count:
            return g
        backend = system.backend
        return backend.mix(g, -backend.gram_row(state.right.rows(), g), state.left.rows())

    def _update(self, system: System, g: Tensor, s: Tensor, state: BroydenState) -> Tensor:
        """Take in the last step s and return -B g of the new estimate (of the first one where the memory is full).

        B y = B g - B g_last = B g + s, so neither y nor the last residual is needed.
        """
        if state.left.count == self.memory:
            state.left.clear()
            state.right.clear()
            return g
        backend = system.backend
        direction = self._direction(system, g, state)
        v = -s
        if state.left.count:
            v = backend.mix(v, backend.gram_row(state.left.rows(), s), state.right.rows())
        by = s - direction
        denominator = (s * by).sum(1, keepdim=True)
        safe = denominator.abs() > torch.finfo(g.dtype).eps * (s * s).sum(1, keepdim=True)
        u = torch.where(safe, (s - by) / torch.where(safe, denominator, 1), 0)
        state.left.append(u)
        state.right.append(v)
        return direction - u * (v * g).sum(1, keepdim=True)
