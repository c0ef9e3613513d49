"""Explicit Runge-Kutta methods."""

from __future__ import annotations

import functools
from dataclasses import dataclass
from typing import ClassVar, final

import torch
from torch import Tensor

from implicitcore.ode_solvers import tableaus
from implicitcore.ode_solvers.base import Step
from implicitcore.ode_solvers.dop853_tableau import DOP853 as DOP853_TABLEAU
from implicitcore.ode_solvers.dop853_tableau import DOP853_ERROR_3
from implicitcore.ode_solvers.error_scale import measured
from implicitcore.ode_solvers.explicit_stages import (
    EqualStep,
    equal_step,
    extension_of,
    stages_of,
    sums_of,
)
from implicitcore.ode_solvers.moments import moments_of
from implicitcore.ode_solvers.step_size import Adaptive, StepSize
from implicitcore.ode_solvers.stepwise import EqualSteps, StepwiseODESolver
from implicitcore.ode_solvers.tableaus import Tableau
from implicitcore.options.shared import ErrorControl
from implicitcore.system.resolved import ResolvedField
from implicitcore.system.system import System
from implicitcore.tensors.norms import column
from implicitcore.tensors.products import MATMUL
from implicitcore.tensors.transforms import in_graph


@dataclass(frozen=True, kw_only=True)
class RungeKutta(StepwiseODESolver[Tensor]):
    """An explicit Runge-Kutta method: its tableau. The state is the first stage, k_1 = g(t, z).

    k_i = g(t + c_i dt, z + dt sum_j a_ij k_j), then z + dt sum_i b_i k_i. Where the last stage is
    the first of the next step (FSAL) it is not evaluated twice.
    """

    lockstep: ClassVar[bool] = True
    recordable: ClassVar[bool] = True
    tableau: ClassVar[Tableau]

    def step(self, system: System, t: Tensor, dt: Tensor, z: Tensor, state: Tensor) -> Step:
        """See :meth:`Stepper.step`."""
        tableau, field = self.tableau, ResolvedField.of(system)
        sums = sums_of(system.backend, tableau.rows, z, dt)
        moments = moments_of(t, dt, tableau.c, field.times)
        stages, z_next = stages_of(tableau, field.velocity, sums, moments, (z, state))
        error = None
        if tableau.error:
            with torch.no_grad():  # the size of a step has no gradient
                error = sums(stages, len(tableau.rows) - 1, move=True)
        return Step(z_next, error, stages[-1] if tableau.fsal else None, stages, tableau.b)

    def equal_step(self, system: System) -> EqualStep | None:
        """See :meth:`Stepper.equal_step`."""
        own = type(self).step is RungeKutta.step and type(self).init is StepwiseODESolver.init
        return equal_step(self.tableau, system) if own else None

    def piece(
        self, system: System, t: Tensor, dt: Tensor, z: Tensor, state: Tensor, step: Step
    ) -> list[Tensor]:
        """See :meth:`Stepper.piece`.

        The method's own continuous extension, where the tableau has one.
        """
        tableau, stages, total = self.tableau, [*step.stages], system.backend.stage_combination
        if not tableau.fsal:
            stages.append(self.velocity(step.state))
        for row, node in zip(tableau.more_a, tableau.more_c, strict=True):
            point = total(z, dt, stages, row)
            stages.append(system.velocity(torch.add(t, dt, alpha=node), point))
        if in_graph():  # a compiler fuses the sums, and keeps no table
            return [z, step.z - z, *(total(None, dt, stages, row) for row in extension_of(tableau))]
        weights, rows = _extension(type(self), z.dtype, z.device), torch.stack(stages).flatten(1)
        higher = MATMUL[z.is_cpu](weights, rows).view(len(weights), *z.shape)
        return [z, step.z - z, *(higher * column(dt).to(z.dtype)).unbind(0)]


@functools.cache
def _extension(solver: type[RungeKutta], dtype: torch.dtype, device: torch.device) -> Tensor:
    """:func:`extension_of` as a table, ``[degree - 1, stages]``."""
    with torch.inference_mode(False):
        rows = torch.tensor(extension_of(solver.tableau), dtype=torch.float64, device="cpu")
        return rows.to(device, dtype)


@dataclass(frozen=True, kw_only=True)
class FixedRungeKutta(EqualSteps[Tensor], RungeKutta):
    """An explicit Runge-Kutta method with equal steps."""


@dataclass(frozen=True, kw_only=True)
class AdaptiveRungeKutta(ErrorControl, RungeKutta):
    """Steps chosen per sample.

    The local error of each stays below atol + rtol ``|z|``, entry by entry in the root mean square.
    On stiff dynamics stability and not accuracy limits the step of an explicit method: those
    samples end with the status max_steps.
    """

    @property
    def error_order(self) -> int:
        """The power of dt that the estimated error of a step goes with."""
        return min(self.tableau.order, self.tableau.embedded) + 1

    @property
    def step_size(self) -> StepSize:
        """Adaptive."""
        return Adaptive.of(self, self.error_order)


@final
@dataclass(frozen=True, kw_only=True)
class Euler(FixedRungeKutta):
    """Euler's method, order 1: z + dt g(t, z), one evaluation a step.

    With dt = 1 on f(z) - z it is the Picard iteration. The cheapest step where accuracy on the way
    does not matter; else a method of higher order reaches the same error sooner.

    Reference:
        Hairer, Norsett, Wanner, Solving Ordinary Differential Equations I (1993), section I.7.
    """

    tableau: ClassVar[Tableau] = tableaus.EULER


