"""HomoODE: the flow of a modified homotopy."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal, Unpack, final

from torch import Tensor

from implicitcore import LearnedInitialGuess, SolveResult, start_loss
from implicitcore.extend import Count, OptionOf, Shape
from implicitcore_layers.neural_ode import Flow, FlowOptions, field_of


@final
class HomoODE(Flow):
    """dz/dt = F(z; c) for t from 0 to the horizon, from a learned z0 that all samples share.

    The output is z(horizon). c = g(x), the features of a stem, is what the layer is called with. z0
    is one value per channel, part of the state_dict; it gets no gradient from the task loss, and
    :meth:`regularizer` fits it to the detached outputs, so that the path from it is short. It
    begins at -1 and 1 in turn: a field that opens with a normalisation is singular at zero. There
    is no residual: the horizon ends the solve.

    Arguments:
        cell: F, a module or function of (z, c), or of (t, z, c) with t as ``[batch, 1, ..., 1]``,
            that returns a state shaped like z.
        channels: of the state, its first dimension after the batch; for a state of several tensors
            one number for each.
        init: what z0 begins at: ``"signs"`` is -1 and 1 in turn, ``"normal"`` draws from a standard
            normal distribution; or a constant, or the values themselves.
        ode_solver: integrates.
        gradient: default ``Checkpointed()``, the exact gradient of the steps in the memory of a few
            states; ``Adjoint()`` with a solver that shows no steps.
        horizon: the end time.
        shape: of one sample's state; None is that of c.
        autonomous: the cell does not take the time; None is what its signature says.
        backend: the kernels of the inner loop.
        on_failure: what becomes of samples that fail: ``"warn"``, ``"raise"``, ``"mask"`` or
            ``"ignore"``; see
            :class:`ImplicitLayer`.

    Reference:
        Ding, Cui, Wang, Shi, Two Sides of The Same Coin: Bridging Deep Equilibrium Models and
        Neural ODEs via Homotopy Continuation, arXiv 2310.09583.
    """

    cell = OptionOf("dynamics", "cell", "field")
    autonomous = OptionOf("dynamics", "autonomous")
    channels = OptionOf("start", "channels")
    init = OptionOf("start", "init")
    shape = OptionOf("start", "shape")

    def __init__(
        self,
        cell: Callable[..., Any],
        *,
        channels: Count | tuple[Count, ...],
        init: Literal["signs", "normal"] | float | tuple[float, ...] = "signs",
        shape: Shape | None = None,
        autonomous: bool | None = None,
        **options: Unpack[FlowOptions],
    ) -> None:
        start = LearnedInitialGuess(channels, shape, init)
        super().__init__(field_of(cell, autonomous), start, **options)

    def regularizer(self, solution: SolveResult) -> Tensor:
        """smooth-L1 of z0 to the detached z(horizon)."""
        return start_loss(solution)
