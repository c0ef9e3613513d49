"""Butcher tableaus of explicit Runge-Kutta methods, as the papers print them.

The tests check every order condition.
"""

from __future__ import annotations

from dataclasses import dataclass, field


@dataclass(frozen=True)
class Tableau:
    """An explicit Runge-Kutta method.

    k_i = g(t + c_i dt, z + dt sum_j a_ij k_j), z_next = z + dt sum_i b_i k_i.

    Attributes:
        a: rows of the stage matrix below its diagonal, without the empty first one.
        b: weights of the solution.
        c: nodes of the stages after the first.
        order: of the solution.
        error: b minus the weights of the embedded method; empty where there is none.
        embedded: the order of the embedded method.
        dense: weights d_ji of the continuous extension. With the cubic H of Hermite, which z,
            z_next and the velocities there determine, z(t + s dt) = H(s) + s^2 (1 - s)^2 (D_1 + s
            (D_2 + (1 - s) (D_3 + ...))), where D_j = dt sum_i d_ji k_i: H alone where empty. The
            velocity at the end follows the stages where it is not one of them.
        more_a: rows of the stages after the last that only the continuous extension needs.
        more_c: their nodes.
        fsal: the last stage is the first of the next step.
        rows: all combinations of a step in their order: the stages', that of the solution where it
            is not the last of them, and that of the error.
    """

    a: tuple[tuple[float, ...], ...]
    b: tuple[float, ...]
    c: tuple[float, ...]
    order: int
    error: tuple[float, ...] = ()
    embedded: int = 0
    dense: tuple[tuple[float, ...], ...] = ()
    more_a: tuple[tuple[float, ...], ...] = ()
    more_c: tuple[float, ...] = ()
    fsal: bool = field(init=False)
    rows: tuple[tuple[float, ...], ...] = field(init=False)

    def __post_init__(self) -> None:
        # Kept, for every step asks; and no cached_property, whose lock a compiler cannot trace.
        fsal = bool(self.a) and self.a[-1] == self.b[:-1] and self.b[-1] == 0
        object.__setattr__(self, "fsal", fsal)
        others = (() if fsal else (self.b,), (self.error,) if self.error else ())
        rows = sum(others, self.a)
        object.__setattr__(self, "rows", rows)


# Hairer, Norsett, Wanner, Solving Ordinary Differential Equations I (1993), section II.1: Euler;
# midpoint (Runge), (1.4); Heun's trapezoidal rule; the method of Kutta, table 1.2.
EULER = Tableau(a=(), b=(1.0,), c=(), order=1)
MIDPOINT = Tableau(a=((1 / 2,),), b=(0.0, 1.0), c=(1 / 2,), order=2)
HEUN = Tableau(a=((1.0,),), b=(1 / 2, 1 / 2), c=(1.0,), order=2)
HEUN3 = Tableau(a=((1 / 3,), (0.0, 2 / 3)), b=(1 / 4, 0.0, 3 / 4), c=(1 / 3, 2 / 3), order=3)
RK4 = Tableau(
    a=((1 / 2,), (0.0, 1 / 2), (0.0, 0.0, 1.0)),
    b=(1 / 6, 1 / 3, 1 / 3, 1 / 6),
    c=(1 / 2, 1 / 2, 1.0),
    order=4,
)
# The 3/8 rule of Kutta, the other method of table 1.2.
RK38 = Tableau(
    a=((1 / 3,), (-1 / 3, 1.0), (1.0, -1.0, 1.0)),
    b=(1 / 8, 3 / 8, 3 / 8, 1 / 8),
    c=(1 / 3, 2 / 3, 1.0),
    order=4,
)

# Heun's trapezoidal rule with Euler's method in it.
ADAPTIVE_HEUN = Tableau(
    a=((1.0,),), b=(1 / 2, 1 / 2), c=(1.0,), order=2, error=(-1 / 2, 1 / 2), embedded=1
)

# Bogacki, Shampine, A 3(2) pair of Runge-Kutta formulas, Appl. Math. Lett. 2 (1989), p. 321-325.
BOSH3 = Tableau(
    a=((1 / 2,), (0.0, 3 / 4), (2 / 9, 1 / 3, 4 / 9)),
    b=(2 / 9, 1 / 3, 4 / 9, 0.0),
    c=(1 / 2, 3 / 4, 1.0),
    order=3,
    error=(2 / 9 - 7 / 24, 1 / 3 - 1 / 4, 4 / 9 - 1 / 3, -1 / 8),
    embedded=2,
)

