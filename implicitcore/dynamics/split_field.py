"""A vector field in two parts, of which one is stiff."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from implicitcore.dynamics.cells import check_call, check_cell, takes_time
from implicitcore.errors import InputError, show


class SplitField(nn.Module):
    """The vector field v = stiff + nonstiff, each a function of (t, z, x) or of (z, x).

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
        self._timed = {
            name: takes_time(part, otherwise=True)
            for name, part in (("stiff", stiff), ("nonstiff", nonstiff))
        }

    @property
    def takes_time(self) -> bool:
        """Whether one of the parts is a function of (t, z, x)."""
        return any(self._timed.values())

    def forward(self, *arguments: Any) -> Any:
        """The sum, shaped like z.

        Raises:
            InputError: the parts are not alike, or do not take these arguments.
        """
        stiff, nonstiff = self._part("stiff", arguments), self._part("nonstiff", arguments)
        if not _alike(stiff, nonstiff):
            raise InputError(
                "SplitField: expected two parts shaped like z, received "
                f"{_said(stiff)} from stiff and {_said(nonstiff)} from nonstiff"
            )
        return pytree.tree_map(torch.add, stiff, nonstiff)

    def _part(self, name: str, arguments: tuple[Any, ...]) -> Any:
        part = getattr(self, name)
        given = arguments if self._timed[name] else arguments[-2:]
        try:
            return part(*given)
        except TypeError as error:
            check_call(error, part, name, "t, z, x" if len(given) > 2 else "z, x")
            raise


def _alike(one: Any, other: Any) -> bool:
    """Whether their sum broadcasts and promotes nothing, as torch would in silence."""
    (first, spec), (second, other_spec) = pytree.tree_flatten(one), pytree.tree_flatten(other)
    return spec == other_spec and all(map(_fit, first, second))


def _fit(one: Any, other: Any) -> bool:
    if not (isinstance(one, Tensor) and isinstance(other, Tensor)) or one.shape != other.shape:
        return False
    # Under autocast an operation chooses its dtype.
    return one.dtype is other.dtype or torch.is_autocast_enabled(one.device.type)


def _said(part: Any) -> str:
    leaves = pytree.tree_leaves(part)
    return ", ".join(
        f"shape {[*leaf.shape]} ({leaf.dtype})" if isinstance(leaf, Tensor) else show(leaf)
        for leaf in leaves
    )
