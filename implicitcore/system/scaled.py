"""A system in units of its own size, for states whose squares over- or underflow."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from implicitcore.system.context import Recorder
from implicitcore.system.system import System
from implicitcore.tensors.amended import amended
from implicitcore.tensors.norms import column, fits, misfits, power_of_two


class OutOfRange(Exception):
    """The norms of a state would over- or underflow: it is to be solved in units of its size.

    Attributes:
        unit: ``[batch]``, powers of two.
    """

    def __init__(self, unit: Tensor) -> None:
        super().__init__("the state is too large or too small for its dtype's norms")
        self.unit = unit


def check_range(update_norm: Tensor, *states: Tensor) -> None:
    """Require that the norms of a solve are right for states of about this size.

    Arguments:
        update_norm: ``|f(z)|`` at the start, ``[batch]``: a look at it is all that most solves pay.
        states: what the solve has to do with, ``[batch, n]`` each.

    Raises:
        OutOfRange: they are not; rows that are zero or not finite stay in their units.
    """
    if not states[0].numel() or fits(update_norm, update_norm.dtype):
        return
    size = torch.stack([state.abs().amax(1) for state in states]).amax(0)
    wrong = misfits(size)
    if bool(wrong.any()):
        raise OutOfRange(torch.where(wrong, power_of_two(size), 1).to(size.dtype))


@dataclass(eq=False)
class ScaledSystem(System):
    """f(unit y) / unit as a function of y: the same system, whose states are about 1.

    The units are powers of two, so that nothing is rounded.

    Attributes:
        inner: the system itself.
        unit: ``[batch]``.
    """

    inner: System
    unit: Tensor

    @classmethod
    def scaled(cls, inner: System, unit: Tensor) -> ScaledSystem:
        """The system in these units, counting with itself; what it records is in them too."""
        context = amended(inner.context, range_checked=False)
        return cls(inner.problem, context, inner, unit)

    def into(self, z: Tensor) -> Tensor:
        """A state in the units."""
        return z / column(self.unit).to(z.dtype)

    def back(self, y: Tensor) -> Tensor:
        """A state in its own units."""
        return y * column(self.unit).to(y.dtype)

    def velocity(self, t: Tensor, z: Tensor) -> Tensor:
        """See :meth:`System.velocity`."""
        return self.into(self.inner.velocity(t, self.back(z)))

    def scale(self, update_norm: Tensor, start_norm: Tensor) -> Tensor:
        """See :meth:`System.scale`."""
        return self.inner.scale(update_norm * self.unit, start_norm * self.unit) / self.unit

    def tolerance(self, tol: float) -> float:
        """See :meth:`System.tolerance`."""
        return self.inner.tolerance(tol)

    def absolute(self, atol: float) -> Tensor | float:
        """See :meth:`System.absolute`."""
        return atol / self.unit

    def unscale(self, recorder: Recorder | None) -> None:
        """Put what was recorded into its own units."""
        if recorder is None:
            return
        if recorder.residuals is not None:
            recorder.residuals[:] = [norms * self.unit for norms in recorder.residuals]
        if recorder.iterates is not None:
            recorder.iterates[:] = [self.back(y) for y in recorder.iterates]

    def map(self, z: Tensor) -> tuple[Tensor, Tensor | None]:
        fz, g = self.inner.map(self.back(z))
        return self.into(fz), None if g is None else self.into(g)
