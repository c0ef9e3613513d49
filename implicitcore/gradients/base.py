"""The abstract gradient strategies."""

from __future__ import annotations

from abc import abstractmethod
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from implicitcore.errors import GradientError, InputError
from implicitcore.ode_solvers.base import ODESolver
from implicitcore.ode_solvers.events import Event
from implicitcore.ode_solvers.stepwise import StepwiseODESolver
from implicitcore.options.options import PartMeta
from implicitcore.root_solvers.base import RootSolver
from implicitcore.root_solvers.judgement import solve as solve_root
from implicitcore.root_solvers.returned import check_trajectory
from implicitcore.solution import Solution, Trajectory
from implicitcore.system.system import System


@dataclass(frozen=True)
class Solve:
    """A solver made ready: call it with a system and a start.

    Attributes:
        solver: finds the equilibrium, or integrates.
        times: the output times of an ODE solver; None for a root solver.
        dense: keep the continuous extension of a trajectory.
        event: end each sample where this changes its sign.
    """

    solver: RootSolver | ODESolver
    times: Tensor | None = None
    dense: bool = False
    event: Event | None = None

    @property
    def grid(self) -> Tensor:
        """The output times.

        Raises:
            InputError: none were given.
        """
        if self.times is None:
            name = type(self.solver).__name__
            raise InputError(f"{name} integrates over times, and none were given")
        return self.times

    def __call__(
        self, system: System, z0: Tensor, times: Tensor | None = None
    ) -> Solution | Trajectory:
        """Solve from z0 (over other ``times``, where given)."""
        if isinstance(self.solver, RootSolver):
            return solve_root(self.solver, system, z0)
        times = self.grid if times is None else times
        found = self._integrate(self.solver, system, z0, times)
        check_trajectory(self.solver, found, z0, times)
        return found

    def _integrate(
        self, solver: ODESolver, system: System, z0: Tensor, times: Tensor
    ) -> Trajectory:
        if not (self.dense or self.event):
            return solver.solve(system, z0, times)
        if not isinstance(solver, StepwiseODESolver):
            raise InputError(
                f"{type(solver).__name__} gives no values between the times: dense "
                "output and events need a solver that does"
            )
        return solver.solve(system, z0, times, dense=self.dense, event=self.event)


def equilibrium(strategy: GradientStrategy, solve: Solve, system: System, z0: Tensor) -> Solution:
    """Solve without a graph, for a strategy that differentiates the equilibrium itself.

    Raises:
        GradientError: the solver is an ODE solver, which gives a trajectory.
    """
    if not isinstance(solve.solver, RootSolver):
        name, solver = type(strategy).__name__, type(solve.solver).__name__
        raise GradientError(
            f"{name} differentiates an equilibrium, and {solver} gives a trajectory; use "
            f"Adjoint or Unrolled, or SteadyState({solver}(...))"
        )
    with torch.no_grad():
        return solve_root(solve.solver, system, z0)


class GradientStrategy(metaclass=PartMeta):
    """Decides which part of a solve gets an autograd graph; never owns the loop.

    Attributes:
        transforms: which derivatives of ``torch.func`` can go through it: "grad", "jvp".
    """

    kind: ClassVar[str] = "gradient"
    transforms: ClassVar[tuple[str, ...]] = ()

    @abstractmethod
    def run(self, solve: Solve, system: System, z0: Tensor) -> Solution | Trajectory:
        """Solve, and attach the gradient.

        Arguments:
            solve: the solver made ready.
            system: the dynamics bound to one x.
            z0: ``[batch, n]``; with a graph where the start has one.

        Returns:
            The packed solution or trajectory whose ``z`` is differentiable, and whose ``backward``
            the backward pass fills.
        """
