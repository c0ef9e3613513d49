"""Multiscale layers: equilibria and flows of a state at several resolutions."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Unpack, final

from implicitcore import (
    Anderson,
    InitialGuess,
    OneStep,
    Predictor,
    Pyramid,
    RootSolver,
    SteadyState,
    VectorField,
)
from implicitcore.extend import Count, LayerOptions, OptionOf, Spec
from implicitcore_layers.deq import Equilibrium
from implicitcore_layers.neural_ode import Flow, FlowOptions
from implicitcore_layers.skip_deq import Skip, SkipOptions


@final
class MultiscaleDEQ(Equilibrium):
    """z = f(z, x) at several resolutions at once, found by a root solver from z0 = 0.

    The state is a tuple of tensors, the finest first: for an x ``[batch, ..., height, width]`` its
    i-th is ``[batch, channels[i], ceil(height / 2^i), ceil(width / 2^i)]``. The output is that
    tuple.

    Arguments:
        cell: f, a module or function of (z, x) that returns a state shaped like z, as
            :class:`MultiscaleCell` does.
        channels: of each resolution, the finest first.
        root_solver: finds the equilibrium; its tolerance is ``|f(z) - z| / |f(z)|`` per sample, in
            the 2-norm over all resolutions.
        **options: those of every layer.

    Raises:
        InputError: from a call, where x is no image or the cell returns another state.

    Reference:
        Bai, Koltun, Kolter, Multiscale Deep Equilibrium Models, arXiv 2006.08656.
    """

    channels = OptionOf("start", "channels")

    def __init__(
        self,
        cell: Callable[[Any, Any], Any],
        *,
        channels: tuple[Count, ...],
        root_solver: RootSolver | Spec = Anderson(),
        **options: Unpack[LayerOptions],
    ) -> None:
        super().__init__(cell, Pyramid(channels), root_solver=root_solver, **options)


@final
class MultiscaleContinuousDEQ(Equilibrium):
    """:class:`MultiscaleDEQ` as an infinite-time ODE: dz/dt = f(z, x) - z from z(0) = 0.

    Arguments:
        cell: f, a module or function of (z, x) that returns a state shaped like z.
        channels: of each resolution, the finest first.
        root_solver: ``SteadyState`` with any ODE solver.
        **options: those of every layer.

    Raises:
        InputError: from a call, where x is no image or the cell returns another state.

    Reference:
        Pal, Edelman, Rackauckas, Continuous Deep Equilibrium Models, arXiv 2201.12240.
    """

    channels = OptionOf("start", "channels")

    def __init__(
        self,
        cell: Callable[[Any, Any], Any],
        *,
        channels: tuple[Count, ...],
        root_solver: RootSolver | Spec = SteadyState(),
        **options: Unpack[LayerOptions],
    ) -> None:
        super().__init__(cell, Pyramid(channels), root_solver=root_solver, **options)


@final
class MultiscaleSkipDEQ(Skip):
    """:class:`SkipDEQ` at several resolutions: z0 = predictor(x), a tuple, then the equilibrium.

    Arguments:
        cell: f, a module or function of (z, x) that returns a state shaped like z.
        predictor: a module of x that returns z0, a tuple as :class:`MultiscaleDEQ` has it.
        root_solver: default: to the steady state; any root solver will do.
        weight: of the regulariser weight x mean ``|z - z0|``.
        **options: those of every layer.

    Reference:
        Pal, Edelman, Rackauckas, Continuous Deep Equilibrium Models, arXiv 2201.12240.
    """

    predictor = OptionOf("start", "predictor")

    def __init__(
        self,
        cell: Callable[[Any, Any], Any],
        predictor: Callable[[Any], Any],
        **options: Unpack[SkipOptions],
    ) -> None:
        super().__init__(cell, Predictor(predictor), **options)


@final
class MultiscaleSkipRegDEQ(Skip):
    """:class:`SkipRegDEQ` at several resolutions: z0 = f(0, x), then the equilibrium.

    Arguments:
        cell: f, a module or function of (z, x) that returns a state shaped like z.
        channels: of each resolution, the finest first.
        root_solver: default: to the steady state; any root solver will do.
        weight: of the regulariser weight x mean ``|z - z0|``.
        **options: those of every layer.

    Raises:
        InputError: from a call, where x is no image or the cell returns another state.

    Reference:
        Pal, Edelman, Rackauckas, Continuous Deep Equilibrium Models, arXiv 2201.12240.
    """

    channels = OptionOf("origin", "channels")

    def __init__(
        self,
        cell: Callable[[Any, Any], Any],
        *,
        channels: tuple[Count, ...],
        **options: Unpack[SkipOptions],
    ) -> None:
        start = OneStep(self.first_update, origin=Pyramid(channels))
        super().__init__(cell, start, **options)

    @property
    def origin(self) -> InitialGuess:
        """Where the first step is taken from."""
        return getattr(self.start, "origin", self.start)


@final
class MultiscaleNeuralODE(Flow):
    """dz/dt = f(z, x) at several resolutions from z(0) = 0; the output is z(horizon), a tuple.

    Arguments:
        cell: f, a module or function of (z, x) that returns a state shaped like z.
        channels: of each resolution, the finest first.
        **options: those of :class:`NeuralODE` beside its start.

    Raises:
        InputError: from a call, where x is no image or the cell returns another state.

    Reference:
        Pal, Edelman, Rackauckas, Continuous Deep Equilibrium Models, arXiv 2201.12240.
    """

    cell = OptionOf("dynamics", "cell", "field")
    channels = OptionOf("start", "channels")

    def __init__(
        self,
        cell: Callable[[Any, Any], Any],
        *,
        channels: tuple[Count, ...],
        **options: Unpack[FlowOptions],
    ) -> None:
        super().__init__(VectorField(cell, autonomous=True), Pyramid(channels), **options)
