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
    (
        "augmented_neural_ode",
        "neural_ode:AugmentedNeuralODE",
        "a Neural ODE with further channels, which begin at zero",
    ),
    ("homoode", "homoode:HomoODE", "dz/dt = F(z; c) from a start that all samples share and learn"),
    ("multiscale_deq", "multiscale:MultiscaleDEQ", "a DEQ at several resolutions"),
    (
        "multiscale_continuous_deq",
        "multiscale:MultiscaleContinuousDEQ",
        "a continuous DEQ at several resolutions",
    ),
    ("multiscale_skip_deq", "multiscale:MultiscaleSkipDEQ", "a Skip DEQ at several resolutions"),
    (
        "multiscale_skip_reg_deq",
        "multiscale:MultiscaleSkipRegDEQ",
        "a Skip Reg DEQ at several resolutions",
    ),
    (
        "multiscale_neural_ode",
        "multiscale:MultiscaleNeuralODE",
        "a Neural ODE at several resolutions, from zero",
    ),
)

_CELLS = (
    ("contractive", "contractive:ContractiveCell", "tanh(W z + b + x) with a norm of W below 1"),
    ("monotone", "monotone:MonotoneCell", "the equilibrium of a monotone operator, unique"),
    (
        "causal-transformer",
        "transformer:CausalTransformerCell",
        "a causal transformer block with its input added at each evaluation",
    ),
    ("paper-mlp", "paper_mlp:PaperMLP", "relu(W z) + relu(U x), for MNIST"),
    ("multiscale", "multiscale:MultiscaleCell", "blocks at several resolutions and their exchange"),
    ("multiscale-tiny", "multiscale:MultiscaleTiny", "two resolutions, for CIFAR-10"),
    ("multiscale-large", "multiscale:MultiscaleLarge", "four resolutions, for CIFAR-10"),
    ("multiscale-imagenet", "multiscale:MultiscaleImageNet", "four resolutions, for ImageNet"),
    ("homoode", "homoode:HomoODEField", "the vector field of HomoODE"),
    ("homoode-cifar10", "homoode:HomoODECifar10", "the field of HomoODE for CIFAR-10"),
    ("homoode-cifar100", "homoode:HomoODECifar100", "the field of HomoODE for CIFAR-100"),
    (
        "homoode-tiny-imagenet",
        "homoode:HomoODETinyImageNet",
        "the field of HomoODE for Tiny ImageNet",
    ),
)


@hookimpl
def implicitcore_register(registry: Registrar) -> None:
    """Register the layers and the cells."""
    for name, target, summary in _LAYERS:
        registry.register("layer", name, f"implicitcore_layers.{target}", summary=summary)
    for name, target, summary in _CELLS:
        registry.register("cell", name, f"implicitcore_layers.cells.{target}", summary=summary)
