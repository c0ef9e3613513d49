"""The methods of MINPACK."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar, final

from implicitcore_scipy.root import SciPyRoot, Search


@dataclass(frozen=True, kw_only=True)
class Minpack(SciPyRoot):
    """A method that holds the Jacobian of a sample as a matrix.

    Attributes:
        jacobian: it is that of autograd, n products of which ``max_steps`` counts none; else
            MINPACK takes finite differences, n evaluations.
    """

    jacobian: bool = True

    def arguments(self, search: Search) -> dict[str, Any]:
        """See :meth:`SciPyRoot.arguments`."""
        options = {"xtol": 0.0, **self._budget(search.most)}
        if self.jacobian:
            return {"jac": search.jacobian, "options": options}
        return {"options": {**options, "eps": search.eps}}

    def _budget(self, most: int) -> dict[str, Any]:
        raise NotImplementedError


@final
@dataclass(frozen=True, kw_only=True)
class Hybr(Minpack):
    """``method="hybr"``: Powell's hybrid of Newton's and the gradient's direction.

    The Jacobian is updated by Broyden's formula.

    The classic for small dense systems. ``implicitcore.Newton`` solves the whole batch at once.

    Reference:
        More, Garbow, Hillstrom, User Guide for MINPACK-1, ANL-80-74 (1980): HYBRJ, HYBRD.
    """

    method: ClassVar[str] = "hybr"

    def _budget(self, most: int) -> dict[str, Any]:
        return {"maxfev": most + 1}


@final
@dataclass(frozen=True, kw_only=True)
class LM(Minpack):
    """``method="lm"``: Levenberg and Marquardt's damped least squares of ``|g|``.

    Where the Jacobian is singular or z0 is far away.

    Reference:
        More, The Levenberg-Marquardt algorithm: implementation and theory (1978); MINPACK's LMDER,
        LMDIF.
    """

    method: ClassVar[str] = "lm"

    def _budget(self, most: int) -> dict[str, Any]:
        return {"maxiter": most + 1, "ftol": 0.0, "gtol": 0.0}
