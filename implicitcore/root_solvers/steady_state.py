"""The equilibrium as the steady state of an ODE."""

from __future__ import annotations

from dataclasses import dataclass, is_dataclass, replace
from typing import Literal, final

import torch
from torch import Tensor

from implicitcore.backends.base import Residual
from implicitcore.ode_solvers.adams import Adams
from implicitcore.ode_solvers.base import ODESolver
from implicitcore.options.options import Options
from implicitcore.options.types import Count, Tolerance
from implicitcore.root_solvers.base import RootSolver
from implicitcore.root_solvers.convergence import StopTest
from implicitcore.solution import Solution, Status
from implicitcore.system.system import System
from implicitcore.tensors.norms import column, norm

# A sample has stalled where the least residual of ``patience`` steps is no less than this share of
# the least of those before, nor more than so many times it: one that rises is on its way through a
# transient.
FALL, RISE = 0.95, 2.0


@final
@dataclass(frozen=True, kw_only=True)
class SteadyState(Options, RootSolver):
    """Integrate dz/dt = g(z, x) until the velocity vanishes.

    The bridge from any ODE solver to a root solver. The stop test is that of every root solver, on
    the derivative that the method has anyway: it costs nothing. Stepping and stopping tolerances
    are apart: the ODE solver's bound the error of a step, and the error is kept below the step's
    own move besides, so that the residual can fall to any ``tol``. Loose stepping tolerances spend
    the fewest evaluations. Where the residual cannot fall on (rounding, fixed steps that are too
    long, a cycle), the sample stops as ``STALLED``.

    The modes of the reference are combinations of the options: ``abs_norm`` is ``tol=0`` with an
    ``atol``, ``rel_norm`` a ``tol`` with ``atol=0``, ``abs`` and ``rel`` the same with
    ``measure="entries"``. The ``safe`` modes add what always holds here: divergence and stagnation
    end a sample with a status. So do the ``best`` ones: the best iterate is returned.

    Attributes:
        ode_solver: integrates.
        tol: stop where ``|f(z) - z| <= tol |f(z)| + atol``, per sample.
        atol: absolute tolerance beside it.
        measure: ``"norm"`` compares 2-norms; ``"entries"`` every entry, for states whose parts
            differ in size.
        patience: a sample has stalled where its least residual in so many steps is about that in as
            many before. Small fixed steps need more; None waits for ``max_steps``.
        max_steps: most steps of the ODE solver.

    Reference:
        Pal, Edelman, Rackauckas, Continuous Deep Equilibrium Models, arXiv 2201.12240.
    """

    ode_solver: ODESolver = Adams(rtol=0.5, atol=0.5, max_order=3)
    tol: Tolerance = 1e-4
    atol: Tolerance = 0.0
    measure: Literal["norm", "entries"] = "norm"
    patience: Count | None = 30
    max_steps: Count = 100

    def solve(self, system: System, z0: Tensor) -> Solution:
        """See :meth:`RootSolver.solve`."""
        progress = _Settling(self, system, z0)

        def stop(t: Tensor, z: Tensor, velocity: Tensor) -> Tensor:
            del t
            with torch.no_grad():
                fz = z + velocity
                residual = Residual(velocity, norm(velocity), norm(fz))
            progress.settle(z, fz, residual)
            return progress.active

        solver = self.ode_solver
        if is_dataclass(solver) and hasattr(solver, "max_steps"):
            solver = replace(solver, max_steps=self.max_steps)
        trajectory = solver.solve(system, z0, torch.tensor([0.0, torch.inf]), stop)
        progress.give_up(trajectory.status)
        return progress.solution()


class _Settling(StopTest):
    """StopTest with a test of the entries in place of the norms, where asked for, and a watch for residuals that fall no more."""

    def __init__(self, options: SteadyState, system: System, z0: Tensor) -> None:
        by_norm = options.measure == "norm"
        super().__init__(
            system, z0, options.tol if by_norm else 0.0, options.atol if by_norm else 0.0
        )
        self.options = options
        self.stalled = self.undefined = torch.zeros_like(self.active)
        self.least = self.before = self.best_norm

    def settle(self, z: Tensor, fz: Tensor, residual: Residual) -> None:
        """Take note of an iterate z with fz = f(z)."""
        if self.note(z, residual):
            return
        if self.options.measure == "entries":
            self._compare_entries(z, fz, residual)
        if self.options.patience:
            self.least = torch.minimum(self.least, residual.norm.detach())
            if self.count % self.options.patience == 0:
                self._watch()

    def _compare_entries(self, z: Tensor, fz: Tensor, residual: Residual) -> None:
        met = (residual.value.abs() <= self.options.tol * fz.abs() + self.options.atol).all(
            1
        ) & self.active
        # The iterate that met the test, be another's norm smaller.
        self.best = torch.where(column(met), z, self.best)
        self.best_norm = torch.where(met, residual.norm, self.best_norm)
        self._stop(met)

    def _watch(self) -> None:
        stalled = (
            self.active & (self.least > FALL * self.before) & (self.least < RISE * self.before)
        )
        self.least, self.before = torch.full_like(self.least, torch.inf), self.least
        self.stalled = self.stalled | stalled
        self._stop(stalled)

    def give_up(self, path: Tensor) -> None:
        """Take note of how the integration ended, ``[batch]``.

        No step was short enough, or f had no value anywhere near.
        """
        self.stalled = self.stalled | (self.active & (path == Status.DIVERGED))
        self.undefined = self.active & (path == Status.NON_FINITE)

    def status(self) -> Tensor:
        """``[batch]`` int8."""
        status = super().status()
        status[self.stalled] = Status.STALLED
        status[self.undefined] = Status.NON_FINITE
        return status
