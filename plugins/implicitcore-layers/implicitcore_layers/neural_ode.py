"""The Neural ODE."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Unpack, final

from implicitcore import (
    Adjoint,
    Augmented,
    Checkpointed,
    GradientStrategy,
    Identity,
    ImplicitLayer,
    InitialGuess,
    ODESolver,
    Tsit5,
    VectorField,
)
from implicitcore.extend import (
    CallOptions,
    Count,
    LayerOption,
    LayerOptions,
    OptionOf,
    Positive,
    Spec,
    StepwiseODESolver,
    takes_time,
)


class FlowOptions(LayerOptions, total=False):
    """The options of every layer that integrates a vector field."""

    ode_solver: ODESolver | Spec
    horizon: float


def field_of(cell: Callable[..., Any], autonomous: bool | None) -> VectorField:
    """The vector field of a cell, which takes (z, x) where its signature does not say."""
    if autonomous is None:
        autonomous = not takes_time(cell, otherwise=False)
    return VectorField(cell, autonomous=autonomous)


def _default_gradient(layer: Flow) -> GradientStrategy:
    return Checkpointed() if isinstance(layer.solver, StepwiseODESolver) else Adjoint()


class Flow(ImplicitLayer):
    """dz/dt = v(t, z, x) from t = 0 to the horizon: what the layers of this family share.

    Arguments:
        dynamics: the vector field.
        start: where z0 comes from.
        ode_solver: integrates.
        gradient: default ``Checkpointed()``, the exact gradient of the steps in the memory of a few
            states; ``Adjoint()`` with a solver that shows no steps.
        horizon: the end time.
        **options: those of every layer.
    """

    solver = ode_solver = LayerOption[ODESolver]("ode_solver")
    gradient = LayerOption[GradientStrategy]("gradient", _default_gradient)

    def __init__(  # noqa: PLR0913 - keyword options
        self,
        dynamics: VectorField,
        start: InitialGuess | Spec | None,
        *,
        ode_solver: ODESolver | Spec = Tsit5(),
        gradient: GradientStrategy | Spec | None = None,
        horizon: Positive = 1.0,
        **options: Unpack[CallOptions],
    ) -> None:
        super().__init__(
            dynamics, solver=ode_solver, gradient=gradient, start=start, horizon=horizon, **options
        )


@final
class NeuralODE(Flow):
    """dz/dt = f(z, x) from z(0) = x, or from another start; the output is z(horizon).

    Arguments:
        cell: f, a module or function of (z, x), or of (t, z, x) with t as ``[batch, 1, ..., 1]``.
        start: where z(0) comes from, by default x; ``"zeros"`` for a field that takes x at each
            time, ``{"name": "learned", "channels": 64}``, or any other.
        ode_solver: integrates.
        gradient: default ``Checkpointed()``, the exact gradient of the steps in the memory of a few
            states; ``Adjoint()`` with a solver that shows no steps.
        horizon: the end time.
        autonomous: the cell does not take the time; None is what its signature says.
        backend: the kernels of the inner loop.
        on_failure: what becomes of samples that fail: ``"warn"``, ``"raise"``, ``"mask"`` or
            ``"ignore"``; see
            :class:`ImplicitLayer`.

    Reference:
        Chen, Rubanova, Bettencourt, Duvenaud, Neural Ordinary Differential Equations, arXiv
        1806.07366; from zero, with x in the field: arXiv 2201.12240.
    """

    cell = OptionOf("dynamics", "cell", "field")
    autonomous = OptionOf("dynamics", "autonomous")
    start = LayerOption[InitialGuess]("start", lambda layer: Identity())

    def __init__(
        self,
        cell: Callable[..., Any],
        *,
        start: InitialGuess | Spec | None = None,
        autonomous: bool | None = None,
        **options: Unpack[FlowOptions],
    ) -> None:
        super().__init__(field_of(cell, autonomous), start, **options)


@final
class AugmentedNeuralODE(Flow):
    """dz/dt = f(z, x) from z(0) = (x, 0); the output is z(horizon), the added channels included.

    The flow of a Neural ODE cannot change how its inputs lie to each other: no trajectory crosses
    another. With further channels, which begin at zero, they pass each other there.

    Arguments:
        cell: f, a module or function of (z, x), or of (t, z, x) with t as ``[batch, 1, ..., 1]``; z
            with the added channels and x without them.
        extra: how many channels are added to x, in its first dimension after the batch.
        ode_solver: integrates.
        gradient: default ``Checkpointed()``, the exact gradient of the steps in the memory of a few
            states; ``Adjoint()`` with a solver that shows no steps.
        horizon: the end time.
        autonomous: the cell does not take the time; None is what its signature says.
        backend: the kernels of the inner loop.
        on_failure: what becomes of samples that fail: ``"warn"``, ``"raise"`` or ``"mask"``; see
            :class:`ImplicitLayer`.

    Raises:
        InputError: from a call, where x is not one tensor ``[batch, channels, ...]``.

    Reference:
        Dupont, Doucet, Teh, Augmented Neural ODEs, arXiv 1904.01681.
    """

    cell = OptionOf("dynamics", "cell", "field")
    autonomous = OptionOf("dynamics", "autonomous")
    extra = OptionOf("start", "extra")

    def __init__(
        self,
        cell: Callable[..., Any],
        *,
        extra: Count,
        autonomous: bool | None = None,
        **options: Unpack[FlowOptions],
    ) -> None:
        super().__init__(field_of(cell, autonomous), Augmented(extra), **options)
