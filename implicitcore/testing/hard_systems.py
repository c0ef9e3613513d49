"""Classical nonlinear systems that are hard for Newton's method, with their roots.

Roots without a formula were computed with MINPACK's hybrd.

Reference:
    The numbers are those of More, Garbow, Hillstrom, "Testing Unconstrained Optimization Software",
    ACM Trans. Math. Softw. 7 (1981), p. 17-41; "far" is their start times -100 or 100.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from math import pi

import torch
from torch import Tensor

from implicitcore.testing.hard_functions import (
    boggs,
    brown_almost_linear,
    broyden_banded,
    broyden_tridiagonal,
    chandrasekhar,
    chebyquad,
    columns,
    cubic,
    discrete_boundary_value,
    discrete_integral_equation,
    exponential_cycle,
    ferraris_tronconi,
    freudenstein_roth,
    helical_valley,
    no_root,
    powell_badly_scaled,
    powell_singular,
    powell_stalls,
    rosenbrock,
    trigonometric,
    variably_dimensioned,
)


@dataclass(frozen=True)
class HardSystem:
    """F(z) = 0, as g = sign F.

    Attributes:
        name: with its source.
        function: F, ``[batch, n] -> [batch, n]``.
        start: ``[n]``.
        roots: the known ones; empty for a system without a root.
        sign: -1 where det(dF/dz) > 0 at the root, so that the root attracts the flow of g.
        symmetric: a permutation of a root is a root.
        defeats: ``"newton"`` where the undamped method fails from the start, ``"line search"``
            where the damped one does too.
    """

    name: str
    function: Callable[[Tensor], Tensor]
    start: Sequence[float]
    roots: Sequence[Sequence[float]]
    sign: int = -1
    symmetric: bool = False
    defeats: str = ""

    def __str__(self) -> str:
        return self.name

    def g(self, z: Tensor, x: object = None) -> Tensor:
        """``sign * F(z)``, ``[batch, n]``; x is not used."""
        return self.sign * self.function(z)

    def z0(self) -> Tensor:
        """The start, ``[1, n]``, float64."""
        return torch.tensor([self.start], dtype=torch.float64)

    def distance(self, z: Tensor) -> float:
        """From z ``[1, n]`` to the nearest root, relative to that root or to one."""
        roots = torch.tensor(self.roots, dtype=torch.float64)
        if self.symmetric:
            z, roots = z.sort(1).values, roots.sort(1).values
        return ((z - roots).norm(dim=1) / roots.norm(dim=1).clamp(min=1)).min().item()


def _brown_root(n: int, alpha: float) -> list[float]:
    """n alpha^n - (n + 1) alpha^(n - 1) + 1 = 0."""
    return [alpha] * (n - 1) + [alpha ** (1 - n)]


def _parabola(n: int, depth: float) -> list[float]:
    """The start of problems 28 and 29, times ``depth``."""
    return [depth * i / (n + 1) * (i / (n + 1) - 1) for i in range(1, n + 1)]


# fmt: off
BOUNDARY = [
    -0.0431649825187649, -0.0815771565353869, -0.1144857143805293, -0.1409735768625967,
    -0.1599086961819831, -0.1698772023127749, -0.1690899837812084, -0.1552495352218318,
    -0.1253558916789350, -0.0754165336858920,
]
TRIDIAGONAL = [
    -0.5707221320112249, -0.6818069499842749, -0.7022100760176601, -0.7055106298950805,
    -0.7049061557287437, -0.7014966070298512, -0.6918893223547983, -0.6657965144058537,
    -0.5960351090263656, -0.4164122575286933,
]
BANDED = [
    -0.4283028635872503, -0.4765964243562902, -0.5196524636468617, -0.5580993248321808,
    -0.5925061568294574, -0.6245036821994680, -0.6232394714405911, -0.6213938417965735,
    -0.6204535966590874, -0.5864692707204351,
]
CHEBYQUAD_5 = [
    0.0837512564995090, 0.3127292952232095, 0.5, 0.6872707047767905, 0.9162487435004909,
]
CHEBYQUAD_7 = [
    0.0580691496209754, 0.2351716123574216, 0.3380440947400461, 0.5, 0.6619559052599538,
    0.7648283876425784, 0.9419308503790246,
]
TRIGONOMETRIC = [
    0.0343962889257383, 0.0350323157413504, 0.0357191958259511, 0.0364652242182520,
    0.0372809117388567, 0.0381798625474846, 0.0391801410824547, 0.0403065026440785,
    0.1797201916971688, 0.1562408814270001,
]
SCATTER_90 = [
    1.0967358168344779, 1.2334840217223593, 1.3423629130310346, 1.4356463490493694,
    1.5178684864866108, 1.5914920868821103, 1.6581057513926865, 1.7188372512295915,
    1.7745363737392700, 1.8258694825916457,
]
SCATTER_9999 = [
    1.1322174351906094, 1.3456483644720119, 1.5396166201893495, 1.7252881375884024,
    1.9061280328455410, 2.0837115441067273, 2.2588934285491790, 2.4321892971059813,
    2.6039333600259726, 2.7743539779460438,
]
# fmt: on

SYSTEMS = [
    HardSystem("Rosenbrock (1)", rosenbrock, [-1.2, 1.0], [[1.0, 1.0]]),
    HardSystem(
        "Freudenstein, Roth (2)",
        freudenstein_roth,
        [0.5, -2.0],
        [[5.0, 4.0]],
        defeats="line search",
    ),
    HardSystem(
        "Powell, badly scaled (3)",
        powell_badly_scaled,
        [0.0, 1.0],
        [[1.0981593296998e-5, 9.1061467398665]],
        symmetric=True,
    ),
    HardSystem("Helical valley (7)", helical_valley, [-1.0, 0.0, 0.0], [[1.0, 0.0, 0.0]]),
    HardSystem("Powell, singular (13)", powell_singular, [3.0, -1.0, 0.0, 1.0], [[0.0] * 4]),
    HardSystem(
        "Variably dimensioned, n = 10 (25)",
        variably_dimensioned,
        [1 - j / 10 for j in range(1, 11)],
        [[1.0] * 10],
    ),
    HardSystem(
        "Trigonometric, n = 10 (26)", trigonometric, [0.1] * 10, [[0.0] * 10, TRIGONOMETRIC], sign=1
    ),
    HardSystem(
        "Brown, almost linear, n = 10 (27)",
        brown_almost_linear,
        [0.5] * 10,
        [[1.0] * 10, _brown_root(10, 0.9794303033498632)],
        defeats="newton",
    ),
    HardSystem(
        "Brown, almost linear, n = 30 (27)",
        brown_almost_linear,
        [0.5] * 30,
        [[1.0] * 30, _brown_root(30, 0.9977542164428104)],
        defeats="newton",
    ),
    HardSystem(
        "Discrete boundary value (28)", discrete_boundary_value, _parabola(10, 1), [BOUNDARY]
    ),
    HardSystem(
        "Discrete boundary value (28), far", discrete_boundary_value, _parabola(10, 100), [BOUNDARY]
    ),
    HardSystem(
        "Discrete integral equation (29)", discrete_integral_equation, _parabola(10, 1), [BOUNDARY]
    ),
    HardSystem("Broyden, tridiagonal (30)", broyden_tridiagonal, [-1.0] * 10, [TRIDIAGONAL]),
    HardSystem("Broyden, tridiagonal (30), far", broyden_tridiagonal, [-100.0] * 10, [TRIDIAGONAL]),
    HardSystem("Broyden, banded (31)", broyden_banded, [-1.0] * 10, [BANDED]),
    HardSystem(
        "Chebyquad, n = 5 (35)",
        chebyquad,
        [i / 6 for i in range(1, 6)],
        [CHEBYQUAD_5],
        symmetric=True,
    ),
    HardSystem(
        "Chebyquad, n = 7 (35)",
        chebyquad,
        [i / 8 for i in range(1, 8)],
        [CHEBYQUAD_7],
        symmetric=True,
        defeats="newton",
    ),
    HardSystem("Chandrasekhar H, 0.9", chandrasekhar(0.9), [1.0] * 10, [SCATTER_90]),
    HardSystem("Chandrasekhar H, 0.9999", chandrasekhar(0.9999), [1.0] * 10, [SCATTER_9999]),
    HardSystem("Boggs", boggs, [1.0, 0.0], [[0.0, 1.0], [-1.0, 2.0], [-(0.5**0.5), 1.5]]),
    HardSystem("Arctangent", torch.atan, [3.0], [[0.0]], defeats="newton"),
    HardSystem("Powell, singular on a line", powell_stalls, [3.0, 1.0], [[0.0, 0.0]]),
    HardSystem("Exponential cycle", exponential_cycle, [3.0, 0.5, 2.0], [[1.0] * 3]),
    HardSystem(
        "Ferraris, Tronconi",
        ferraris_tronconi,
        [1.5, 5.0],
        [[0.5, pi], [0.2994486924909, 2.8369277704589], [1.29436045992063, -3.137219791192911]],
        defeats="line search",
    ),
    HardSystem(
        "Cubic, a cycle of Newton's", cubic, [0.0], [[-1.7692923542386314]], defeats="line search"
    ),
]
NO_ROOT = [
    HardSystem("Above zero", no_root, [1.0, 0.5], []),
    HardSystem("Exponential and more", lambda z: z.exp() + 0.1, [0.0], []),
    HardSystem("Two parallel planes", lambda z: columns(z.sum(1), z.sum(1) - 1), [0.3, 0.1], []),
]
