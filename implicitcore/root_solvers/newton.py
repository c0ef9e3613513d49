"""Newton's method with a line search."""

from __future__ import annotations

from dataclasses import dataclass
from typing import final

import torch
from torch import Tensor

from implicitcore.options.shared import Stopping
from implicitcore.options.types import Count, Whole
from implicitcore.root_solvers.base import RootSolver
from implicitcore.root_solvers.convergence import StopTest
from implicitcore.root_solvers.linearized import Point, damped, solve
from implicitcore.solution import Solution, Status
from implicitcore.system.evaluation import Evaluation
from implicitcore.system.linear_system import LinearSystem
from implicitcore.system.system import System
from implicitcore.tensors.norms import column

# A step of length a is accepted where it lowers |g| by this share of a.
ARMIJO = 1e-4
# A sample whose last step was shorter than this is near a singular Jacobian: its next one is
# damped.
SHORT = 0.1
# The forcing term is at most this, and falls with FORCING times the square of the last decrease.
LOOSEST, FORCING = 0.5, 0.9


@final
@dataclass(frozen=True, kw_only=True)
class Newton(Stopping, RootSolver):
    """Newton's method on g(z) = f(z) - z: (I - J) s = g with J = df/dz, then z + a s, per sample.

    The length a begins at one and is cut, by the minimum of a parabola, until ``|g|`` falls by the
    rule of Armijo. Where n <= ``dense_below`` the Jacobian is formed (n products) and factorised; a
    sample whose Jacobian is singular, or whose last step was short, takes a damped least squares
    step instead. Larger systems are solved by GMRES as far as the forcing term asks. A sample that
    no step improves stops as ``STALLED``: at a minimum of ``|g|`` that is no root, or at rounding.

    Converges quadratically near a root with a regular Jacobian, contraction or not. An iteration
    costs many products: prefer ``Anderson`` or ``Broyden`` where they converge, ``Homotopy`` where
    the line search ends in a minimum of ``|g|`` that is no root.

    Attributes:
        dense_below: largest n whose Jacobians are formed; the storage is n^2 per sample.
        restart: most GMRES products in one iteration.
        backtracks: most times a step is cut; 0 always takes the full step.

    Reference:
        Dennis, Schnabel, Numerical Methods for Unconstrained Optimization and Nonlinear Equations
        (1983), section 6.3; forcing term: Eisenstat, Walker, SIAM J. Sci. Comput. 17 (1996), p.
        16-32, choice 2; damped step: More, The Levenberg-Marquardt algorithm (1978).
    """

    dense_below: Whole = 64
    restart: Count = 30
    backtracks: Whole = 10

    def solve(self, system: System, z0: Tensor) -> Solution:
        """See :meth:`RootSolver.solve`."""
        return self._run(Point.at(system, z0))

    def solve_from(self, system: System, start: Evaluation) -> Solution:
        """See :meth:`RootSolver.solve_from`."""
        return self._run(Point.known(system, start))

    def _run(self, point: Point) -> Solution:
        test = StopTest(point.system, point.z, self.tol, self.atol)
        stopped = test.check(point.now)
        run = _Run(self, test)
        for _ in range(self.max_steps - 1):
            if stopped or not run.going():
                break
            point = run.step(point)
            stopped = test.check(point.now) or run.end()
        return test.solution(steps=run.steps)


class _Run:
    """What an iteration hands to the next one, per sample."""

    def __init__(self, solver: Newton, test: StopTest) -> None:
        self.solver, self.test = solver, test
        self.steps = torch.ones_like(test.state.steps)
        self.stalled = torch.zeros_like(test.state.active)  # no step lowers |g|
        self.damped = torch.zeros_like(test.state.active)  # takes a damped step
        self.forcing: Tensor | None = None
        self.last: Tensor | None = None  # |g| of the last iterate

    def going(self) -> bool:
        """Whether a sample is still worth a step."""
        self.active = self.test.state.active
        return bool(self.active.any())

    def end(self) -> bool:
        """Stop the samples that no step improves; True when every sample has stopped."""
        test, stalled = self.test, self.stalled & self.test.state.active
        if bool(stalled.any()):
            test.state.fail(stalled, Status.STALLED)
            test.stop(stalled)
        return test.remaining == 0

    def step(self, point: Point) -> Point:
        """The next iterate; the samples that are done stay where they are."""
        self.steps = self.steps + self.active
        dense = point.z.shape[1] <= self.solver.dense_below
        return self._search(point, self._dense(point) if dense else self._krylov(point))

    def _dense(self, point: Point) -> Tensor:
        matrix, g = point.matrix(), point.g
        s, singular = solve(matrix, g)
        self.damped = (self.damped | singular) & self.active
        if bool(self.damped.any()):
            chosen = torch.where(
                self.damped[:, None, None],
                matrix,
                torch.eye(g.shape[1], dtype=matrix.dtype, device=g.device),
            )
            s = torch.where(column(self.damped), damped(chosen, g), s)
        return s

    @torch.no_grad()
    def _limit(self, size: Tensor) -> Tensor:
        """How far GMRES reduces ``|g - (I - J) s|``.

        To the tolerance where the system is linear, else no further than is of use.
        """
        eta = torch.full_like(size, LOOSEST)
        if self.forcing is not None and self.last is not None:
            before = FORCING * self.forcing.square()
            eta = FORCING * (size / self.last).square()
            eta = torch.where(before > 0.1, torch.maximum(eta, before), eta).clamp(max=LOOSEST)
        self.forcing, self.last = eta, size
        limit = self.test.state.limit / 2
        if not isinstance(self.test.system, LinearSystem):
            limit = torch.maximum(eta * size, limit)
        return torch.where(self.active, limit, torch.inf)

    def _krylov(self, point: Point) -> Tensor:
        self.damped = torch.ones_like(self.damped)  # there is no other step to try
        return point.krylov(1.0, self._limit(point.size), self.solver.restart)

    def _search(self, point: Point, s: Tensor) -> Point:
        """The point z + a s of each sample, with the Jacobian that accepting it needs anyway."""
        a = torch.ones_like(point.size)
        trial = self._trial(point, s, a, self.active)
        if self.solver.backtracks == 0:
            return trial
        short = self._short(trial, point, a)
        for _ in range(self.solver.backtracks):
            if not bool(short.any()):
                break
            ratio = trial.size / point.size
            cut = (a / (ratio.square() - 1 + 2 * a)).clamp(0.1, 0.5).nan_to_num(0.1)
            a = torch.where(short, a * cut, a)
            trial = self._trial(point, s, a, self.active)
            short = self._short(trial, point, a)
        if bool(short.any()):  # these stay where they are
            trial = self._trial(point, s, a, self.active & ~short)
        self.stalled = self.stalled | (short & self.damped)
        self.damped = self.active & (short | (a < SHORT))
        return trial

    def _trial(self, point: Point, s: Tensor, a: Tensor, moving: Tensor) -> Point:
        z = torch.where(column(moving), point.z + column(a).to(s.dtype) * s, point.z)
        return Point.at(point.system, z)

    def _short(self, trial: Point, point: Point, a: Tensor) -> Tensor:
        """The samples whose step does not lower ``|g|`` enough."""
        return self.active & ~(trial.size <= (1 - ARMIJO * a) * point.size)
