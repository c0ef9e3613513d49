"""Skip DEQ: an explicit prediction, then an implicit correction."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Unpack, final

from torch import Tensor

from implicitcore import (
    InitialGuess,
    OneStep,
    Predictor,
    RootSolver,
    SolveResult,
    SteadyState,
    skip_loss,
)
from implicitcore.extend import LayerOption, LayerOptions, OptionOf, Shape, Spec, Tolerance
from implicitcore_layers.deq import Equilibrium


class SkipOptions(LayerOptions, total=False):
    """The options of the Skip DEQs beside their start."""

    root_solver: RootSolver | Spec
    weight: float


class Skip(Equilibrium):
    """An equilibrium whose loss gains weight x mean ``|z - z0|``, with gradient to both ends.

    Arguments:
        cell: f, a module or function of (z, x) that returns a state shaped like z.
        start: where z0 comes from.
        root_solver: default: to the steady state; any root solver will do.
        weight: of the regulariser.
        **options: those of every layer.
    """

    weight = LayerOption[float]("weight")

    def __init__(
        self,
        cell: Callable[[Any, Any], Any],
        start: InitialGuess,
        *,
        root_solver: RootSolver | Spec = SteadyState(),
        weight: Tolerance = 0.01,
        **options: Unpack[LayerOptions],
    ) -> None:
        super().__init__(cell, start, root_solver=root_solver, **options)
        self.weight = weight

    def first_update(self, z: Any, x: Any) -> Any:
        """f(z, x) of the layer's dynamics, whichever they are by then."""
        return self.dynamics.update(z, x)

    def regularizer(self, solution: SolveResult) -> Tensor:
        """Weight x mean ``|z - z0|``."""
        return self.weight * skip_loss(solution)


@final
class SkipDEQ(Skip):
    """z0 = predictor(x), then the equilibrium z = f(z, x) from there.

    The loss gains weight x mean ``|z - z0|``. There is no stop-gradient in that term: it also draws
    the equilibrium towards the prediction. The predictor learns from it alone, for the solve begins
    from a detached z0.

    Arguments:
        cell: f, a module or function of (z, x) that returns a state shaped like z.
        predictor: a module of x that returns z0.
        root_solver: default: to the steady state; any root solver will do.
        weight: of the regulariser.
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
class SkipRegDEQ(Skip):
    """Skip DEQ without a predictor.

    z0 = f(0, x), and the same term weight x mean ``|z - z0|`` in the loss.

    Arguments:
        cell: f, a module or function of (z, x) that returns a state shaped like z.
        shape: of one sample's state: sizes, or for a state of several tensors a tuple or dict of
            shapes; None is that of x.
        root_solver: default: to the steady state; any root solver will do.
        weight: of the regulariser.
        **options: those of every layer.

    Reference:
        Pal, Edelman, Rackauckas, Continuous Deep Equilibrium Models, arXiv 2201.12240.
    """

    shape = OptionOf("start", "shape")

    def __init__(
        self,
        cell: Callable[[Any, Any], Any],
        *,
        shape: Shape | None = None,
        **options: Unpack[SkipOptions],
    ) -> None:
        super().__init__(cell, OneStep(self.first_update, shape), **options)
