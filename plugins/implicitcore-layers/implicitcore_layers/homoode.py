"""HomoODE: the flow of a modified homotopy."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, final

from torch import Tensor

from implicitcore import (
    Adjoint,
    Backend,
    GradientStrategy,
    ImplicitLayer,
    LearnedInitialGuess,
    ODESolver,
    SolveResult,
    TorchBackend,
    Tsit5,
    VectorField,
    start_loss,
)
from implicitcore.extend import Count, OnFailure, Positive


@final
class HomoODE(ImplicitLayer):
    """dz/dt = F(z; c) for t from 0 to the horizon, from a learned z0 that all samples share.

    The output is z(horizon). c = g(x), the features of a stem, is what the layer is called with. z0
    is one value per channel, part of the state_dict; it gets no gradient from the task loss, and
    :meth:`regularizer` fits it to the detached outputs, so that the path from it is short. There is
    no residual: the horizon ends the solve.

    Arguments:
        cell: F, a module or function of (z, c) that returns a state shaped like z.
        channels: of the state, its first dimension after the batch.
        ode_solver: integrates.
        gradient: default the adjoint, whose memory does not grow with the steps.
        horizon: the end time.
        shape: of one sample's state; None is that of c.
        backend: the kernels of the inner loop.
        on_failure: what becomes of samples that fail: ``"warn"``, ``"raise"`` or ``"mask"``; see
            :class:`ImplicitLayer`.

    Reference:
        Ding, Cui, Han, Zhao, Two Sides of The Same Coin: Bridging Deep Equilibrium Models and
        Neural ODEs via Homotopy Continuation, arXiv 2310.09583.
    """

    def __init__(  # noqa: PLR0913 - keyword options
        self,
        cell: Callable[[Any, Any], Any],
        *,
        channels: Count,
        ode_solver: ODESolver = Tsit5(),
        gradient: GradientStrategy = Adjoint(),
        horizon: Positive = 1.0,
        shape: tuple[int, ...] | None = None,
        backend: Backend = TorchBackend(),
        on_failure: OnFailure = "warn",
    ) -> None:
        dynamics = VectorField(cell, autonomous=True)
        start = LearnedInitialGuess(channels, shape)
        super().__init__(
            dynamics,
            solver=ode_solver,
            gradient=gradient,
            start=start,
            horizon=horizon,
            backend=backend,
            on_failure=on_failure,
        )
        self.ode_solver = ode_solver
        self.channels = channels
        self.shape = shape

    def regularizer(self, solution: SolveResult) -> Tensor:
        """smooth-L1 of z0 to the detached z(horizon)."""
        return start_loss(solution)
