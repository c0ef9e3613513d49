"""The methods of torchdiffeq that choose their steps."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, final

from torch import Tensor

from implicitcore.extend import ErrorTolerance, Positive
from implicitcore_torchdiffeq.base import TorchdiffeqSolver


@dataclass(frozen=True, kw_only=True)
class AdaptiveSolver(ErrorTolerance, TorchdiffeqSolver):
    """Steps chosen for the batch.

    The local error of its worst sample stays below atol + rtol ``|z|``, in the root mean square.
    The default tolerances are torchdiffeq's. A step ends at each output time: torchdiffeq would
    interpolate there by a polynomial of order 4, whatever the method's.

    Attributes:
        first_step: the first step, in the units of the times; None estimates it, at one evaluation.
    """

    rtol: Positive = 1e-7
    atol: Positive = 1e-9
    first_step: Positive | None = None

    def settings(self, grid: Tensor | None) -> dict[str, Any]:
        """See :meth:`TorchdiffeqSolver.settings`."""
        first = {} if self.first_step is None else {"first_step": self.first_step}
        return first if grid is None else {**first, "step_t": grid[1:]}

    def tolerances(self) -> Mapping[str, float]:
        """See :meth:`TorchdiffeqSolver.tolerances`."""
        return {"rtol": self.rtol, "atol": self.atol}


@final
@dataclass(frozen=True, kw_only=True)
class Dopri8(AdaptiveSolver):
    """torchdiffeq's ``dopri8``: Dormand and Prince, order 8.

    For smooth dynamics and tight tolerances.

    Reference:
        Prince, Dormand, High order embedded Runge-Kutta formulae, J. Comput. Appl. Math. 7 (1981),
        p. 67-75.
    """

    method: ClassVar[str] = "dopri8"


@final
@dataclass(frozen=True, kw_only=True)
class Dopri5(AdaptiveSolver):
    """torchdiffeq's ``dopri5``, its default: Dormand and Prince, order 5.

    ``implicitcore.Dopri5`` has step sizes per sample.

    Reference:
        Dormand, Prince, A family of embedded Runge-Kutta formulae, J. Comput. Appl. Math. 6 (1980),
        p. 19-26.
    """

    method: ClassVar[str] = "dopri5"


@final
@dataclass(frozen=True, kw_only=True)
class Bosh3(AdaptiveSolver):
    """torchdiffeq's ``bosh3``: Bogacki and Shampine, order 3.

    ``implicitcore.Bosh3`` has step sizes per sample.

    Reference:
        Bogacki, Shampine, A 3(2) pair of Runge-Kutta formulas, Appl. Math. Lett. 2 (1989), p.
        321-325.
    """

    method: ClassVar[str] = "bosh3"


@final
@dataclass(frozen=True, kw_only=True)
class Fehlberg2(AdaptiveSolver):
    """torchdiffeq's ``fehlberg2``: Runge-Kutta-Fehlberg, order 2. For loose tolerances.

    Reference:
        Fehlberg, Low-order classical Runge-Kutta formulas with stepsize control, NASA TR R-315
        (1969).
    """

    method: ClassVar[str] = "fehlberg2"


@final
@dataclass(frozen=True, kw_only=True)
class AdaptiveHeun(AdaptiveSolver):
    """torchdiffeq's ``adaptive_heun``: Heun's method, order 2, with Euler's to judge it.

    For loose tolerances.

    Reference:
        Hairer, Norsett, Wanner, Solving Ordinary Differential Equations I (1993), section II.4.
    """

    method: ClassVar[str] = "adaptive_heun"
