"""The parts of the core, registered through the same hook as everybody's."""

from __future__ import annotations

from typing import TYPE_CHECKING

from implicitcore.registry.hookspecs import API_VERSION, hookimpl

if TYPE_CHECKING:
    from implicitcore.registry.part import Registrar

IMPLICITCORE_API = API_VERSION

_PARTS = {
    "dynamics": {
        "fixed_point": (
            "dynamics.fixed_point:FixedPoint",
            "dz/dt = f(z, x) - z: the fixed points of a cell",
        ),
        "vector_field": ("dynamics.vector_field:VectorField", "dz/dt = v(t, z, x)"),
    },
    "root_solver": {
        "picard": ("root_solvers.picard:Picard", "damped fixed-point iteration"),
        "anderson": ("root_solvers.anderson:Anderson", "Anderson acceleration"),
        "broyden": ("root_solvers.broyden:Broyden", "Broyden's method with limited memory"),
        "newton": (
            "root_solvers.newton:Newton",
            "Newton's method with a line search, dense or matrix-free",
        ),
        "pseudo_transient": (
            "root_solvers.pseudo_transient:PseudoTransient",
            "implicit Euler steps that grow into Newton's",
        ),
        "homotopy": (
            "root_solvers.homotopy:Homotopy",
            "follow a path from an easy problem, then correct",
        ),
        "chain": (
            "root_solvers.chain:Chain",
            "solvers in a row, each for the samples that the last one left",
        ),
        "gmres": ("root_solvers.gmres:GMRES", "GMRES, for linear systems: the backward pass"),
        "bicgstab": (
            "root_solvers.bicgstab:BiCGSTAB",
            "BiCGSTAB, for linear systems, in little memory",
        ),
        "steady_state": (
            "root_solvers.steady_state:SteadyState",
            "integrate dz/dt = g(z, x) until it stands still",
        ),
    },
    "ode_solver": {
        "euler": ("ode_solvers.runge_kutta:Euler", "explicit Euler, order 1"),
        "midpoint": ("ode_solvers.runge_kutta:Midpoint", "explicit midpoint rule, order 2"),
        "heun": ("ode_solvers.runge_kutta:Heun", "Heun's method, order 2"),
        "heun3": ("ode_solvers.runge_kutta:Heun3", "Heun's third-order method"),
        "rk4": ("ode_solvers.runge_kutta:RK4", "classical Runge-Kutta, order 4"),
        "bosh3": ("ode_solvers.runge_kutta:Bosh3", "Bogacki-Shampine, order 3, adaptive"),
        "fehlberg45": ("ode_solvers.runge_kutta:Fehlberg45", "Fehlberg, order 4, adaptive"),
        "dopri5": ("ode_solvers.runge_kutta:Dopri5", "Dormand-Prince, order 5, adaptive"),
        "tsit5": ("ode_solvers.runge_kutta:Tsit5", "Tsitouras, order 5, adaptive"),
        "dop853": ("ode_solvers.runge_kutta:DOP853", "Dormand-Prince, order 8, adaptive"),
        "implicit_euler": (
            "ode_solvers.implicit_runge_kutta:ImplicitEuler",
            "implicit Euler, order 1, L-stable",
        ),
        "trapezoid": (
            "ode_solvers.implicit_runge_kutta:Trapezoid",
            "trapezoidal rule, order 2, A-stable",
        ),
        "esdirk": (
            "ode_solvers.implicit_runge_kutta:ESDIRK",
            "Kennedy-Carpenter ESDIRK, order 4, adaptive, for stiff dynamics",
        ),
        "adams": (
            "ode_solvers.adams:Adams",
            "Adams predictor-corrector, variable step and order, one evaluation a step",
        ),
    },
    "gradient": {
        "implicit": (
            "gradients.implicit:Implicit",
            "the implicit function theorem at the solution",
        ),
        "neumann": (
            "gradients.neumann:Neumann",
            "the implicit gradient with the series cut to its first terms",
        ),
        "phantom": ("gradients.phantom:Phantom", "a few damped steps with a graph"),
        "shine": (
            "gradients.shine:Shine",
            "the implicit gradient with the inverse that a forward Broyden solve estimated",
        ),
        "unrolled": ("gradients.unrolled:Unrolled", "backpropagation through every step"),
        "adjoint": (
            "gradients.adjoint:Adjoint",
            "the adjoint equation, integrated backwards in time",
        ),
        "checkpointed": (
            "gradients.checkpointed:Checkpointed",
            "backpropagation through every step of a trajectory, in bounded memory",
        ),
    },
    "backend": {
        "torch": ("backends.torch:TorchBackend", "plain torch operations: the reference"),
    },
}


@hookimpl
def implicitcore_register(registry: Registrar) -> None:
    """Register the parts of the core."""
    for kind, parts in _PARTS.items():
        for name, (target, summary) in parts.items():
            registry.register(kind, name, f"implicitcore.{target}", summary=summary)
