"""Registration: light, for nothing is imported until a name is used."""

from __future__ import annotations

from typing import TYPE_CHECKING

from implicitcore import hookimpl

if TYPE_CHECKING:
    from implicitcore import Registrar

IMPLICITCORE_API = 1


@hookimpl
def implicitcore_register(registry: Registrar) -> None:
    """Register the layers."""
    registry.register("layer", "deq", "implicitcore_layers.deq:DEQ", summary="Deep Equilibrium Model: z = f(z, x)")
    registry.register(
        "layer",
        "continuous_deq",
        "implicitcore_layers.continuous_deq:ContinuousDEQ",
        summary="the equilibrium as the steady state of dz/dt = f(z, x) - z",
    )
    registry.register("layer", "skip_deq", "implicitcore_layers.skip_deq:SkipDEQ", summary="an explicit prediction, then the equilibrium from it")
    registry.register(
        "layer", "skip_reg_deq", "implicitcore_layers.skip_deq:SkipRegDEQ", summary="Skip DEQ whose cell predicts for itself: z0 = f(0, x)"
    )
    registry.register("layer", "neural_ode", "implicitcore_layers.neural_ode:NeuralODE", summary="dz/dt = f(z, x) from z(0) = x to the horizon")
    registry.register(
        "layer", "homoode", "implicitcore_layers.homoode:HomoODE", summary="dz/dt = F(z; c) from a start that all samples share and learn"
    )
