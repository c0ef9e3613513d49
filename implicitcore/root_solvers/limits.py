"""What the residuals of a solve are compared with, and how far that counts."""

from __future__ import annotations

import torch
from torch import Tensor

from implicitcore.backends.base import Residual
from implicitcore.root_solvers.stop_state import DIVERGENCE, StopState, Trust
from implicitcore.system.problem import rounding_of
from implicitcore.system.system import System


class Limits:
    """The limits of a stop test, which follow the scale of the system.

    Arguments:
        system: gives the scale of the relative tolerance.
        tol: relative tolerance.
        dtype: of the states.

    Attributes:
        scale: ``[batch]``, what the limits were last computed from; None where they are to be
            computed anew.
        relative_to: that scale as data (see :meth:`System.stop_scale`).
    """

    def __init__(self, system: System, tol: float, dtype: torch.dtype) -> None:
        self.system, self.tol, self.relative_to = system, tol, system.stop_scale()
        self.scale: Tensor | None = None
        self.dtype = dtype

    @property
    def rounding(self) -> float:
        """See :func:`rounding_of`."""
        return rounding_of(self.system.problem.is_map, self.dtype)

    def first(self, state: StopState) -> Tensor:
        """The limits where the solve began, ``[batch]``, which another solver did."""
        norm, ceiling = state.start.origin()
        scale = self.system.scale(ceiling / DIVERGENCE, norm)
        return torch.minimum(state.limit, state.floor + scale * self.tol)

    def follow(self, state: StopState, update: Tensor) -> None:
        """The limits where ``|f(z)|`` is ``update`` ``[batch]``; f is asked where it is no data."""
        scale = self.relative_to
        if not isinstance(scale, Tensor):  # first: a tensor compared with a word takes 8 us
            known = scale == "update"
            scale = update if known else self.system.scale(update, state.start.norm)
        if scale is not self.scale:
            self.scale, state.limit = scale, torch.add(state.floor, scale, alpha=self.tol)

    def remeasure(self, state: StopState, update: Tensor) -> None:
        """The same where ``update`` is not what the residual has."""
        self.follow(state, update)
        self.scale = None

    def trust(self, state: StopState, residual: Residual) -> Trust | None:
        """How far they count; None where none has grown, and no rounding hides a residual."""
        start, update = state.start, residual.update_norm
        fixed = isinstance(self.relative_to, Tensor) and self.system.context.origin is None
        if fixed or state.limit is start.limit:
            return None
        if start.trust is None:
            start.trust = Trust.at(start)
        reach, rounding = state.limit, self.rounding
        if self.scale is not update or self.tol < rounding:  # else rounding hides less than that
            reach = torch.maximum(reach, update * rounding)
        if torch.equal(torch.minimum(reach, start.trust.limit), reach):
            return None
        return start.trust
