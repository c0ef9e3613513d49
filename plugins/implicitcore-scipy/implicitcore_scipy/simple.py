"""Methods that keep no matrix: a factor, or one for each entry."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar, final

from implicitcore.extend import Positive
from implicitcore_scipy.quasi_newton import LineSearched
from implicitcore_scipy.root import SciPyRoot, Search


@final
@dataclass(frozen=True, kw_only=True)
class DFSane(SciPyRoot):
    """``method="df-sane"``: steps along the residual with a spectral length, derivative-free.

    For large n where memory is dear.

    Reference:
        La Cruz, Martinez, Raydan, Spectral residual method without gradient information, Math.
        Comp. 75 (2006), p. 1429-1448.
    """

    method: ClassVar[str] = "df-sane"

    def arguments(self, search: Search) -> dict[str, Any]:
        """See :meth:`SciPyRoot.arguments`."""
        return {"options": {"fatol": 0.0, "ftol": 0.0, "maxfev": search.most + 1}}


@dataclass(frozen=True, kw_only=True)
class Mixing(LineSearched):
    """A step of alpha g.

    Attributes:
        alpha: the factor at the start: dg/dz is taken to be -1/alpha; None estimates it from z0.
    """

    alpha: Positive | None = None

    def approximation(self, search: Search) -> dict[str, Any]:
        """See :meth:`LineSearched.approximation`."""
        del search
        return {} if self.alpha is None else {"alpha": self.alpha}


@final
@dataclass(frozen=True, kw_only=True)
class LinearMixing(Mixing):
    """``method="linearmixing"``: z + alpha g, a damped Picard iteration.

    For comparisons; ``implicitcore.Picard`` is the same. An estimated factor is at most 1, for it
    stays: SciPy's own grows as the first residual shrinks, beyond every step that converges.

    Reference:
        Kelley, Iterative Methods for Linear and Nonlinear Equations (1995), section 4.2.
    """

    method: ClassVar[str] = "linearmixing"

    def approximation(self, search: Search) -> dict[str, Any]:
        """See :meth:`LineSearched.approximation`."""
        return super().approximation(search) or {"alpha": min(1.0, search.slope())}


@final
@dataclass(frozen=True, kw_only=True)
class DiagBroyden(Mixing):
    """``method="diagbroyden"``: Broyden's method with the diagonal of the Jacobian alone.

    Reference:
        Kelley, Iterative Methods for Linear and Nonlinear Equations (1995), chapter 7.
    """

    method: ClassVar[str] = "diagbroyden"


@final
@dataclass(frozen=True, kw_only=True)
class ExcitingMixing(Mixing):
    """``method="excitingmixing"``.

    A factor for each entry, which grows while the sign of its residual stays.

    Attributes:
        alpha_max: the largest factor.

    Reference:
        Eyert, A comparative study on methods for convergence acceleration of iterative vector
        sequences, J. Comput. Phys. 124 (1996).
    """

    method: ClassVar[str] = "excitingmixing"
    alpha_max: Positive = 1.0

    def approximation(self, search: Search) -> dict[str, Any]:
        """See :meth:`LineSearched.approximation`."""
        return {**super().approximation(search), "alphamax": self.alpha_max}
