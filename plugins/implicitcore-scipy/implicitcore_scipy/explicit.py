"""SciPy's explicit Runge-Kutta methods."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, final

from scipy import integrate

from implicitcore_scipy.ivp import IVPSolver


@final
@dataclass(frozen=True, kw_only=True)
class RK45(IVPSolver):
    """``scipy.integrate.RK45``: Dormand and Prince's pair, order 5(4), for each sample by itself.

    Reference:
        Dormand, Prince, A family of embedded Runge-Kutta formulae, J. Comput. Appl. Math. 6 (1980),
        p. 19-26.
    """

    stepper: ClassVar[type[integrate.OdeSolver]] = integrate.RK45


@final
@dataclass(frozen=True, kw_only=True)
class RK23(IVPSolver):
    """``scipy.integrate.RK23``.

    Bogacki and Shampine's pair, order 3(2), for each sample by itself. For loose tolerances.

    Reference:
        Bogacki, Shampine, A 3(2) pair of Runge-Kutta formulas, Appl. Math. Lett. 2 (1989), p.
        321-325.
    """

    stepper: ClassVar[type[integrate.OdeSolver]] = integrate.RK23


@final
@dataclass(frozen=True, kw_only=True)
class DOP853(IVPSolver):
    """``scipy.integrate.DOP853``: Dormand and Prince, order 8, for each sample by itself.

    For tight tolerances.

    Reference:
        Hairer, Norsett, Wanner, Solving Ordinary Differential Equations I (1993), section II.10.
    """

    stepper: ClassVar[type[integrate.OdeSolver]] = integrate.DOP853
