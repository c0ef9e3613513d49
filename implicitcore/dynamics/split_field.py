"""A vector field in two parts, of which one is stiff."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import nn
from torch.utils import _pytree as pytree

from implicitcore.dynamics.cells import check_cell


class SplitField(nn.Module):
    """The vector field v = stiff + nonstiff, each a function of (t, z, x).

    It is given where a vector field is: to :func:`~implicitcore.integrate` and to layers that
    integrate. ``KenCarp3`` and ``KenCarp4`` integrate the stiff part implicitly and the other
    explicitly; to every other solver it is the sum. What nearly cancels belongs in one part: a
    forcing that holds a fast decay in balance is stiff with it, or the steps become short.

    Arguments:
        stiff: a module or function that returns a state shaped like z: what decays fast (diffusion,
            chemistry). Best cheap, and linear or nearly so: its Jacobian is formed.
        nonstiff: the same for the rest, whose Jacobian is never asked for.

    Raises:
        ConfigError: one of them is no function.

    Example:
        >>> import torch, implicitcore as ic
        >>> v = ic.SplitField(lambda t, z, x: 1000 * (torch.cos(t) - z), lambda t, z, x: z)
        >>> z0, times = torch.zeros(1, 1, dtype=torch.float64), torch.tensor([0.0, 1.0])
        >>> z = ic.integrate(v, z0, times=times, solver=ic.KenCarp4(rtol=1e-6, atol=1e-8)).z[-1]
        >>> round(z.item(), 3)
        0.542

    Reference:
        Ascher, Ruuth, Spiteri, Implicit-explicit Runge-Kutta methods for time-dependent partial
        differential equations, Appl. Numer. Math. 25 (1997), p. 151-167.
    """

    def __init__(self, stiff: Callable[..., Any], nonstiff: Callable[..., Any]) -> None:
        super().__init__()
        check_cell(stiff, "stiff", "t, z, x")
        check_cell(nonstiff, "nonstiff", "t, z, x")
        self.stiff, self.nonstiff = stiff, nonstiff

    def forward(self, *arguments: Any) -> Any:
        """The sum, shaped like z."""
        return pytree.tree_map(torch.add, self.stiff(*arguments), self.nonstiff(*arguments))
