"""The abstract gradient strategies."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import torch
from torch import Tensor

from implicitcore.errors import GradientError, InputError
from implicitcore.ode_solvers.base import ODESolver
from implicitcore.ode_solvers.event import Event
from implicitcore.ode_solvers.saved import Save
from implicitcore.ode_solvers.stepwise import StepwiseODESolver
from implicitcore.ode_solvers.stops import StepAt
from implicitcore.options.options import PartMeta
from implicitcore.root_solvers.base import RootSolver
from implicitcore.root_solvers.judgement import solve as solve_root
from implicitcore.root_solvers.returned import check_trajectory
from implicitcore.root_solvers.stepwise import StepwiseRootSolver
from implicitcore.solution import Solution, Trajectory
from implicitcore.system.context import Recorder
from implicitcore.system.system import System
from implicitcore.tensors.transforms import without_graph


@dataclass(frozen=True)
class Solve:
    """A solver made ready: call it with a system and a start.

    Attributes:
        solver: finds the equilibrium, or integrates.
        times: the output times of an ODE solver, ``[T]``, or those of each sample ``[T, batch]``;
            None for a root solver.
        dense: keep the continuous extension of a trajectory.
        events: end each sample at the first of these.
        hit_times: end a step at each output time.
        step_at: times at which the field jumps, where steps end.
        save: what is kept at the output times, in place of the states.
    """

    solver: RootSolver | ODESolver
    times: Tensor | None = None
    dense: bool = False
    events: tuple[Event, ...] = ()
    hit_times: bool = False
    step_at: StepAt | None = None
    save: Save | None = None

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

    def of_samples(self, rows: Tensor) -> Solve:
        """The same for some samples ``[k]``."""
        if not isinstance(self.times, Tensor) or self.times.ndim == 1:
            return self
        return replace(self, times=self.times.index_select(1, rows))

    def __call__(self, system: System, z0: Tensor) -> Solution | Trajectory:
        """Solve from z0."""
        if isinstance(self.solver, RootSolver):
            return solve_root(self.solver, system, z0)
        return self.integrate(self.solver, system, z0)

    def integrate(self, solver: ODESolver, system: System, z0: Tensor) -> Trajectory:
        """The trajectory from z0 by the ODE solver.

        Raises:
            InputError: what is wanted beside the output times needs another solver.
        """
        times, options = self.grid, self._wanted()
        own = isinstance(times, Tensor) and times.ndim == 2
        if own and not isinstance(solver, StepwiseODESolver):
            raise InputError(
                f"times: {type(solver).__name__} has one clock for the batch; expected shape [T], "
                f"received the times of {times.shape[1]} samples"
            )
        if not options:
            found = solver.solve(system, z0, times)
        elif isinstance(solver, StepwiseODESolver):
            found = solver.solve(system, z0, times, **options)
        else:
            between = self.dense or bool(self.events) or self.save is not None
            lack = "gives no values between the times" if between else "does not show its steps"
            raise InputError(
                f"{type(solver).__name__} {lack}: {', '.join(options)} needs a solver that does"
            )
        if self.save is None:
            check_trajectory(solver, found, z0, times)
        return found

    def _wanted(self) -> dict[str, Any]:
        """What is asked for beside the output times, as a stepwise solver takes it."""
        options = {"dense": self.dense, "event": self.events or None}
        options |= {"hit_times": self.hit_times, "step_at": self.step_at, "save": self.save}
        return {name: it for name, it in options.items() if it is not None and it is not False}


def equilibrium(
    strategy: GradientStrategy,
    solve: Solve,
    system: System,
    z0: Tensor,
    iterates: Sequence[int] = (),
) -> Solution:
    """Solve without a graph, for a strategy that differentiates the equilibrium itself.

    Arguments:
        strategy: the one that asks.
        solve: the solver made ready.
        system: what is solved.
        z0: ``[batch, n]``.
        iterates: keep the iterates after these many steps, for :func:`with_iterates`.

    Raises:
        GradientError: the solver is an ODE solver, which gives a trajectory, or has no iterates to
            give.
    """
    if not isinstance(solve.solver, RootSolver):
        name, solver = type(strategy).__name__, type(solve.solver).__name__
        raise GradientError(
            f"{name} differentiates an equilibrium, and {solver} gives a trajectory; use "
            f"Checkpointed, Unrolled or Adjoint, or SteadyState({solver}(...)) as the solver"
        )
    if iterates:
        return without_graph(solve_recording, solve, system, z0, iterates)
    return without_graph(solve_root, solve.solver, system, z0)


def solve_recording(solve: Solve, system: System, z0: Tensor, iterates: Sequence[int]) -> Solution:
    """Solve, and keep the iterates after these many steps: ``[k, batch, n]``, as they were made.

    A sample that stopped earlier keeps its last.

    Raises:
        GradientError: the solver has none to give.
    """
    solver = solve.solver
    if (
        not isinstance(solver, StepwiseRootSolver)
        or solver.compact
        or system.scope.group is not None
    ):
        raise GradientError(
            "iterates are those of a stepwise root solver, without compact and "
            f"sync_steps; received {solver}"
        )
    wanted = system.context.recorder or Recorder()
    kept: list[Tensor] = []
    solution = solve_root(solver, system.recorded(replace(wanted, iterates=kept)), z0)
    chosen = [kept[min(count, len(kept) - 1)] for count in iterates]
    return solution.amended(iterates=torch.stack(chosen))


def with_iterates(solution: Solution, attached: Callable[[Tensor], Tensor]) -> Solution:
    """The solution with a gradient for each of its iterates, where it has any.

    Arguments:
        solution: packed, of :func:`equilibrium`.
        attached: gives an iterate ``[batch, n]`` its graph, and keeps its value.
    """
    if solution.iterates is None:
        return solution
    return solution.amended(iterates=torch.stack([attached(z) for z in solution.iterates]))


class GradientStrategy(metaclass=PartMeta):
    """Decides which part of a solve gets an autograd graph; never owns the loop.

    Attributes:
        transforms: which derivatives of ``torch.func`` can go through it: "grad", "jvp".
        events: it gives gradients to an integration that ends at an event.
        saves: it gives gradients to what is saved in place of the states at the output times.
    """

    kind: ClassVar[str] = "gradient"
    transforms: ClassVar[tuple[str, ...]] = ()
    events: ClassVar[bool] = False
    saves: ClassVar[bool] = False

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
