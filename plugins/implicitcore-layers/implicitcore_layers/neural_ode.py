"""The Neural ODE."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, final

from implicitcore import (
    Adjoint,
    Backend,
    GradientStrategy,
    Identity,
    ImplicitLayer,
    ODESolver,
    TorchBackend,
    Tsit5,
    VectorField,
)
from implicitcore.extend import OnFailure, Positive


@final
class NeuralODE(ImplicitLayer):
    """dz/dt = f(z, x) from z(0) = x; the output is z(horizon).

    Arguments:
        cell: f, a module or function of (z, x); of (t, z, x) where not ``autonomous``, with t as
            ``[batch, 1, ..., 1]``.
        ode_solver: integrates.
        gradient: default the adjoint, whose memory does not grow with the steps.
        horizon: the end time.
        autonomous: the cell does not take the time.
        backend: the kernels of the inner loop.
        on_failure: what becomes of samples that fail: ``"warn"``, ``"raise"`` or ``"mask"``; see
            :class:`ImplicitLayer`.

    Reference:
        Chen, Rubanova, Bettencourt, Duvenaud, Neural Ordinary Differential Equations, arXiv
        1806.07366.
    """

    def __init__(  # noqa: PLR0913 - keyword options
        self,
        cell: Callable[..., Any],
        *,
        ode_solver: ODESolver = Tsit5(),
        gradient: GradientStrategy = Adjoint(),
        horizon: Positive = 1.0,
        autonomous: bool = True,
        backend: Backend = TorchBackend(),
        on_failure: OnFailure = "warn",
    ) -> None:
        dynamics = VectorField(cell, autonomous=autonomous)
        super().__init__(
            dynamics,
            solver=ode_solver,
            gradient=gradient,
            start=Identity(),
            horizon=horizon,
            backend=backend,
            on_failure=on_failure,
        )
        self.ode_solver = ode_solver
        self.autonomous = autonomous
