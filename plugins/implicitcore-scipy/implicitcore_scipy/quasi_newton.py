"""Newton-Krylov and the quasi-Newton methods with a line search."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar, Literal, final

from implicitcore.extend import Count
from implicitcore_scipy.root import SciPyRoot, Search


@dataclass(frozen=True, kw_only=True)
class LineSearched(SciPyRoot):
    """A direction and a step along it.

    Attributes:
        line_search: how the step is chosen; None takes it whole.
    """

    line_search: Literal["armijo", "wolfe"] | None = "armijo"

    def arguments(self, search: Search) -> dict[str, Any]:
        """See :meth:`SciPyRoot.arguments`."""
        options = {
            "fatol": 0.0,
            "maxiter": search.most,
            "line_search": self.line_search,
            "jac_options": self.approximation(search),
        }
        return {"options": options}

    def approximation(self, search: Search) -> dict[str, Any]:
        """How the Jacobian is approximated."""
        del search
        return {}


@final
@dataclass(frozen=True, kw_only=True)
class Krylov(LineSearched):
    """``method="krylov"``.

    Newton's method with a Krylov solver of the linear systems, products by finite differences; for
    large n. ``implicitcore.Newton`` takes exact products, for the whole batch at once.

    Attributes:
        inner: the Krylov method.
        inner_steps: its most iterations in one Newton step.

    Reference:
        Knoll, Keyes, Jacobian-free Newton-Krylov methods, J. Comput. Phys. 193 (2004), p. 357-397.
    """

    method: ClassVar[str] = "krylov"
    inner: Literal["lgmres", "gmres", "bicgstab", "cgs", "minres", "tfqmr"] = "lgmres"
    inner_steps: Count = 20

    def approximation(self, search: Search) -> dict[str, Any]:
        """See :meth:`LineSearched.approximation`."""
        return {"method": self.inner, "inner_maxiter": self.inner_steps, "rdiff": search.eps**0.5}


@dataclass(frozen=True, kw_only=True)
class Broyden(LineSearched):
    """A rank-one update of the Jacobian with each step.

    Attributes:
        max_rank: updates that are kept; None keeps all.
    """

    max_rank: Count | None = None

    def approximation(self, search: Search) -> dict[str, Any]:
        """See :meth:`LineSearched.approximation`."""
        del search
        return {} if self.max_rank is None else {"max_rank": self.max_rank}


@final
@dataclass(frozen=True, kw_only=True)
class Broyden1(Broyden):
    """``method="broyden1"``: Broyden's good method, which updates the Jacobian.

    Reference:
        Broyden, A class of methods for solving nonlinear simultaneous equations, Math. Comp. 19
        (1965), p. 577-593.
    """

    method: ClassVar[str] = "broyden1"


@final
@dataclass(frozen=True, kw_only=True)
class Broyden2(Broyden):
    """``method="broyden2"``: Broyden's bad method, which updates the inverse.

    Reference:
        Broyden, A class of methods for solving nonlinear simultaneous equations, Math. Comp. 19
        (1965), p. 577-593.
    """

    method: ClassVar[str] = "broyden2"


@final
@dataclass(frozen=True, kw_only=True)
class Anderson(LineSearched):
    """``method="anderson"``: Anderson mixing, least squares over the last residuals.

    Attributes:
        depth: residuals that are kept.

    Reference:
        Eyert, A comparative study on methods for convergence acceleration of iterative vector
        sequences, J. Comput. Phys. 124 (1996).
    """

    method: ClassVar[str] = "anderson"
    depth: Count = 5

    def approximation(self, search: Search) -> dict[str, Any]:
        """See :meth:`LineSearched.approximation`."""
        del search
        return {"M": self.depth}
