"""The Deep Equilibrium Model."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from implicitcore import (
    Anderson,
    Backend,
    FixedPoint,
    GradientStrategy,
    Implicit,
    ImplicitLayer,
    RootSolver,
    TorchBackend,
    Zeros,
)
from implicitcore.extend import OnFailure


class DEQ(ImplicitLayer):
    """z = f(z, x), found by a root solver from z0 = 0.

    Arguments:
        cell: f, a module or function of (z, x) that returns a state shaped like z.
        root_solver: finds the equilibrium; its tolerance is ``|f(z) - z| / |f(z)|`` per sample, in
            the 2-norm.
        gradient: default the implicit gradient.
        shape: of one sample's state; None is that of x.
        backend: the kernels of the inner loop.
        on_failure: what becomes of samples that fail: ``"warn"``, ``"raise"`` or ``"mask"``; see
            :class:`ImplicitLayer`.

    Raises:
        InputError: from a call, where the cell returns another shape than the state's.

    Reference:
        Bai, Kolter, Koltun, Deep Equilibrium Models, arXiv 1909.01377.
    """

    def __init__(
        self,
        cell: Callable[[Any, Any], Any],
        *,
        root_solver: RootSolver = Anderson(),
        gradient: GradientStrategy = Implicit(),
        shape: tuple[int, ...] | None = None,
        backend: Backend = TorchBackend(),
        on_failure: OnFailure = "warn",
    ) -> None:
        dynamics = FixedPoint(cell)
        super().__init__(
            dynamics,
            solver=root_solver,
            gradient=gradient,
            start=Zeros(shape),
            backend=backend,
            on_failure=on_failure,
        )
        self.root_solver = root_solver
        self.shape = shape
