"""What a compiled layer refuses, and the solver of its backward pass."""

from __future__ import annotations

from typing import Any

import torch

from implicitcore.errors import ConfigError, GradientError, InputError
from implicitcore.gradients.checkpointed import Checkpointed
from implicitcore.gradients.implicit import Implicit
from implicitcore.gradients.unrolled import Unrolled
from implicitcore.graph.layer import check_layer
from implicitcore.graph.loop import SOLVERS, check_history
from implicitcore.layers.base import ImplicitLayer
from implicitcore.ode_solvers.base import ODESolver
from implicitcore.root_solvers.base import RootSolver
from implicitcore.root_solvers.gmres import GMRES
from implicitcore.tensors.autocast import ambient

_HOOKS = "_forward_pre_hooks", "_forward_hooks", "_backward_pre_hooks", "_backward_hooks"


def check_call(layer: ImplicitLayer) -> None:
    """Refuse what was assigned since, and a call under autocast.

    Raises:
        ConfigError: of the layer.
        InputError: of autocast.
    """
    check_layer(layer)
    if any(getattr(layer, name) for name in _HOOKS):
        raise ConfigError(
            ["layer: a compiled layer does not call its layer's own hooks: register them on it"]
        )
    if not isinstance(layer.solver, ODESolver):
        _check_gradient(layer.gradient)
    check_autocast()


def adjoint_of(layer: ImplicitLayer, dtype: torch.dtype) -> RootSolver | None:
    """The solver of the layer's backward pass in a state's dtype; None where it has none."""
    gradient = layer.gradient
    return gradient.backward_solver(layer.solver, dtype) if isinstance(gradient, Implicit) else None


def check_autocast() -> None:
    """Refuse a call under autocast.

    Raises:
        InputError: this is one.
    """
    if torch._C._is_any_autocast_enabled() and ambient():
        raise InputError(
            "a compiled layer solves in the dtype of its input, and this is autocast: convert the "
            "layer and its input (layer.bfloat16()), or use the layer as it is"
        )


def check_trajectory(layer: ImplicitLayer) -> None:
    """Refuse a gradient of a trajectory that is none of its steps.

    Raises:
        GradientError: the strategy is another.
    """
    gradient = layer.gradient
    if not isinstance(gradient, Checkpointed) and gradient != Unrolled():
        raise GradientError(
            f"a compiled trajectory has the gradient of its steps, as Checkpointed and Unrolled "
            f"give it, and the layer has {gradient}: give it gradient=Checkpointed(), or call it "
            "under torch.no_grad()"
        )


def _check_gradient(gradient: Any) -> None:
    known = (*SOLVERS, GMRES)
    if not isinstance(gradient, Implicit) or gradient.clip is not None or gradient.iterates:
        raise ConfigError(
            [
                "gradient: a compiled layer takes Implicit without clip and iterates; received "
                f"{gradient}"
            ]
        )
    if gradient.solver is not None and not isinstance(gradient.solver, known):
        names = ", ".join(kind.__name__ for kind in known)
        raise ConfigError(
            [
                f"gradient.solver: {type(gradient.solver).__name__} has no loop in a graph; "
                f"use {names}"
            ]
        )
    check_history(gradient.solver)
