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
    """An explicit Runge-Kutta method: its tableau. The state is the first stage, k_1 = g(t, z).

    k_i = g(t + c_i dt, z + dt sum_j a_ij k_j), then z + dt sum_i b_i k_i. Where the last stage is the first of the next step
    (FSAL) it is not evaluated twice.
    """

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
        dt: the longest step, in the units of the times.
    """

    dt: Positive = 0.1

    @property
    def step_size(self) -> StepSize:
        """Fixed."""
        return Fixed(self.dt)


@dataclass(frozen=True, kw_only=True)
class AdaptiveRungeKutta(RungeKutta):
    """Steps chosen per sample: the local error of each stays below atol + rtol ``|z|``, entry by entry in the root mean square.

    Attributes:
        rtol: relative tolerance of a step.
        atol: absolute tolerance of a step, in the units of z.
        first_step: the first step, in the units of the times; None estimates it, at one evaluation.
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
    """Euler's method, order 1: z + dt g(t, z), one evaluation a step. With dt = 1 on f(z) - z it is the Picard iteration.

    The cheapest step where accuracy on the way does not matter; else a method of higher order reaches the same error sooner.

    Reference:
        Hairer, Norsett, Wanner, Solving Ordinary Differential Equations I (1993), section I.7.
    """

    tableau: ClassVar[Tableau] = tableaus.EULER


@final
@dataclass(frozen=True, kw_only=True)
class Midpoint(FixedRungeKutta):
    """The explicit midpoint rule, order 2: z + dt g(t + dt/2, z + dt/2 g(t, z)), two evaluations a step.

    Reference:
        Runge (1895); Hairer, Norsett, Wanner, Solving Ordinary Differential Equations I (1993), section II.1, (1.4).
    """

    tableau: ClassVar[Tableau] = tableaus.MIDPOINT


@final
@dataclass(frozen=True, kw_only=True)
class Heun(FixedRungeKutta):
    """Heun's method, order 2: z + dt/2 (k_1 + k_2), k_2 = g(t + dt, z + dt k_1), the trapezoidal rule; two evaluations a step.

    Reference:
        Heun (1900); Hairer, Norsett, Wanner, Solving Ordinary Differential Equations I (1993), section II.1.
    """

    tableau: ClassVar[Tableau] = tableaus.HEUN


@final
@dataclass(frozen=True, kw_only=True)
class RK4(FixedRungeKutta):
    """The classical method of Kutta, order 4: four evaluations a step.

    For smooth dynamics whose time scale is known: equal steps cost no control and make every run alike.

    Reference:
        Kutta (1901); Hairer, Norsett, Wanner, Solving Ordinary Differential Equations I (1993), section II.1, table 1.2.
    """

    tableau: ClassVar[Tableau] = tableaus.RK4


@final
@dataclass(frozen=True, kw_only=True)
class Bosh3(AdaptiveRungeKutta):
    """Bogacki and Shampine's pair, order 3(2): three evaluations a step. For loose tolerances and steady states.

    Reference:
        Bogacki, Shampine, A 3(2) pair of Runge-Kutta formulas, Appl. Math. Lett. 2 (1989), p. 321-325.
    """

    tableau: ClassVar[Tableau] = tableaus.BOSH3


@final
@dataclass(frozen=True, kw_only=True)
class Dopri5(AdaptiveRungeKutta):
    """Dormand and Prince's pair, order 5(4): six evaluations a step. The method of most other libraries, to compare with.

    Reference:
        Dormand, Prince, A family of embedded Runge-Kutta formulae, J. Comput. Appl. Math. 6 (1980), p. 19-26.
    """

    tableau: ClassVar[Tableau] = tableaus.DOPRI5


@final
@dataclass(frozen=True, kw_only=True)
class Tsit5(AdaptiveRungeKutta):
    """Tsitouras' pair, order 5(4): six evaluations a step. The first choice for dynamics that are not stiff.

    Reference:
        Tsitouras, Runge-Kutta pairs of order 5(4) satisfying only the first column simplifying assumption,
        Comput. Math. Appl. 62 (2011), p. 770-775.
    """

    tableau: ClassVar[Tableau] = tableaus.TSIT5
