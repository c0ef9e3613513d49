"""The one-step methods of torchdiffeq with equal steps."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar, final

from torch import Tensor

from implicitcore.extend import Positive
from implicitcore_torchdiffeq.base import TorchdiffeqSolver, equal_parts


@dataclass(frozen=True, kw_only=True)
class FixedSolver(TorchdiffeqSolver):
    """Equal steps: each span between output times in equal parts no longer than dt.

    So no output is interpolated.

    Attributes:
        dt: the longest step, in the units of the times.
    """

    dt: Positive = 0.1

    def settings(self, grid: Tensor | None) -> dict[str, Any]:
        """See :meth:`TorchdiffeqSolver.settings`."""
        if grid is None:
            return {"step_size": self.dt}
        return {"grid_constructor": lambda func, y0, t: equal_parts(t, self.dt)}


@final
@dataclass(frozen=True, kw_only=True)
class Euler(FixedSolver):
    """torchdiffeq's ``euler``, order 1: z + dt g(t, z), one evaluation a step.

    Reference:
        Hairer, Norsett, Wanner, Solving Ordinary Differential Equations I (1993), section I.7.
    """

    method: ClassVar[str] = "euler"


@final
@dataclass(frozen=True, kw_only=True)
class Midpoint(FixedSolver):
    """torchdiffeq's ``midpoint``, order 2.

    z + dt g(t + dt/2, z + dt/2 g(t, z)), two evaluations a step.

    Reference:
        Hairer, Norsett, Wanner, Solving Ordinary Differential Equations I (1993), section II.1,
        (1.4).
    """

    method: ClassVar[str] = "midpoint"


@final
@dataclass(frozen=True, kw_only=True)
class Heun2(FixedSolver):
    """torchdiffeq's ``heun2``, order 2.

    The trapezoidal rule with a predictor, two evaluations a step.

    Reference:
        Heun (1900); Hairer, Norsett, Wanner, Solving Ordinary Differential Equations I (1993),
        section II.1.
    """

    method: ClassVar[str] = "heun2"


@final
@dataclass(frozen=True, kw_only=True)
class Heun3(FixedSolver):
    """torchdiffeq's ``heun3``, order 3: three evaluations a step.

    Reference:
        Heun (1900); Hairer, Norsett, Wanner, Solving Ordinary Differential Equations I (1993),
        section II.1.
    """

    method: ClassVar[str] = "heun3"


@final
@dataclass(frozen=True, kw_only=True)
class RK4(FixedSolver):
    """torchdiffeq's ``rk4``, order 4: Kutta's 3/8 rule, four evaluations a step.

    ``implicitcore.RK4`` is his other, classical one.

    Reference:
        Kutta (1901); Hairer, Norsett, Wanner, Solving Ordinary Differential Equations I (1993),
        section II.1, table 1.2.
    """

    method: ClassVar[str] = "rk4"
