"""Butcher tableaus of diagonally implicit Runge-Kutta methods, as the papers print them.

The tests check every order condition.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property


@dataclass(frozen=True)
class ImplicitTableau:
    """A diagonally implicit, stiffly accurate method.

    Y_i = z + dt sum_{j <= i} a_ij g(t + c_j dt, Y_j), and the last Y is z_next. All implicit stages
    have the same a_ii; only the first stage may be explicit (a_11 = 0).

    Attributes:
        a: rows of the stage matrix up to its diagonal.
        c: nodes.
        order: of the solution.
        error: b minus the weights of the embedded method; empty where there is none.
        dense: weights d_ji of the continuous extension on the moves of the implicit stages, z(t + s
            dt) = z + s (z_next - z) + s (1 - s) (D_1 + s (D_2 + ...)), where D_j = sum_i d_ji (Y_i
            - z), and a third row is D_2 + (1 - s) D_3; one row without weights is a straight line;
            empty where there is none.
    """

    a: tuple[tuple[float, ...], ...]
    c: tuple[float, ...]
    order: int
    error: tuple[float, ...] = ()
    dense: tuple[tuple[float, ...], ...] = ()

    @property
    def b(self) -> tuple[float, ...]:
        """The weights of the solution: the last row."""
        return self.a[-1]

    @property
    def gamma(self) -> float:
        """The diagonal of the implicit stages."""
        return self.a[-1][-1]

    @property
    def explicit(self) -> int:
        """How many stages come first that are explicit: 0 or 1."""
        return int(self.a[0][0] == 0)

    @cached_property
    def predictors(self) -> tuple[tuple[float, ...], ...]:
        """Of each stage, the weights of the last moves before it that give its first iterate.

        The value at its node of the polynomial through those of the last ``PREDICTED`` stages with
        nodes of their own, and through zero at zero.
        """
        return tuple(_extrapolation(self.c[self.explicit : i], c) for i, c in enumerate(self.c))


# So many moves make the first iterate of a stage.
PREDICTED = 3


def _extrapolation(before: tuple[float, ...], node: float) -> tuple[float, ...]:
    """The weights of the last moves at the nodes ``before``, for one at another ``node``."""
    if before and math.isclose(before[-1], node):
        return (1.0,)
    nodes = before[-PREDICTED:]
    return tuple(
        node / c * math.prod((node - other) / (c - other) for other in nodes if other != c)
        for c in nodes
    )


# Hairer, Wanner, Solving Ordinary Differential Equations II (1996), section IV.3: implicit Euler,
# trapezoidal rule. Between the steps a straight line: of the same order globally, and no velocity
# of a stiff field makes it leave the states at both ends.
IMPLICIT_EULER = ImplicitTableau(a=((1.0,),), c=(1.0,), order=1, dense=((),))
TRAPEZOID = ImplicitTableau(a=((0.0,), (1 / 2, 1 / 2)), c=(0.0, 1.0), order=2, dense=((),))

_ALEXANDER, _EDGE = 1 - math.sqrt(2) / 2, math.sqrt(2) / 4
# Between the steps the parabola through both ends with the slope of the last stage, of order 2.
SDIRK2 = ImplicitTableau(
    a=((_ALEXANDER,), (1 - _ALEXANDER, _ALEXANDER)),
    c=(_ALEXANDER, 1.0),
    order=2,
    dense=(((1 - _ALEXANDER) / _ALEXANDER**2, 1 - 1 / _ALEXANDER),),
)
# The parabola through the three stages, of order 2.
TRBDF2 = ImplicitTableau(
    a=((0.0,), (_ALEXANDER, _ALEXANDER), (_EDGE, _EDGE, _ALEXANDER)),
    c=(0.0, 2 * _ALEXANDER, 1.0),
    order=2,
    dense=((1 / (2 * _ALEXANDER * (1 - 2 * _ALEXANDER)), -1 / (1 - 2 * _ALEXANDER)),),
)

# Kennedy, Carpenter, Additive Runge-Kutta schemes for convection-diffusion-reaction equations,
# Appl. Numer. Math. 44 (2003), p. 139-181, appendix C: the implicit half of ARK4(3)6L[2]SA.
_B = (82889 / 524892, 0.0, 15625 / 83664, 69875 / 102672, -2260 / 8211, 1 / 4)
_EMBEDDED = (
    4586570599 / 29645900160,
    0.0,
    178811875 / 945068544,
    814220225 / 1159782912,
    -3700637 / 11593932,
    61727 / 225920,
)
ESDIRK436 = ImplicitTableau(
    a=(
        (0.0,),
        (1 / 4, 1 / 4),
        (8611 / 62500, -1743 / 31250, 1 / 4),
        (5012029 / 34652500, -654441 / 2922500, 174375 / 388108, 1 / 4),
        (
            15267082809 / 155376265600,
            -71443401 / 120774400,
            730878875 / 902184768,
            2285395 / 8070912,
            1 / 4,
        ),
        _B,
    ),
    c=(0.0, 1 / 2, 83 / 250, 31 / 50, 17 / 20, 1.0),
    order=4,
    error=tuple(b - e for b, e in zip(_B, _EMBEDDED, strict=True)),
    # Of order 3, and made of the stages themselves: what is fast and decays stays bounded by its
    # size at the start (measured: at most 1.0 of it), where a velocity would be multiplied by dt
    # dg/dz. Of the four weights that the order leaves free those with the least error of order 4
    # and the smallest sums.
    dense=(
        (
            3.7312235502847955,
            3.9247036504379222,
            -5.263385341651745,
            3.4262166442543283,
            -2.8175986228798906,
        ),
        (
            -8.814931426705147,
            -6.259499350769432,
            18.970939562951568,
            -6.883245304618498,
            0.5743954777037739,
        ),
    ),
)

# Kvaerno, Singly diagonally implicit Runge-Kutta methods with an explicit first stage, BIT 44
# (2004), p. 489-502: the pair of order 5(4) whose last two stages are both stiffly accurate.
_GAMMA = 0.26
_FOURTH = (
    0.13855640231268224,
    0.0,
    -0.04245337201752043,
    0.02446657898003141,
    0.61943039072480676,
    _GAMMA,
)
_FIFTH = (
    0.13659751177640291,
    0.0,
    -0.05496908796538376,
    -0.04118626728321046,
    0.62993304899016403,
    0.06962479448202728,
    _GAMMA,
)
KVAERNO5 = ImplicitTableau(
    a=(
        (0.0,),
        (_GAMMA, _GAMMA),
        (0.13, 0.84033320996790809, _GAMMA),
        (0.22371961478320505, 0.47675532319799699, -0.06470895363112615, _GAMMA),
        (
            0.16648564323248321,
            0.10450018841591720,
            0.03631482272098715,
            -0.13090704451073998,
            _GAMMA,
        ),
        _FOURTH,
        _FIFTH,
    ),
    c=(0.0, 0.52, 1.230333209967908, 0.8957659843500759, 0.43639360985864756, 1.0, 1.0),
    order=5,
    error=tuple(b - e for b, e in zip(_FIFTH, (*_FOURTH, 0.0), strict=True)),
    # Of order 4, and of the stages themselves, as that of ESDIRK436: the conditions of that order
    # leave no weight free but the share of the two last stages, which is all the last one's.
    dense=(
        (
            7.766532752490203,
            -0.33381106071027705,
            -2.9738747407257335,
            -3.0715292209372373,
            0.0,
            0.3763933615226958,
        ),
        (
            -12.597148643811273,
            -0.5855282231281884,
            5.7240141397647495,
            9.936281103464896,
            0.0,
            -2.192594626581464,
        ),
        (
            -7.339792152922831,
            1.4838032224103437,
            -0.6762496642795185,
            9.414934815728868,
            0.0,
            -1.5117364066990022,
        ),
    ),
)
