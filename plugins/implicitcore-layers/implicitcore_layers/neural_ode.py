"""The Neural ODE."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Unpack, final

from implicitcore import (
    Adjoint,
    GradientStrategy,
    Identity,
    ImplicitLayer,
    InitialGuess,
    ODESolver,
    Tsit5,
    VectorField,
)
from implicitcore.extend import CallOptions, LayerOption, LayerOptions, OptionOf, Positive, Spec


class FlowOptions(LayerOptions, total=False):
    """The options of every layer that integrates a vector field."""

    ode_solver: ODESolver | Spec
    horizon: float


class Flow(ImplicitLayer):
    """dz/dt = v(t, z, x) from t = 0 to the horizon: what the layers of this family share.

    Arguments:
        dynamics: the vector field.
        start: where z0 comes from.
        ode_solver: integrates.
        gradient: default the adjoint, whose memory does not grow with the steps.
        horizon: the end time.
        **options: those of every layer.
    """

    solver = ode_solver = LayerOption[ODESolver]("ode_solver")

    def __init__(  # noqa: PLR0913 - keyword options
        self,
        dynamics: VectorField,
        start: InitialGuess,
        *,
        ode_solver: ODESolver | Spec = Tsit5(),
        gradient: GradientStrategy | Spec | None = Adjoint(),
        horizon: Positive = 1.0,
        **options: Unpack[CallOptions],
    ) -> None:
        super().__init__(
            dynamics, solver=ode_solver, gradient=gradient, start=start, horizon=horizon, **options
        )


@final
class NeuralODE(Flow):
    """dz/dt = f(z, x) from z(0) = x; the output is z(horizon).

    Arguments:
        cell: f, a module or function of (z, x); of (t, z, x) where not ``autonomous``, with t as
            ``[batch, 1, ..., 1]``.
        ode_solver: integrates.
        gradient: default the adjoint, whose memory does not grow with the steps.
        horizon: the end time.
        autonomous: the cell does not take the time.
        backend: the kernels of the inner loop.
        on_failure: what becomes of samples that fail: ``"warn"``, ``"raise"``, ``"mask"`` or
            ``"ignore"``; see
            :class:`ImplicitLayer`.

    Reference:
        Chen, Rubanova, Bettencourt, Duvenaud, Neural Ordinary Differential Equations, arXiv
        1806.07366.
    """

    cell = OptionOf("dynamics", "cell", "field")
    autonomous = OptionOf("dynamics", "autonomous")

    def __init__(
        self,
        cell: Callable[..., Any],
        *,
        autonomous: bool = True,
        **options: Unpack[FlowOptions],
    ) -> None:
        super().__init__(VectorField(cell, autonomous=autonomous), Identity(), **options)
