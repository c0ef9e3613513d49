"""The multistep methods of torchdiffeq."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar, final

import torch
from pydantic import Field as Bounds
from torch import Tensor

from implicitcore.extend import Count, Positive
from implicitcore_torchdiffeq.base import TorchdiffeqSolver, equal_parts
from implicitcore_torchdiffeq.field import Field

_LOOSE = "Functional iteration did not converge"


@dataclass(frozen=True, kw_only=True)
class AdamsSolver(TorchdiffeqSolver):
    """Equal steps over the whole time, which the method's history needs.

    Outputs between them are interpolated by cubics.

    Attributes:
        dt: the longest step, in the units of the times.
        max_order: the order is at most one less, and grows with the history. torchdiffeq's default
            is 12, with which the explicit methods are unstable at ordinary steps.
    """

    dt: Positive = 0.1
    max_order: Annotated[int, Bounds(ge=4, le=12)] = 6

    def settings(self, grid: Tensor | None) -> dict[str, Any]:
        """See :meth:`TorchdiffeqSolver.settings`."""
        own = {"interp": "cubic", "max_order": self.max_order}
        if grid is None:
            return {**own, "step_size": self.dt}
        return {**own, "grid_constructor": lambda func, y0, t: equal_parts(t[[0, -1]], self.dt)}

    def odeint(self, field: Field, z0: Tensor, times: Tensor, **arguments: Any) -> Any:
        """See :meth:`TorchdiffeqSolver.odeint`.

        A corrector that stops short is a status, and a sample that is lost is left out.
        """
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            found = super().odeint(field, z0, times, **arguments)
        for warning in caught:
            if _LOOSE in str(warning.message):
                field.loose = True
            else:
                warnings.warn_explicit(
                    warning.message, warning.category, warning.filename, warning.lineno
                )
        if not arguments:
            _refuse_lost(field, found, times)
        return found


def _refuse_lost(field: Field, z: Tensor, times: Tensor) -> None:
    """The corrector looks at the whole batch.

    A sample that is not finite has changed the others.
    """
    finite = z.detach().isfinite().all(2)
    lost = ~finite.all(0)
    if bool(lost.any()):
        field.errors = torch.where(lost, torch.nan, 0.0)
        field.t = times[finite.all(1).long().cumprod(0).sum().clamp(min=1) - 1]
        raise AssertionError("a sample is not finite")


@final
@dataclass(frozen=True, kw_only=True)
class ExplicitAdams(AdamsSolver):
    """torchdiffeq's ``explicit_adams``: Adams-Bashforth, started by ``rk4``.

    One evaluation a step. For smooth, dear vector fields.

    Reference:
        Hairer, Norsett, Wanner, Solving Ordinary Differential Equations I (1993), section III.1.
    """

    method: ClassVar[str] = "explicit_adams"


@dataclass(frozen=True, kw_only=True)
class _Corrected(AdamsSolver):
    """Adams-Bashforth-Moulton: a predictor, then a functional iteration that corrects it.

    Attributes:
        rtol: relative tolerance of the corrector, in the largest entry of the batch.
        atol: absolute tolerance of the corrector.
        max_iters: most corrections; where they do not do, every sample has the status
            ``max_steps``.
    """

    rtol: Positive = 1e-7
    atol: Positive = 1e-9
    max_iters: Count = 10

    def settings(self, grid: Tensor | None) -> dict[str, Any]:
        """See :meth:`TorchdiffeqSolver.settings`."""
        return {**super().settings(grid), "max_iters": self.max_iters}

    def tolerances(self) -> Mapping[str, float]:
        """See :meth:`TorchdiffeqSolver.tolerances`."""
        return {"rtol": self.rtol, "atol": self.atol}


@final
@dataclass(frozen=True, kw_only=True)
class ImplicitAdams(_Corrected):
    """torchdiffeq's ``implicit_adams``: Adams-Bashforth-Moulton, started by ``rk4``.

    More stable than ``explicit_adams``.

    Reference:
        Hairer, Norsett, Wanner, Solving Ordinary Differential Equations I (1993), section III.1.
    """

    method: ClassVar[str] = "implicit_adams"


@final
@dataclass(frozen=True, kw_only=True)
class FixedAdams(_Corrected):
    """torchdiffeq's ``fixed_adams``: the older name of ``implicit_adams``.

    Reference:
        Hairer, Norsett, Wanner, Solving Ordinary Differential Equations I (1993), section III.1.
    """

    method: ClassVar[str] = "fixed_adams"
