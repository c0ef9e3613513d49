"""SciPy's methods for stiff systems."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar, final

import numpy as np
import torch
from scipy import integrate
from torch import Tensor

from implicitcore import InputError, Trajectory
from implicitcore.extend import Linearization, Stop, System, Tolerance
from implicitcore_scipy.ivp import IVPSolver, Stretch
from implicitcore_scipy.sample import Array


@dataclass(frozen=True, kw_only=True)
class StiffSolver(IVPSolver):
    """A method that solves linear systems with dg/dz.

    Attributes:
        jacobian: the Jacobian is that of autograd, n products; else SciPy takes finite differences,
            n evaluations.
    """

    jacobian: bool = True

    def settings(self, path: Stretch) -> dict[str, Any]:
        """See :meth:`IVPSolver.settings`."""
        if not self.jacobian:
            return {}
        sample = path.sample

        def jacobian(t: float, y: Array) -> Array:
            with torch.enable_grad():
                point = sample.tensor(y).requires_grad_()
                velocity = sample.system.velocity(path.grid.new_tensor([t]), point)
            with torch.no_grad():
                matrix = Linearization(sample.system, point, velocity).matrix()
            if not bool(matrix.isfinite().all()):
                path.bad += 1
                raise ArithmeticError("the Jacobian is not finite")
            return np.ascontiguousarray(sample.array(matrix))

        return {"jac": jacobian}


@final
@dataclass(frozen=True, kw_only=True)
class Radau(StiffSolver):
    """``scipy.integrate.Radau``.

    Implicit Runge-Kutta of the family Radau IIA, order 5, for each sample by itself. For stiff
    systems.

    Reference:
        Hairer, Wanner, Solving Ordinary Differential Equations II (1996), section IV.8.
    """

    stepper: ClassVar[type[integrate.OdeSolver]] = integrate.Radau


@final
@dataclass(frozen=True, kw_only=True)
class BDF(StiffSolver):
    """``scipy.integrate.BDF``.

    Backward differentiation of orders 1 to 5, for each sample by itself. For stiff systems.

    Reference:
        Shampine, Reichelt, The MATLAB ODE suite, SIAM J. Sci. Comput. 18 (1997), p. 1-22.
    """

    stepper: ClassVar[type[integrate.OdeSolver]] = integrate.BDF


@final
@dataclass(frozen=True, kw_only=True)
class LSODA(StiffSolver):
    """``scipy.integrate.LSODA``.

    Adams or backward differentiation as the stiffness asks, for each sample by itself. It has one
    state for the whole process, so it integrates one sample after the other and not to a steady
    state.

    Attributes:
        min_step: no step is shorter; those that would have to be are as inaccurate as that makes
            them.

    Reference:
        Petzold, Automatic selection of methods for solving stiff and nonstiff systems, SIAM J. Sci.
        Stat. Comput. 4 (1983), p. 136-148.
    """

    stepper: ClassVar[type[integrate.OdeSolver]] = integrate.LSODA
    min_step: Tolerance = 0.0

    def settings(self, path: Stretch) -> dict[str, Any]:
        """See :meth:`IVPSolver.settings`."""
        return {"min_step": self.min_step, **super().settings(path)}

    def solve(
        self, system: System, z0: Tensor, times: Tensor, stop: Stop | None = None
    ) -> Trajectory:
        """See :meth:`ODESolver.solve`."""
        if stop is not None:
            raise InputError(
                "SciPy's LSODA integrates one sample at a time and cannot go to a steady "
                "state: use scipy-bdf or scipy-rk45"
            )
        return super().solve(system, z0, times)
