"""Dynamics given by a vector field."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import Tensor

from implicitcore.dynamics.base import Dynamics


class VectorField(Dynamics):
    """dz/dt = v(t, z, x), or dz/dt = v(z, x) where ``autonomous``.

    Arguments:
        field: v, a module or function that returns a state shaped like z; t is ``[batch, 1, ...,
            1]``.
        autonomous: v is called with (z, x).

    Reference:
        Chen, Rubanova, Bettencourt, Duvenaud, Neural Ordinary Differential Equations, arXiv
        1806.07366.
    """

    def __init__(self, field: Callable[..., Any], *, autonomous: bool = False) -> None:
        super().__init__()
        self.field = field
        self.autonomous = autonomous

    def velocity(self, t: Tensor, z: Any, x: Any) -> Any:
        """v(t, z, x)."""
        return self.field(z, x) if self.autonomous else self.field(t, z, x)
