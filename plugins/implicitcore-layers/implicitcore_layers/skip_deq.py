"""Skip DEQ: an explicit prediction, then an implicit correction."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, final

from torch import Tensor

from implicitcore import OneStep, Predictor, RootSolver, SolveResult, SteadyState, skip_loss
from implicitcore.extend import Tolerance
from implicitcore_layers.deq import DEQ


class _Skip(DEQ):
    """A DEQ whose loss gains weight x mean ``|z - z0|``, with gradient to both ends."""

    def __init__(
        self,
        cell: Callable[[Any, Any], Any],
        *,
        root_solver: RootSolver = SteadyState(),
        weight: Tolerance = 0.01,
        **options: Any,
    ) -> None:
        super().__init__(cell, root_solver=root_solver, **options)
        self.weight = weight

    def regularizer(self, solution: SolveResult) -> Tensor:
        """Weight x mean ``|z - z0|``."""
        return self.weight * skip_loss(solution)


@final
class SkipDEQ(_Skip):
    """z0 = predictor(x), then the equilibrium z = f(z, x) from there.

    The loss gains weight x mean ``|z - z0|``. There is no stop-gradient in that term: it also draws
    the equilibrium towards the prediction. The predictor learns from it alone, for the solve begins
    from a detached z0.

    Arguments:
        cell: f, a module or function of (z, x) that returns a state shaped like z.
        predictor: a module of x that returns z0.
        **options: root_solver (default: to the steady state; any root solver will do), weight (of
            the regulariser, default 0.01), and those of :class:`DEQ`.

    Reference:
        Pal, Edelman, Rackauckas, Continuous Deep Equilibrium Models, arXiv 2201.12240.
    """

    def __init__(
        self, cell: Callable[[Any, Any], Any], predictor: Callable[[Any], Any], **options: Any
    ) -> None:
        super().__init__(cell, **options)
        self.start = Predictor(predictor)


@final
class SkipRegDEQ(_Skip):
    """Skip DEQ without a predictor.

    Z0 = f(0, x), and the same term weight x mean ``|z - z0|`` in the loss.

    Arguments:
        cell: f, a module or function of (z, x) that returns a state shaped like z.
        **options: those of :class:`SkipDEQ`.

    Reference:
        Pal, Edelman, Rackauckas, Continuous Deep Equilibrium Models, arXiv 2201.12240.
    """

    def __init__(self, cell: Callable[[Any, Any], Any], **options: Any) -> None:
        super().__init__(cell, **options)
        self.start = OneStep(self.dynamics.update, self.shape)
