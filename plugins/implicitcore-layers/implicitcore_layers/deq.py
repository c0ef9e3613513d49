"""The Deep Equilibrium Model."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Unpack

from implicitcore import (
    Anderson,
    FixedPoint,
    GradientStrategy,
    Implicit,
    ImplicitLayer,
    InitialGuess,
    RootSolver,
    Zeros,
)
from implicitcore.extend import CallOptions, LayerOption, LayerOptions, OptionOf, Shape, Spec


class Equilibrium(ImplicitLayer):
    """z = f(z, x), found by a root solver: what the layers of this family share.

    Arguments:
        cell: f, a module or function of (z, x) that returns a state shaped like z.
        start: where z0 comes from.
        root_solver: finds the equilibrium; its tolerance is ``|f(z) - z| / |f(z)|`` per sample, in
            the 2-norm.
        gradient: default the implicit gradient.
        **options: those of every layer.
    """

    cell = OptionOf("dynamics", "cell")
    solver = root_solver = LayerOption[RootSolver]("root_solver")

    def __init__(
        self,
        cell: Callable[[Any, Any], Any],
        start: InitialGuess,
        *,
        root_solver: RootSolver | Spec = Anderson(),
        gradient: GradientStrategy | Spec | None = Implicit(),
        **options: Unpack[CallOptions],
    ) -> None:
        super().__init__(
            FixedPoint(cell), solver=root_solver, gradient=gradient, start=start, **options
        )


class DEQOptions(LayerOptions, total=False):
    """The options of :class:`DEQ` beside its root solver."""

    shape: Shape | None


class DEQ(Equilibrium):
    """z = f(z, x), found by a root solver from z0 = 0.

    Arguments:
        cell: f, a module or function of (z, x) that returns a state shaped like z.
        root_solver: finds the equilibrium; its tolerance is ``|f(z) - z| / |f(z)|`` per sample, in
            the 2-norm.
        gradient: default the implicit gradient.
        shape: of one sample's state: sizes, or for a state of several tensors a tuple or dict of
            shapes; None is that of x.
        backend: the kernels of the inner loop.
        on_failure: what becomes of samples that fail: ``"warn"``, ``"raise"``, ``"mask"`` or
            ``"ignore"``; see
            :class:`ImplicitLayer`.

    Raises:
        InputError: from a call, where the cell returns another shape than the state's.

    Reference:
        Bai, Kolter, Koltun, Deep Equilibrium Models, arXiv 1909.01377.
    """

    shape = OptionOf("start", "shape")

    def __init__(
        self,
        cell: Callable[[Any, Any], Any],
        *,
        root_solver: RootSolver | Spec = Anderson(),
        shape: Shape | None = None,
        **options: Unpack[LayerOptions],
    ) -> None:
        super().__init__(cell, Zeros(shape), root_solver=root_solver, **options)
