"""Registration: light, for nothing is imported until a name is used."""

from __future__ import annotations

from typing import TYPE_CHECKING

from implicitcore import hookimpl

if TYPE_CHECKING:
    from implicitcore.extend import Registrar

IMPLICITCORE_API = 1

_PARTS = {
    "ode_solver": (
        ("rk45", "explicit:RK45", "Dormand-Prince, order 5(4)"),
        ("rk23", "explicit:RK23", "Bogacki-Shampine, order 3(2)"),
        ("dop853", "explicit:DOP853", "Dormand-Prince, order 8(5, 3)"),
        ("radau", "stiff:Radau", "implicit Runge-Kutta, order 5, for stiff systems"),
        ("bdf", "stiff:BDF", "backward differentiation, orders 1 to 5, for stiff systems"),
        ("lsoda", "stiff:LSODA", "Adams or backward differentiation, chosen on the way"),
    ),
    "root_solver": (
        ("hybr", "minpack:Hybr", "Powell's hybrid method (MINPACK)"),
        ("lm", "minpack:LM", "Levenberg-Marquardt (MINPACK)"),
        ("krylov", "quasi_newton:Krylov", "Newton-Krylov, matrix-free"),
        ("broyden1", "quasi_newton:Broyden1", "Broyden's good method"),
        ("broyden2", "quasi_newton:Broyden2", "Broyden's bad method"),
        ("anderson", "quasi_newton:Anderson", "Anderson mixing"),
        ("df-sane", "simple:DFSane", "spectral residual, derivative-free"),
        ("linearmixing", "simple:LinearMixing", "damped iteration with one factor"),
        ("diagbroyden", "simple:DiagBroyden", "Broyden's method with a diagonal Jacobian"),
        (
            "excitingmixing",
            "simple:ExcitingMixing",
            "damped iteration with a factor for each entry",
        ),
    ),
}


@hookimpl
def implicitcore_register(registry: Registrar) -> None:
    """Register the solvers."""
    for kind, parts in _PARTS.items():
        for name, target, summary in parts:
            registry.register(
                kind,
                f"scipy-{name}",
                f"implicitcore_scipy.{target}",
                summary=summary,
                requires=["scipy"],
            )
