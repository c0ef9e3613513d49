"""Explicit Runge-Kutta pairs of low order."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, final

from implicitcore.ode_solvers import tableaus
from implicitcore.ode_solvers.runge_kutta import AdaptiveRungeKutta
from implicitcore.ode_solvers.step_size import Adaptive, StepSize
from implicitcore.ode_solvers.tableaus import Tableau


@final
@dataclass(frozen=True, kw_only=True)
class AdaptiveHeun(AdaptiveRungeKutta):
    """Heun's method with the error of Euler's, order 2(1): two evaluations a step.

    For very loose tolerances, and dynamics with many kinks; else ``Bosh3``.

    Reference:
        Hairer, Norsett, Wanner, Solving Ordinary Differential Equations I (1993), section II.4.
    """

    tableau: ClassVar[Tableau] = tableaus.ADAPTIVE_HEUN


@final
@dataclass(frozen=True, kw_only=True)
class Fehlberg21(AdaptiveRungeKutta):
    """Fehlberg's pair of order 1(2), of which the solution of order 2 goes on: 2(1).

    Three evaluations a step. Its estimate of the error, dt/512 (k_3 - k_1), is small: for the same
    error give tighter tolerances than to other pairs, or take ``Bosh3``.

    Reference:
        Fehlberg, Low-order classical Runge-Kutta formulas with stepsize control, NASA TR R-315
        (1969).
    """

    tableau: ClassVar[Tableau] = tableaus.FEHLBERG21

    @property
    def step_size(self) -> StepSize:
        """Adaptive; the estimate is 256 times smaller than that of ``AdaptiveHeun``."""
        return Adaptive.of(self, self.error_order, steady_bound=0.3 / 256)
