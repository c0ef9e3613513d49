"""The zero path of a homotopy as the vector field of a layer."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from implicitcore.dynamics.fixed_point import FixedPoint
from implicitcore.errors import ConfigError
from implicitcore.options.options import PartMeta, options_of
from implicitcore.options.types import Positive, Whole
from implicitcore.root_solvers.krylov import krylov_space
from implicitcore.root_solvers.linearized import Point, solve
from implicitcore.system.system import System
from implicitcore.tensors.norms import column, norm
from implicitcore.tensors.packing import Packing
from implicitcore.tensors.shared import shared

# How far GMRES reduces the linear system of a velocity, relative to its right side, and the most
# products.
INNER, MOST = 1e-9, 100


class HomotopyField(nn.Module, metaclass=PartMeta):
    """The velocity of the zero path of a homotopy, v(t, z, x): its flow ends at an equilibrium.

    The path is H(z, s) = s (z - f(z, x)) + (1 - s)(z - a) = 0 from z = a at s = 0 to the
    equilibrium z = f(z, x) at s = 1. Where it goes through z at s, a follows from the two, and
    dz/ds = (I - s J)^-1 (f(z) - z) / (1 - s). In the time t of s = 1 - e^(-``rate`` t) that is

        dz/dt = ``rate`` (I - s J)^-1 (f(z, x) - z),

    bounded, and the same for every a: whatever start a flow has, that is its a. Over a time of 1
    the residual f(z) - z falls to e^-``rate`` of ``|f(z) - a|``, and an error of the integration
    falls with it. It is what HomoODE's theory follows and its learned field stands for: the flow of
    a layer, ``HomoODE(HomotopyField(cell), autonomous=False, channels=...)``, ends at the
    equilibrium of ``DEQ(cell)``.

    An evaluation costs one of f and n products with its Jacobian, or those of GMRES where n >
    ``dense_below``, through which a gradient is costly. It follows the path by s, to the first
    point where that turns back; ``Homotopy`` goes on. The samples must not depend on each other.

    Arguments:
        cell: f, a module or function of (z, x) that returns a state shaped like z.
        rate: how fast the path is followed: 20 leaves 2e-9 of the residual at t = 1.
        dense_below: largest n whose Jacobians are formed.

    Raises:
        ConfigError: an option cannot be used.

    Example:
        >>> import torch, implicitcore as ic
        >>> field = ic.HomotopyField(lambda z, x: torch.cos(x * z))
        >>> x = torch.ones(1, 1, dtype=torch.float64)
        >>> times, solver = torch.tensor([0.0, 1.0]), ic.Tsit5(rtol=1e-8, atol=1e-10)
        >>> round(ic.integrate(field, 0 * x, x, times=times, solver=solver).z[-1].item(), 6)
        0.739085

    Reference:
        Ding, Cui, Wang, Shi, Two Sides of The Same Coin: Bridging Deep Equilibrium Models and
        Neural ODEs via Homotopy Continuation, arXiv 2310.09583.
    """

    def __init__(
        self,
        cell: Callable[[Any, Any], Any],
        *,
        rate: Positive = 20.0,
        dense_below: Whole = 64,
    ) -> None:
        super().__init__()
        given = {"rate": rate, "dense_below": dense_below}
        known = options_of(type(self))
        problems = [line for name, value in given.items() for line in known[name].read(value)[1]]
        if problems:
            raise ConfigError(problems)
        self.dynamics = FixedPoint(cell)
        self.rate, self.dense_below = rate, dense_below

    def forward(self, t: Tensor, z: Any, x: Any) -> Any:
        """dz/dt, shaped like z.

        Arguments:
            t: the time of each sample, ``[batch, 1, ..., 1]``.
            z: the state, any pytree of tensors with the batch first.
            x: the input of the cell.
        """
        packing = Packing.of(z)
        system = System.of(self.dynamics, shared(x), packing)
        point = Point.at(system, packing.pack(z))
        s = column(-torch.expm1(-self.rate * t.reshape(-1))).to(point.g.dtype)
        if point.g.shape[1] <= self.dense_below:
            velocity = solve(point.matrix(1.0, s), point.g)[0]
        else:
            limit, most = INNER * norm(point.g.detach()), min(point.g.shape[1], MOST)
            velocity = krylov_space(
                system.backend, lambda v: v - s * point.jacobian.jvp(v), point.g, limit, most
            ).minimise()
        return packing.unpack(self.rate * velocity)