# Fehlberg, Low-order classical Runge-Kutta formulas with stepsize control, NASA TR R-315 (1969),
# RK1(2), of which the solution of order 2 goes on.
FEHLBERG21 = Tableau(
    a=((1 / 2,), (1 / 256, 255 / 256)),
    b=(1 / 512, 255 / 256, 1 / 512),
    c=(1 / 2, 1.0),
    order=2,
    error=(-1 / 512, 0.0, 1 / 512),
    embedded=1,
)

# The same, table III, formula 2. Dense output: with the velocity at the end as a seventh stage the
# order conditions leave one weight free; at -11/8 the error of order 5 is nowhere above that of the
# step.
FEHLBERG45 = Tableau(
    a=(
        (1 / 4,),
        (3 / 32, 9 / 32),
        (1932 / 2197, -7200 / 2197, 7296 / 2197),
        (439 / 216, -8.0, 3680 / 513, -845 / 4104),
        (-8 / 27, 2.0, -3544 / 2565, 1859 / 4104, -11 / 40),
    ),
    b=(25 / 216, 0.0, 1408 / 2565, 2197 / 4104, -1 / 5, 0.0),
    c=(1 / 4, 3 / 8, 12 / 13, 1.0, 1 / 2),
    order=4,
    error=(-1 / 360, 0.0, 128 / 4275, 2197 / 75240, -1 / 50, -2 / 55),
    embedded=5,
    dense=((-953 / 1152, 0.0, 2632 / 855, -116441 / 21888, 311 / 160, -11 / 8, 5 / 2),),
)

# Dormand, Prince, A family of embedded Runge-Kutta formulae, J. Comput. Appl. Math. 6 (1980), p.
# 19-26, table 2: RK5(4)7M. Dense output: Hairer, Norsett, Wanner, Solving Ordinary Differential
# Equations I (1993), section II.6, after Shampine (1986).
DOPRI5 = Tableau(
    a=(
        (1 / 5,),
        (3 / 40, 9 / 40),
        (44 / 45, -56 / 15, 32 / 9),
        (19372 / 6561, -25360 / 2187, 64448 / 6561, -212 / 729),
        (9017 / 3168, -355 / 33, 46732 / 5247, 49 / 176, -5103 / 18656),
        (35 / 384, 0.0, 500 / 1113, 125 / 192, -2187 / 6784, 11 / 84),
    ),
    b=(35 / 384, 0.0, 500 / 1113, 125 / 192, -2187 / 6784, 11 / 84, 0.0),
    c=(1 / 5, 3 / 10, 4 / 5, 8 / 9, 1.0, 1.0),
    order=5,
    error=(71 / 57600, 0.0, -71 / 16695, 71 / 1920, -17253 / 339200, 22 / 525, -1 / 40),
    embedded=4,
    dense=(
        (
            -12715105075 / 11282082432,
            0.0,
            87487479700 / 32700410799,
            -10690763975 / 1880347072,
            701980252875 / 199316789632,
            -1453857185 / 822651844,
            69997945 / 29380423,
        ),
    ),
)

# Tsitouras, Runge-Kutta pairs of order 5(4) satisfying only the first column simplifying
# assumption, Comput. Math. Appl. 62 (2011), p. 770-775, table 1. The sign of the last error weight
# is corrected. Dense output: the coefficients of s^4 in the paper's b_i(s), for these polynomials
# meet the values and velocities at both ends.
TSIT5 = Tableau(
    a=(
        (0.161,),
        (-0.008480655492356989, 0.335480655492357),
        (2.8971530571054935, -6.359448489975075, 4.3622954328695815),
        (5.325864828439257, -11.748883564062828, 7.4955393428898365, -0.09249506636175525),
        (
            5.86145544294642,
            -12.92096931784711,
            8.159367898576159,
            -0.071584973281401,
            -0.028269050394068383,
        ),
        (
            0.09646076681806523,
            0.01,
            0.4798896504144996,
            1.379008574103742,
            -3.290069515436081,
            2.324710524099774,
        ),
    ),
    b=(
        0.09646076681806523,
        0.01,
        0.4798896504144996,
        1.379008574103742,
        -3.290069515436081,
        2.324710524099774,
        0.0,
    ),
    c=(0.161, 0.327, 0.9, 0.9800255409045097, 1.0, 1.0),
    order=5,
    error=(
        -0.00178001105222577714,
        -0.0008164344596567469,
        0.007880878010261995,
        -0.1447110071732629,
        0.5823571654525552,
        -0.45808210592918697,
        1 / 66,
    ),
    embedded=4,
    dense=(
        (
            -1.0530884977290216,
            0.1017,
            2.490627285651252793,
            -16.54810288924490272,
            47.37952196281928122,
            -34.87065786149660974,
            2.5,
        ),
    ),
)
