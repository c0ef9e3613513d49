"""The equilibrium as the steady state of an ODE."""

from __future__ import annotations

from dataclasses import dataclass, is_dataclass, replace
from typing import final

import torch
from torch import Tensor

from implicitcore.backends.base import Residual
from implicitcore.norms import norm
from implicitcore.ode_solvers.base import ODESolver
from implicitcore.ode_solvers.runge_kutta import Bosh3
from implicitcore.options import Options
from implicitcore.root_solvers.base import RootSolver
from implicitcore.root_solvers.loop import Progress
from implicitcore.solution import Solution
from implicitcore.system import System
from implicitcore.tolerances import Count, Tolerance


@final
@dataclass(frozen=True, kw_only=True)
class SteadyState(Options, RootSolver):
    """Integrate dz/dt = g(z, x) until the velocity vanishes: the bridge from any ODE solver to a root solver.

    The stop test is that of every root solver, on the derivative that the method has anyway: it costs nothing. Stepping and
    stopping tolerances are apart: the ODE solver's bound the error of a step, and the error is kept below the step's own move besides,
    so that the residual can fall to any ``tol``. Loose stepping tolerances spend the fewest evaluations.

    Attributes:
        ode_solver: integrates.
        tol: stop where ``|f(z) - z| <= tol |f(z)| + atol``, per sample, in the 2-norm.
        atol: absolute tolerance beside it.
        max_steps: most steps of the ODE solver.

    Reference:
        Pal, Edelman, Rackauckas, Continuous Deep Equilibrium Models, arXiv 2201.12240.
    """

    ode_solver: ODESolver = Bosh3(rtol=0.1, atol=0.1)
    tol: Tolerance = 1e-4
    atol: Tolerance = 0.0
    max_steps: Count = 50

    def solve(self, system: System, z0: Tensor) -> Solution:
        """See :meth:`RootSolver.solve`."""
        progress = Progress(system, z0, self.tol, self.atol)

        def stop(t: Tensor, z: Tensor, velocity: Tensor) -> Tensor:
            del t
            with torch.no_grad():
                residual = Residual(velocity, norm(velocity), norm(z + velocity))
            progress.note(z, residual)
            return progress.active

        solver = self.ode_solver
        if is_dataclass(solver) and hasattr(solver, "max_steps"):
            solver = replace(solver, max_steps=self.max_steps)
        solver.solve(system, z0, torch.tensor([0.0, torch.inf]), stop)
        return progress.solution()
