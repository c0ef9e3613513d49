"""Explicit Runge-Kutta methods."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, final

from torch import Tensor

from implicitcore.ode_solvers import tableaus
from implicitcore.ode_solvers.base import Step, StepwiseODESolver
from implicitcore.ode_solvers.step_size import Adaptive, Fixed, StepSize
from implicitcore.ode_solvers.tableaus import Tableau
from implicitcore.system import System
from implicitcore.tolerances import Positive


@dataclass(frozen=True, kw_only=True)
class RungeKutta(StepwiseODESolver[Tensor]):
    """k_i = g(t + c_i dt, z + dt sum_j a_ij k_j), then z + dt sum_i b_i k_i; the state is k_1."""

    tableau: ClassVar[Tableau]

    def step(self, system: System, t: Tensor, dt: Tensor, z: Tensor, state: Tensor) -> Step:
        """See :meth:`StepwiseODESolver.step`."""
        tableau, combine = self.tableau, system.backend.combine
        stages, point = [state], z
        for row, node in zip(tableau.a, tableau.c, strict=True):
            point = combine(z, dt, stages, row)
            stages.append(system.velocity(t + node * dt, point))
        z_next = point if tableau.fsal else combine(z, dt, stages, tableau.b)
        error = combine(None, dt, stages, tableau.error) if tableau.error else None
        return Step(z_next, error, stages[-1] if tableau.fsal else None, stages, tableau.b)


@dataclass(frozen=True, kw_only=True)
class FixedRungeKutta(RungeKutta):
    """Equal steps: each span between output times in equal parts no longer than dt.

    Attributes:
        dt: the step.
    """

    dt: Positive = 0.1

    @property
    def step_size(self) -> StepSize:
        """Fixed."""
        return Fixed(self.dt)


@dataclass(frozen=True, kw_only=True)
class AdaptiveRungeKutta(RungeKutta):
    """Steps chosen per sample: the local error stays below atol + rtol ``|z|``, in the root mean square.

    Attributes:
        rtol: relative tolerance of a step.
        atol: absolute tolerance of a step.
        first_step: the first step; None estimates it, at one evaluation.
    """

    rtol: Positive = 1e-3
    atol: Positive = 1e-6
    first_step: Positive | None = None

    @property
    def step_size(self) -> StepSize:
        """Adaptive."""
        return Adaptive(self.rtol, self.atol, self.tableau.order, self.first_step)


@final
@dataclass(frozen=True, kw_only=True)
class Euler(FixedRungeKutta):
    """Euler's method, order 1: one evaluation a step. With dt = 1 on f(z) - z it is the Picard iteration."""

    tableau: ClassVar[Tableau] = tableaus.EULER


@final
@dataclass(frozen=True, kw_only=True)
class Midpoint(FixedRungeKutta):
    """The explicit midpoint rule, order 2: two evaluations a step."""

    tableau: ClassVar[Tableau] = tableaus.MIDPOINT


@final
@dataclass(frozen=True, kw_only=True)
class Heun(FixedRungeKutta):
    """Heun's method, order 2: two evaluations a step."""

    tableau: ClassVar[Tableau] = tableaus.HEUN


@final
@dataclass(frozen=True, kw_only=True)
class RK4(FixedRungeKutta):
    """The classical method of Kutta, order 4: four evaluations a step."""

    tableau: ClassVar[Tableau] = tableaus.RK4


@final
@dataclass(frozen=True, kw_only=True)
class Bosh3(AdaptiveRungeKutta):
    """Bogacki and Shampine's pair, order 3(2): three evaluations a step. For loose tolerances."""

    tableau: ClassVar[Tableau] = tableaus.BOSH3


@final
@dataclass(frozen=True, kw_only=True)
class Dopri5(AdaptiveRungeKutta):
    """Dormand and Prince's pair, order 5(4): six evaluations a step."""

    tableau: ClassVar[Tableau] = tableaus.DOPRI5


@final
@dataclass(frozen=True, kw_only=True)
class Tsit5(AdaptiveRungeKutta):
    """Tsitouras' pair, order 5(4): six evaluations a step. The first choice for dynamics that are not stiff."""

    tableau: ClassVar[Tableau] = tableaus.TSIT5
