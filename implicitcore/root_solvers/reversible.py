"""A fixed-point iteration that can be undone."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from math import log
from typing import NamedTuple, final

import torch
from torch import Tensor

from implicitcore.options.types import ProperFraction
from implicitcore.root_solvers.convergence import StopTest
from implicitcore.root_solvers.stepwise import StepwiseRootSolver
from implicitcore.solution import Solution
from implicitcore.system.evaluation import Evaluation
from implicitcore.system.system import System

# How far the undoing of steps may enlarge the rounding of the state that it begins from.
GROWTH = 1e4


class Pair(NamedTuple):
    """The two states, ``[batch, n]`` each, in float64 or complex128."""

    y: Tensor
    z: Tensor


class Path(NamedTuple):
    """The way of a solve.

    Attributes:
        steps: how many were taken.
        end: the pair after the last.
        best: ``[batch]``, after how many steps each sample had the iterate that was returned.
    """

    steps: int
    end: Pair
    best: Tensor


@final
@dataclass(frozen=True, kw_only=True)
class Reversible(StepwiseRootSolver[Pair]):
    """Two coupled damped iterations, which can be undone without having been recorded.

    y <- (1 - b) y + b f(z), then z <- (1 - b) z + b f(y), with b the ``damping`` and y = z at the
    start. Its steps can be taken back: z = (z - b f(y)) / (1 - b), then y = (y - b f(z)) / (1 - b).
    With the gradient ``reversible`` that is backpropagation through every step in bounded memory.
    Both states are kept in float64, whatever the dtype of z: f is evaluated in that of z.

    A step is two evaluations, and worth two of ``Picard``'s. Prefer it where the gradient is to be
    that of the steps taken, as where few of them are, and ``Anderson`` with the gradient
    ``implicit`` where the equilibrium is found.

    Attributes:
        damping: b, less than 1. Taking a step back enlarges rounding by about 1 / (1 - b)^2.

    Reference:
        Reversible Deep Equilibrium Models, arXiv 2509.12917.
    """

    damping: ProperFraction = 0.5

    @property
    def undoable(self) -> int:
        """How many steps can be taken back before rounding has grown by ``GROWTH``; at least 1."""
        return max(int(log(GROWTH) / (-2 * log(1 - self.damping))), 1)

    def init(self, system: System, z: Tensor) -> Pair:
        """Both states at the start."""
        del system
        return Pair(_wide(z), _wide(z))

    def step(self, system: System, now: Evaluation, state: Pair) -> tuple[Tensor, Pair]:
        """See :meth:`StepwiseRootSolver.step`; one evaluation beside that at ``now``."""
        dtype = now.z.dtype
        y = torch.lerp(state.y, _wide(now.fz), self.damping)
        z = torch.lerp(state.z, _wide(system.update(y.to(dtype))), self.damping)
        return z.to(dtype), Pair(y, z)

    def advance(self, system: System, pair: Pair, steps: int) -> Pair:
        """The pair so many steps later."""
        dtype = system.packing.dtype
        for _ in range(steps):
            y = torch.lerp(pair.y, _wide(system.update(pair.z.to(dtype))), self.damping)
            z = torch.lerp(pair.z, _wide(system.update(y.to(dtype))), self.damping)
            pair = Pair(y, z)
        return pair

    def undo(self, system: System, pair: Pair) -> Pair:
        """The pair a step earlier, up to rounding."""
        dtype, b = system.packing.dtype, self.damping
        z = (pair.z - b * _wide(system.update(pair.y.to(dtype)))) / (1 - b)
        y = (pair.y - b * _wide(system.update(z.to(dtype)))) / (1 - b)
        return Pair(y, z)

    def solve_keeping(
        self, system: System, z0: Tensor, keep: Callable[[int, Pair], None]
    ) -> tuple[Solution, Path]:
        """Solve, and tell the way there.

        A sample that has stopped goes on with the others, so that its way back begins where theirs
        does; what is returned of it is where it stopped.

        Arguments:
            system: what is solved.
            z0: ``[batch, n]``.
            keep: called before each step with its index and the pair.
        """
        test = StopTest(system, z0, self.tol, self.atol, self.min_steps)
        now, pair = system.evaluate(z0), self.init(system, z0)
        held = now
        best = torch.zeros(len(z0), dtype=torch.int64, device=z0.device)
        steps = 0
        while True:
            active = test.state.active
            if steps and test.remaining < len(z0):
                held = now.where(active, held)
            else:
                held = now
            done = test.check(held)
            chosen = active & (test.state.best == held.z).all(1)
            best = torch.where(chosen, steps, best)
            if done or steps == self.max_steps - 1:
                return test.solution(), Path(steps, pair, best)
            keep(steps, pair)
            z, pair = self.step(system, now, pair)
            now, steps = system.evaluate(z), steps + 1


def _wide(z: Tensor) -> Tensor:
    """z in double precision."""
    return z.to(torch.complex128 if z.is_complex() else torch.float64)
