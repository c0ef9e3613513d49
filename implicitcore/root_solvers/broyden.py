"""Broyden's method with limited memory."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, final

import torch
from torch import Tensor

from implicitcore.root_solvers.base import StepwiseRootSolver
from implicitcore.root_solvers.history import History
from implicitcore.system import System
from implicitcore.tolerances import Count


@dataclass
class BroydenState:
    """The inverse Jacobian estimate B = -I + sum_i u_i v_i^T, and the last residual and step."""

    left: History  # rows u_i
    right: History  # rows v_i
    last: tuple[Tensor, Tensor] | None = None  # the last residual g, and the step -B g taken from it


@final
@dataclass(frozen=True, kw_only=True)
class Broyden(StepwiseRootSolver[BroydenState]):
    """Broyden's methods on g(z) = f(z) - z, per sample, with the inverse estimate in low-rank form.

    B begins as -I (a plain fixed-point step); after a step s with residual change y the good method makes it
    B + (s - B y) s^T B / (s^T B y), the bad one B + (s - B y) y^T / (y^T y). When ``memory`` updates are full it begins again: writing
    over the oldest instead was seen to stall. A sample whose denominator vanishes skips that update.
    Converges superlinearly near a root and needs no contraction: prefer it where Picard and Anderson diverge or stall. The bad method
    does less work in an iteration, and now and then needs fewer of them.

    Attributes:
        memory: updates kept; the storage is 2 x memory states, whatever ``max_steps`` is.
        variant: ``"good"`` or ``"bad"``: the names are Broyden's own and no verdict.

    Reference:
        Broyden, Math. Comp. 19 (1965), p. 577-593, eq. 4.12; low-rank form: Kelley, Iterative Methods for Linear and
        Nonlinear Equations (1995), section 7.3.
    """

    memory: Count = 20
    variant: Literal["good", "bad"] = "good"

    def init(self, system: System, z: Tensor) -> BroydenState:
        """B = -I."""
        return BroydenState(History(z, self.memory), History(z, self.memory))

    def step(self, system: System, z: Tensor, fz: Tensor, state: BroydenState) -> tuple[Tensor, BroydenState]:
        """See :meth:`StepwiseRootSolver.step`."""
        g = system.residual(z, fz).value
        s = self._direction(system, g, state) if state.last is None else self._update(system, g, state.last, state)
        state.last = g, s
        return z + s, state

    def _direction(self, system: System, g: Tensor, state: BroydenState) -> Tensor:
        """-B g."""
        if not state.left.count:
            return g
        backend = system.backend
        return backend.mix(g, -backend.gram_row(state.right.rows(), g), state.left.rows())

    def _update(self, system: System, g: Tensor, last: tuple[Tensor, Tensor], state: BroydenState) -> Tensor:
        """Take in the last step s and return -B g of the new estimate (of the first one where the memory is full).

        With ``last`` = (g_last, s): B y = B g - B g_last = B g + s, so s - B y is the direction -B g of the old estimate.
        """
        if state.left.count == self.memory:
            state.left.clear()
            state.right.clear()
            return g
        direction = self._direction(system, g, state)
        v, denominator, scale = self._bad(g - last[0]) if self.variant == "bad" else self._good(system, last[1], direction, state)
        safe = denominator.abs() > torch.finfo(g.dtype).eps * scale
        u = torch.where(safe, direction / torch.where(safe, denominator, 1), 0)
        state.left.append(u)
        state.right.append(v)
        return direction - u * (v * g).sum(1, keepdim=True)

    def _good(self, system: System, s: Tensor, direction: Tensor, state: BroydenState) -> tuple[Tensor, Tensor, Tensor]:
        """s^T B, s^T B y, and what that must not be tiny next to."""
        v = -s
        if state.left.count:
            v = system.backend.mix(v, system.backend.gram_row(state.left.rows(), s), state.right.rows())
        return v, (s * (s - direction)).sum(1, keepdim=True), (s * s).sum(1, keepdim=True)

    def _bad(self, y: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Y and y^T y."""
        square = (y * y).sum(1, keepdim=True)
        return y, square, torch.zeros_like(square)