@final
@dataclass(frozen=True, kw_only=True)
class Midpoint(FixedRungeKutta):
    """The explicit midpoint rule, order 2.

    z + dt g(t + dt/2, z + dt/2 g(t, z)), two evaluations a step.

    Reference:
        Runge (1895); Hairer, Norsett, Wanner, Solving Ordinary Differential Equations I (1993),
        section II.1, (1.4).
    """

    tableau: ClassVar[Tableau] = tableaus.MIDPOINT


@final
@dataclass(frozen=True, kw_only=True)
class Heun(FixedRungeKutta):
    """Heun's method, order 2.

    z + dt/2 (k_1 + k_2), k_2 = g(t + dt, z + dt k_1), the trapezoidal rule; two evaluations a step.

    Reference:
        Heun (1900); Hairer, Norsett, Wanner, Solving Ordinary Differential Equations I (1993),
        section II.1.
    """

    tableau: ClassVar[Tableau] = tableaus.HEUN


@final
@dataclass(frozen=True, kw_only=True)
class Heun3(FixedRungeKutta):
    """Heun's third-order method: z + dt/4 (k_1 + 3 k_3), three evaluations a step.

    Reference:
        Heun (1900); Hairer, Norsett, Wanner, Solving Ordinary Differential Equations I (1993),
        section II.1, table 1.1.
    """

    tableau: ClassVar[Tableau] = tableaus.HEUN3


@final
@dataclass(frozen=True, kw_only=True)
class RK4(FixedRungeKutta):
    """The classical method of Kutta, order 4: four evaluations a step.

    For smooth dynamics whose time scale is known: equal steps cost no control and make every run
    alike.

    Reference:
        Kutta (1901); Hairer, Norsett, Wanner, Solving Ordinary Differential Equations I (1993),
        section II.1, table 1.2.
    """

    tableau: ClassVar[Tableau] = tableaus.RK4


@final
@dataclass(frozen=True, kw_only=True)
class RK38(FixedRungeKutta):
    """The 3/8 rule of Kutta, order 4: four evaluations a step.

    Its error is often a little smaller than that of ``RK4``.

    Reference:
        Kutta (1901); Hairer, Norsett, Wanner, Solving Ordinary Differential Equations I (1993),
        section II.1, table 1.2.
    """

    tableau: ClassVar[Tableau] = tableaus.RK38


@final
@dataclass(frozen=True, kw_only=True)
class Bosh3(AdaptiveRungeKutta):
    """Bogacki and Shampine's pair, order 3(2): three evaluations a step.

    For loose tolerances and steady states.

    Reference:
        Bogacki, Shampine, A 3(2) pair of Runge-Kutta formulas, Appl. Math. Lett. 2 (1989), p.
        321-325.
    """

    tableau: ClassVar[Tableau] = tableaus.BOSH3


@final
@dataclass(frozen=True, kw_only=True)
class Fehlberg45(AdaptiveRungeKutta):
    """Fehlberg's pair, order 4(5): six evaluations a step, and the solution of order 4 goes on.

    To compare with; Tsit5 does better.

    Reference:
        Fehlberg, Low-order classical Runge-Kutta formulas with stepsize control, NASA TR R-315
        (1969), table III.
    """

    tableau: ClassVar[Tableau] = tableaus.FEHLBERG45


@final
@dataclass(frozen=True, kw_only=True)
class Dopri5(AdaptiveRungeKutta):
    """Dormand and Prince's pair, order 5(4): six evaluations a step.

    The method of most other libraries, to compare with.

    Reference:
        Dormand, Prince, A family of embedded Runge-Kutta formulae, J. Comput. Appl. Math. 6 (1980),
        p. 19-26.
    """

    tableau: ClassVar[Tableau] = tableaus.DOPRI5


@final
@dataclass(frozen=True, kw_only=True)
class Tsit5(AdaptiveRungeKutta):
    """Tsitouras' pair, order 5(4): six evaluations a step.

    The first choice for dynamics that are not stiff.

    Reference:
        Tsitouras, Runge-Kutta pairs of order 5(4) satisfying only the first column simplifying
        assumption, Comput. Math. Appl. 62 (2011), p. 770-775.
    """

    tableau: ClassVar[Tableau] = tableaus.TSIT5


@final
@dataclass(frozen=True, kw_only=True)
class DOP853(AdaptiveRungeKutta):
    """Dormand and Prince's pair of order 8 with the error estimate of Hairer.

    Twelve evaluations a step. The estimates of order 5 and 3, in the norm of the tolerance, make
    one: ``e_5 |e_5| / sqrt(|e_5|^2 + 0.01 |e_3|^2)``, which goes with dt^8. For tight tolerances
    (below some 1e-7) and smooth dynamics. Dense output is of order 7, at three more evaluations a
    step.

    Reference:
        Hairer, Norsett, Wanner, Solving Ordinary Differential Equations I (1993), section II.5,
        (10.17) and (10.18), and II.6.
    """

    tableau: ClassVar[Tableau] = DOP853_TABLEAU

    @property
    def error_order(self) -> int:
        """Eight: that of both estimates together."""
        return 8

    def step(self, system: System, t: Tensor, dt: Tensor, z: Tensor, state: Tensor) -> Step:
        """See :meth:`Stepper.step`."""
        step = super().step(system, t, dt, z, state)
        if step.error is None:
            return step
        with torch.no_grad():
            backend, stages = system.backend, step.stages
            third_error = backend.stage_combination(None, dt, stages, DOP853_ERROR_3)
            kept = backend, z, step.z, self.rtol, self.atol, self.norm
            fifth, third = (measured(error, *kept) for error in (step.error, third_error))
            both = torch.hypot(fifth, 0.1 * third).clamp(min=torch.finfo(fifth.dtype).tiny)
            return step._replace(error=step.error * column(fifth / both).to(z.dtype))
