"""Diagonally implicit Runge-Kutta methods of order 2, with equal steps."""

from __future__ import annotations

from dataclasses import dataclass
from math import sqrt
from typing import ClassVar, final

from implicitcore.ode_solvers.implicit_runge_kutta import FixedImplicitRungeKutta
from implicitcore.ode_solvers.implicit_tableaus import ImplicitTableau

_GAMMA = 1 - sqrt(2) / 2
_EDGE = sqrt(2) / 4


@final
@dataclass(frozen=True, kw_only=True)
class SDIRK2(FixedImplicitRungeKutta):
    """Alexander's method of two implicit stages, order 2 and L-stable.

    ``rtol`` and ``atol`` bound what the stage equations leave.

    Reference:
        Alexander, Diagonally implicit Runge-Kutta methods for stiff O.D.E.'s, SIAM J. Numer. Anal.
        14 (1977), p. 1006-1021.
    """

    tableau: ClassVar[ImplicitTableau] = ImplicitTableau(
        a=((_GAMMA,), (1 - _GAMMA, _GAMMA)), c=(_GAMMA, 1.0), order=2
    )


@final
@dataclass(frozen=True, kw_only=True)
class TRBDF2(FixedImplicitRungeKutta):
    """The trapezoidal rule, then the second backward differentiation formula; L-stable, order 2.

    The first stage is explicit, and the two others have one matrix. ``rtol`` and ``atol`` bound
    what the stage equations leave.

    Reference:
        Bank et al., Transient simulation of silicon devices and circuits, IEEE Trans. Electron
        Devices 32 (1985), p. 1992-2007; Hosea, Shampine, Analysis and implementation of TR-BDF2,
        Appl. Numer. Math. 20 (1996), p. 21-37.
    """

    tableau: ClassVar[ImplicitTableau] = ImplicitTableau(
        a=((0.0,), (_GAMMA, _GAMMA), (_EDGE, _EDGE, _GAMMA)), c=(0.0, 2 * _GAMMA, 1.0), order=2
    )
