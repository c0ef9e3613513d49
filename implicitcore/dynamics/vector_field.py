"""Dynamics given by a vector field."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import Tensor

from implicitcore.dynamics.base import Dynamics
from implicitcore.dynamics.cells import check_call, check_cell, takes_time


class VectorField(Dynamics):
    """dz/dt = v(t, z, x), or dz/dt = v(z, x).

    Arguments:
        field: v, a module or function that returns a state shaped like z; t is ``[batch, 1, ...,
            1]``.
        autonomous: v is called with (z, x), or else with (t, z, x); None is what the signature of v
            says, and (t, z, x) where it takes either; a third argument with a value is no x.
        exact_time: t reaches v in the dtype of the times, and not rounded to that of z.

    Reference:
        Chen, Rubanova, Bettencourt, Duvenaud, Neural Ordinary Differential Equations, arXiv
        1806.07366.
    """

    def __init__(
        self, field: Callable[..., Any], *, autonomous: bool | None = None, exact_time: bool = False
    ) -> None:
        super().__init__()
        check_cell(field, "field", _arguments(bool(autonomous)))
        self.field = field
        self.autonomous = autonomous
        self.exact_time = exact_time

    @property
    def autonomous(self) -> bool:
        """Whether v is called with (z, x)."""
        return self._autonomous

    @autonomous.setter
    def autonomous(self, value: bool | None) -> None:
        if value is None:
            value = not takes_time(self.field, otherwise=True)
        self._autonomous = value

    def velocity(self, t: Tensor, z: Any, x: Any) -> Any:
        """v(t, z, x).

        Raises:
            InputError: the field does not take these arguments.
        """
        try:
            return self.field(z, x) if self._autonomous else self.field(t, z, x)
        except TypeError as error:
            self.explain_call(error)
            raise

    def explain_call(self, error: TypeError) -> None:
        """See :meth:`Dynamics.explain_call`."""
        check_call(error, self.field, "field", _arguments(self._autonomous))


def _arguments(autonomous: bool) -> str:
    return "z, x" if autonomous else "t, z, x"
