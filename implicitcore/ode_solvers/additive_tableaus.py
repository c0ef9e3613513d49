"""Tableaus of additive Runge-Kutta pairs: an implicit method, and an explicit one beside it.

Kennedy, Carpenter, Additive Runge-Kutta schemes for convection-diffusion-reaction equations, Appl.
Numer. Math. 44 (2003), p. 139-181, appendix C. The tests check every order condition.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

from implicitcore.ode_solvers.implicit_tableaus import ESDIRK436, ImplicitTableau


@dataclass(frozen=True, kw_only=True)
class AdditiveTableau(ImplicitTableau):
    """The implicit method of the stiff part, and the explicit one of the rest.

    Y_i = z + dt sum_{j <= i} a_ij s_j + dt sum_{j < i} e_ij n_j with the stiff part s_j and the
    other n_j at Y_j, and z_next = z + dt sum_i b_i (s_i + n_i): nodes, weights and the embedded
    weights are the same of both.

    Attributes:
        beside: e, the rows of the explicit method; the first is empty.
    """

    beside: tuple[tuple[float, ...], ...]

    @cached_property
    def last(self) -> tuple[float, ...]:
        """What n_i have in z_next and not in the last stage."""
        return tuple(b - e for b, e in zip(self.b, (*self.beside[-1], 0.0), strict=True))

    @cached_property
    def surplus(self) -> tuple[tuple[float, ...], ...]:
        """What n_j have in the implicit method and not in the explicit one, of each stage."""
        return tuple(
            tuple(a - e for a, e in zip(own, (*other, 0.0), strict=True))
            for own, other in zip(self.a, self.beside, strict=True)
        )


_GAMMA = 1767732205903 / 4055673282236
_B = (
    1471266399579 / 7840856788654,
    -4482444167858 / 7529755066697,
    11266239266428 / 11593286722821,
    _GAMMA,
)
_EMBEDDED = (
    2756255671327 / 12835298489170,
    -10771552573575 / 22201958757719,
    9247589265047 / 10645013368117,
    2193209047091 / 5459859503100,
)
ARK324 = AdditiveTableau(
    a=(
        (0.0,),
        (_GAMMA, _GAMMA),
        (2746238789719 / 10658868560708, -640167445237 / 6845629431997, _GAMMA),
        _B,
    ),
    c=(0.0, 2 * _GAMMA, 3 / 5, 1.0),
    order=3,
    error=tuple(b - e for b, e in zip(_B, _EMBEDDED, strict=True)),
    beside=(
        (),
        (2 * _GAMMA,),
        (5535828885825 / 10492691773637, 788022342437 / 10882634858940),
        (
            6485989280629 / 16251701735622,
            -4246266847089 / 9704473918619,
            10755448449292 / 10357097424841,
        ),
    ),
    # Of order 2, the smallest weights that are.
    dense=((0.2938809351308525, 4.029749320973746, -2.674035314450523),),
)
ARK436 = AdditiveTableau(
    a=ESDIRK436.a,
    c=ESDIRK436.c,
    order=4,
    error=ESDIRK436.error,
    beside=(
        (),
        (1 / 2,),
        (13861 / 62500, 6889 / 62500),
        (
            -116923316275 / 2393684061468,
            -2731218467317 / 15368042101831,
            9408046702089 / 11113171139209,
        ),
        (
            -451086348788 / 2902428689909,
            -2682348792572 / 7519795681897,
            12662868775082 / 11960479115383,
            3355817975965 / 11060851509271,
        ),
        (
            647845179188 / 3216320057751,
            73281519250 / 8382639484533,
            552539513391 / 3454668386233,
            3354512671639 / 8306763924573,
            4040 / 17871,
        ),
    ),
    # Of order 3 in both methods, and the smallest weights that are.
    dense=(
        (
            4.4555592920057485,
            2.752741783992711,
            -4.971722633570688,
            3.505537000635699,
            -3.03892833601497,
        ),
        (
            -8.89160923046095,
            -3.3009520288839966,
            18.11953478479734,
            -10.30578941588425,
            3.0675301257472176,
        ),
    ),
)
