"""The equilibrium as the steady state of an ODE."""

from __future__ import annotations

from dataclasses import dataclass, is_dataclass, replace
from typing import Literal, final

import torch
from torch import Tensor

from implicitcore.backends.base import Residual
from implicitcore.backends.root_iteration import AdamsFlowRule
from implicitcore.dynamics.vector_field import VectorField
from implicitcore.ode_solvers.adams import Adams
from implicitcore.ode_solvers.base import ODESolver
from implicitcore.ode_solvers.error_scale import check_precision
from implicitcore.ode_solvers.step_chooser import SHORTEST
from implicitcore.options.shared import Stopping
from implicitcore.options.types import Count
from implicitcore.root_solvers.base import RootSolver
from implicitcore.root_solvers.convergence import StopTest
from implicitcore.root_solvers.fused import fused_loop
from implicitcore.solution import Solution, Status
from implicitcore.system.coupling import check_stalled
from implicitcore.system.evaluation import Evaluation
from implicitcore.system.system import System
from implicitcore.tensors.like import check_like
from implicitcore.tensors.norms import column, norm

# A sample has stalled where the least residual of ``patience`` steps is no less than this share of
# the least of those before, nor more than so many times it: one that rises is on its way through a
# transient.
FALL, RISE = 0.95, 2.0


@final
@dataclass(frozen=True, kw_only=True)
class SteadyState(Stopping, RootSolver):
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
        measure: ``"norm"`` compares 2-norms; ``"entries"`` every entry, for states whose parts
            differ in size.
        patience: a sample has stalled where its least residual in so many steps is about that in as
            many before. Small fixed steps need more; None waits for ``max_steps``.

    Reference:
        Pal, Edelman, Rackauckas, Continuous Deep Equilibrium Models, arXiv 2201.12240.
    """

    ode_solver: ODESolver = Adams(rtol=0.5, atol=0.5, max_order=3)
    measure: Literal["norm", "entries"] = "norm"
    patience: Count | None = 30
    max_steps: Count = 100

    def solve(self, system: System, z0: Tensor) -> Solution:
        """See :meth:`RootSolver.solve`."""
        return self._solve(system, z0, None)

    def solve_from(self, system: System, start: Evaluation) -> Solution:
        """See :meth:`RootSolver.solve_from`."""
        return self._solve(system, start.z, start)

    def _solve(self, system: System, z0: Tensor, start: Evaluation | None) -> Solution:
        found = self._by_backend(system, z0, start) or self._integrate(system, z0)
        return check_stalled(system, found) if _autonomous(system) else found

    def _by_backend(self, system: System, z0: Tensor, start: Evaluation | None) -> Solution | None:
        """The solution by a backend that does a step, its control and the stop test in one call."""
        flow = self._flow(system)
        if flow is None:
            return None
        loop = fused_loop(system, z0, flow, (self.tol, self.atol, 1, self.max_steps))
        if loop is None:
            return None
        check_precision(system, z0.dtype, flow.step.rtol, flow.step.atol)
        return loop.run(z0, start)

    def _flow(self, system: System) -> AdamsFlowRule | None:
        """The integration as data; None where it is none, or its iterates are wanted."""
        solver = self.ode_solver
        if type(solver) is not Adams or self.measure != "norm" or system.context.recorder:
            return None
        control = solver.step_size.steady_state()
        if control.rule is None or not _autonomous(system):
            return None
        return AdamsFlowRule(
            max_order=solver.max_order,
            rows=solver.rows,
            step=control.rule,
            first_step=control.first_step or 1.0,
            shortest=SHORTEST,
            patience=self.patience or 0,
            fall=FALL,
            rise=RISE,
        )

    def _integrate(self, system: System, z0: Tensor) -> Solution:
        test = SteadyStateTest(self, system, z0)

        def stop(t: Tensor, z: Tensor, velocity: Tensor) -> Tensor:
            del t
            check_like(z, z0, self.ode_solver, "solve")
            with torch.no_grad():
                fz = z + velocity
                residual = Residual(velocity, norm(velocity), norm(fz))
            going = test.check(Evaluation(z, fz, residual))
            # The start is an iterate too: the solver's own limit is one step too many.
            return torch.zeros_like(going) if test.test.count >= self.max_steps else going

        solver = self.ode_solver
        if is_dataclass(solver) and hasattr(solver, "max_steps"):
            solver = replace(solver, max_steps=self.max_steps)
        trajectory = solver.solve(system, z0, torch.tensor([0.0, torch.inf]), stop)
        return test.solution(trajectory.status)


def _autonomous(system: System) -> bool:
    """Whether it is known that the velocity does not depend on the time."""
    dynamics = system.dynamics
    if not system.is_field or system.problem.subtracts:
        return True
    return type(dynamics) is VectorField and dynamics.autonomous


class SteadyStateTest:
    """A stop test that may compare entries in place of norms, and that detects stagnation.

    Arguments:
        options: says which.
        system: gives the scale of the relative tolerance.
        z0: the start, ``[batch, n]``.
    """

    def __init__(self, options: SteadyState, system: System, z0: Tensor) -> None:
        by_norm = options.measure == "norm"
        tol, atol = (options.tol, options.atol) if by_norm else (0.0, 0.0)
        self.options, self.test = options, StopTest(system, z0, tol, atol)
        self.least = self.before = self.test.state.best_norm

    def check(self, now: Evaluation) -> Tensor:
        """Take in an iterate; the samples ``[batch]`` that go on."""
        options, test = self.options, self.test
        if not test.check(now):
            if options.measure == "entries":
                self._compare_entries(now)
            if options.patience:
                self.least = torch.minimum(self.least, now.residual.norm.detach())
                if test.count % options.patience == 0:
                    self._watch()
        return test.state.active

    def _compare_entries(self, now: Evaluation) -> None:
        state, options = self.test.state, self.options
        allowed = options.tol * now.fz.abs() + options.atol
        met = (now.residual.value.abs() <= allowed).all(1) & state.active
        # The iterate that met the test, be another's norm smaller.
        state.best = torch.where(column(met), now.z, state.best)
        state.best_norm = torch.where(met, now.residual.norm, state.best_norm)
        self.test.stop(met)

    def _watch(self) -> None:
        active, least, before = self.test.state.active, self.least, self.before
        stalled = active & (least > FALL * before) & (least < RISE * before)
        self.least, self.before = torch.full_like(least, torch.inf), least
        self._fail(stalled, Status.STALLED)

    def _fail(self, which: Tensor, status: Status) -> None:
        if bool(which.any()):
            self.test.state.fail(which, status)
            self.test.stop(which)

    def solution(self, path: Tensor) -> Solution:
        """The best iterates, where the integration ended with these statuses ``[batch]``.

        No step was short enough, or f had no value anywhere near.
        """
        active = self.test.state.active
        self._fail(active & (path == Status.DIVERGED), Status.STALLED)
        self._fail(active & (path == Status.NON_FINITE), Status.NON_FINITE)
        return self.test.solution()
