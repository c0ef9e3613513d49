"""Registration: light, for nothing is imported until a name is used."""

from __future__ import annotations

from typing import TYPE_CHECKING

from implicitcore import hookimpl

if TYPE_CHECKING:
    from implicitcore.extend import Registrar

IMPLICITCORE_API = 1

_METHODS = (
    ("dopri8", "adaptive:Dopri8", "Dormand-Prince, order 8, adaptive"),
    ("dopri5", "adaptive:Dopri5", "Dormand-Prince, order 5, adaptive"),
    ("bosh3", "adaptive:Bosh3", "Bogacki-Shampine, order 3, adaptive"),
    ("fehlberg2", "adaptive:Fehlberg2", "Runge-Kutta-Fehlberg, order 2, adaptive"),
    ("adaptive_heun", "adaptive:AdaptiveHeun", "Heun-Euler, order 2, adaptive"),
    ("euler", "fixed:Euler", "explicit Euler, order 1"),
    ("midpoint", "fixed:Midpoint", "explicit midpoint rule, order 2"),
    ("heun2", "fixed:Heun2", "Heun's method, order 2"),
    ("heun3", "fixed:Heun3", "Heun's method, order 3"),
    ("rk4", "fixed:RK4", "the 3/8 rule of Runge-Kutta, order 4"),
    ("explicit_adams", "adams:ExplicitAdams", "Adams-Bashforth"),
    ("implicit_adams", "adams:ImplicitAdams", "Adams-Bashforth-Moulton"),
    ("fixed_adams", "adams:FixedAdams", "Adams-Bashforth-Moulton, under its older name"),
    ("scipy_solver", "through_scipy:ScipySolver", "SciPy's solve_ivp, as torchdiffeq calls it"),
)


@hookimpl
def implicitcore_register(registry: Registrar) -> None:
    """Register the methods."""
    for method, target, summary in _METHODS:
        target = f"implicitcore_torchdiffeq.{target}"
        registry.register(
            "ode_solver", f"torchdiffeq-{method}", target, summary=summary, requires=["torchdiffeq"]
        )
