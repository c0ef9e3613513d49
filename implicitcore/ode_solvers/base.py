"""The abstract ODE solvers."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Sequence
from importlib import import_module
from typing import Any, ClassVar, NamedTuple

from torch import Tensor

from implicitcore.options.options import PartMeta
from implicitcore.solution import Trajectory
from implicitcore.system.system import System

Stop = Callable[[Tensor, Tensor, Tensor], Tensor]


class Step(NamedTuple):
    """One step of every sample, before it is known whether it is accepted.

    ``stages`` (or ``points``) with their ``weights`` let :class:`~implicitcore.Adjoint` integrate
    backwards with the solver; one that leaves them out is trained by other strategies.
    """

    z: Tensor  # [batch, n], the state at t + dt
    error: Tensor | None = None  # [batch, n], an estimate of the local error
    # What the next step needs at t + dt, and in it the velocity there, the last that was evaluated;
    # None: ask init again.
    state: Any = None
    # The velocities of the step, each [batch, n], in the order of their evaluation: that of the
    # state first, then each that the step evaluated; beside points, dt times what is explicit.
    stages: Sequence[Tensor] = ()
    # Of the stages: z_next = z + dt sum_i weights_i stages_i; [n] where each entry has its own.
    weights: Sequence[float | Tensor] = ()
    # [batch], the power of dt that the error goes with, where each sample has its own
    order: Tensor | None = None
    # t [batch] and z [batch, n] of each stage, in place of its velocity, where the method solved
    # for it.
    points: Sequence[tuple[Tensor, Tensor]] = ()
    # [batch], the error as the tolerances measure it, where the method knows it: NaN where z is not
    # finite.
    scaled: Tensor | None = None


class ODESolver(metaclass=PartMeta):
    """Integrates dz/dt = g(t, z, x) for each sample of a batch.

    A black box implements :meth:`solve` alone; a solver that is one map per step derives from
    :class:`StepwiseODESolver` and gets the shared loop.

    Attributes:
        separable: it integrates positions q and momenta p, the two halves of the state, whose
            fields are separable: dq/dt depends on t and p, dp/dt on t and q. False for a solver of
            any field. The contract checks give it problems of that kind.
        complex_states: it integrates complex states as they are. False for a solver of real numbers
            alone: :func:`~implicitcore.integrate` and layers give it their real and imaginary
            parts.
    """

    kind: ClassVar[str] = "ode_solver"
    separable: ClassVar[bool] = False
    complex_states: ClassVar[bool] = True

    @abstractmethod
    def solve(
        self, system: System, z0: Tensor, times: Tensor, stop: Stop | None = None
    ) -> Trajectory:
        """Integrate from z0 at times[0].

        Arguments:
            system: gives the vector field on packed states.
            z0: ``[batch, n]``.
            times: output times ``[T]``, strictly increasing or decreasing; the last may be infinite
                where ``stop`` is given. A stepwise solver takes ``[T, batch]`` too, those of each
                sample: what :func:`~implicitcore.integrate` was given as ``[batch, T]``.
            stop: called with t ``[batch]``, z and the velocity ``[batch, n]`` at each accepted
                state; returns which samples go on.

        Returns:
            The states ``[T, batch, n]``, z[0] = z0, and a status per sample, packed: converged
            where the last time was reached; else the output times that were not reached hold the
            last accepted state.

        Raises:
            InputError: the times cannot be used.
        """

    def backward_solver(self) -> ODESolver:
        """What ``Adjoint()`` goes back with where this one went forward: itself.

        Another one, as exact, where the steps of this one do not name their stages.
        """
        return self


def __getattr__(name: str) -> Any:
    """``EqualSteps`` and its base stand beside what they are made of, and were looked for here."""
    if name in ("EqualSteps", "StepwiseODESolver"):
        return getattr(import_module("implicitcore.ode_solvers.stepwise"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
