"""The fully implicit Runge-Kutta methods on a given grid."""

from __future__ import annotations

from dataclasses import dataclass
from math import sqrt
from typing import ClassVar, NamedTuple, final

import torch
from torch import Tensor

from implicitcore.functional import fixed_point
from implicitcore.gradients.implicit import Implicit
from implicitcore.ode_solvers.base import Step
from implicitcore.ode_solvers.radau import RADAU_IIA5
from implicitcore.ode_solvers.stepwise import EqualSteps
from implicitcore.options.shared import ErrorTolerance
from implicitcore.root_solvers.broyden import Broyden
from implicitcore.root_solvers.chain import Chain
from implicitcore.root_solvers.gmres import GMRES
from implicitcore.root_solvers.newton import Newton
from implicitcore.system.system import System
from implicitcore.tensors.norms import column

_MARGIN = 0.01  # of rtol, that the stage equations may leave


class Collocation(NamedTuple):
    """A Runge-Kutta method all of whose stages depend on each other."""

    a: tuple[tuple[float, ...], ...]
    b: tuple[float, ...]
    c: tuple[float, ...]


# Hairer, Wanner, Solving Ordinary Differential Equations II (1996), section IV.5: Gauss, tables 5.1
# and 5.2; Radau IIA, table 5.5.
IMPLICIT_MIDPOINT = Collocation(((1 / 2,),), (1.0,), (1 / 2,))
_3, _15 = sqrt(3), sqrt(15)
GAUSS4 = Collocation(
    ((1 / 4, 1 / 4 - _3 / 6), (1 / 4 + _3 / 6, 1 / 4)),
    (1 / 2, 1 / 2),
    (1 / 2 - _3 / 6, 1 / 2 + _3 / 6),
)
GAUSS6 = Collocation(
    (
        (5 / 36, 2 / 9 - _15 / 15, 5 / 36 - _15 / 30),
        (5 / 36 + _15 / 24, 2 / 9, 5 / 36 - _15 / 24),
        (5 / 36 + _15 / 30, 2 / 9 + _15 / 15, 5 / 36),
    ),
    (5 / 18, 4 / 9, 5 / 18),
    (1 / 2 - _15 / 10, 1 / 2, 1 / 2 + _15 / 10),
)
RADAU3 = Collocation(((5 / 12, -1 / 12), (3 / 4, 1 / 4)), (3 / 4, 1 / 4), (1 / 3, 1.0))
RADAU5 = Collocation(RADAU_IIA5.a, RADAU_IIA5.b, RADAU_IIA5.c)
TABLEAUS = {
    "implicit_midpoint": IMPLICIT_MIDPOINT,
    "gl4": GAUSS4,
    "gl6": GAUSS6,
    "radauIIA3": RADAU3,
    "radauIIA5": RADAU5,
}


@final
@dataclass(frozen=True, kw_only=True)
class GridCollocation(ErrorTolerance, EqualSteps[Tensor]):
    """k_i = g(t + c_i dt, z + dt sum_j a_ij k_j) for all stages at once, then z + dt sum_i b_i k_i.

    The stages are the fixed point of one map, found to a hundredth of rtol; their gradient is that
    of the implicit function.

    Attributes:
        stages: the name of a tableau.

    Reference:
        Hairer, Wanner, Solving Ordinary Differential Equations II (1996), section IV.5.
    """

    tableaus: ClassVar[dict[str, Collocation]] = TABLEAUS
    stages: str = "radauIIA5"

    def step(self, system: System, t: Tensor, dt: Tensor, z: Tensor, state: Tensor) -> Step:
        """See :meth:`Stepper.step`."""
        tableau = self.tableaus[self.stages]
        a, b = (torch.tensor(part, dtype=z.dtype, device=z.device) for part in tableau[:2])
        width, times = column(dt).to(z.dtype), [torch.add(t, dt, alpha=c) for c in tableau.c]

        def slopes(k: Tensor, x: None) -> Tensor:
            points = z + width * (a @ k[0])
            rows = zip(times, points.split(1), strict=True)
            return torch.stack([system.velocity(time, point) for time, point in rows], 1)

        tol = max(_MARGIN * self.rtol, 10 * torch.finfo(z.dtype).eps)
        k = fixed_point(
            slopes,
            state.detach().expand(len(b), -1).unsqueeze(0),
            solver=Chain((Broyden(tol=tol, max_steps=30), Newton(tol=tol, max_steps=30))),
            gradient=Implicit(GMRES(tol=tol)),
            on_failure="raise",
        ).z[0]
        return Step(z + width * (b @ k), None)
