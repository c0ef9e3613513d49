"""Butcher tableaus of diagonally implicit Runge-Kutta methods, as the papers print them.

The tests check every order condition.
"""

from __future__ import annotations

from dataclasses import dataclass


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
            - z); empty where there is none.
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


# Hairer, Wanner, Solving Ordinary Differential Equations II (1996), section IV.3: implicit Euler,
# trapezoidal rule.
IMPLICIT_EULER = ImplicitTableau(a=((1.0,),), c=(1.0,), order=1)
TRAPEZOID = ImplicitTableau(a=((0.0,), (1 / 2, 1 / 2)), c=(0.0, 1.0), order=2)

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
