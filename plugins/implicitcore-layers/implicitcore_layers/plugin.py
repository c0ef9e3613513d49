"""Registration: light, for nothing is imported until a name is used."""

from __future__ import annotations

from typing import TYPE_CHECKING

from implicitcore import hookimpl

if TYPE_CHECKING:
    from implicitcore.extend import Registrar

IMPLICITCORE_API = 1

_LAYERS = (
    ("deq", "deq:DEQ", "Deep Equilibrium Model: z = f(z, x)"),
    (
        "continuous_deq",
        "continuous_deq:ContinuousDEQ",
        "the equilibrium as the steady state of dz/dt = f(z, x) - z",
    ),
    ("skip_deq", "skip_deq:SkipDEQ", "an explicit prediction, then the equilibrium from it"),
    (
        "skip_reg_deq",
        "skip_deq:SkipRegDEQ",
        "Skip DEQ whose cell predicts for itself: z0 = f(0, x)",
    ),
    ("neural_ode", "neural_ode:NeuralODE", "dz/dt = f(z, x) from z(0) = x to the horizon"),
    ("homoode", "homoode:HomoODE", "dz/dt = F(z; c) from a start that all samples share and learn"),
)


@hookimpl
def implicitcore_register(registry: Registrar) -> None:
    """Register the layers."""
    for name, target, summary in _LAYERS:
        registry.register("layer", name, f"implicitcore_layers.{target}", summary=summary)
