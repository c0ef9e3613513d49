"""Backpropagation through the solver."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, final

import torch
from torch import Tensor

from implicitcore.gradients.base import GradientStrategy, Solve, solve_recording
from implicitcore.ode_solvers.event import event_value
from implicitcore.options.options import Options
from implicitcore.options.types import Count
from implicitcore.root_solvers.base import RootSolver
from implicitcore.solution import Solution, Trajectory
from implicitcore.system.coupling import check_derivative
from implicitcore.system.system import System


@final
@dataclass(frozen=True)
class Unrolled(Options, GradientStrategy):
    """Backpropagate through every step of the solver: the exact gradient of the discrete iteration.

    Memory grows with the number of steps. z0 gets its gradient too; step sizes and stop tests get
    none. A sample whose start meets the tolerance takes no step, and nothing but z0 gets its
    gradient: not for warm starts. A cell that mixes samples is looked for once, at the first batch
    of two samples or more of a root solve, by one evaluation and up to eight products. Prefer
    ``implicit`` at an equilibrium (constant memory) and ``adjoint`` on long trajectories.

    Attributes:
        iterates: supervise the way: ``solution.iterates`` ``[k, batch, ...]`` holds the iterates
            after these many steps of a stepwise root solver (a sample that stopped earlier keeps
            its last), with their graph, for a loss on several of them
            (``correction_loss``).

    Raises:
        GradientError: ``iterates`` of a solver that has none to give.

    Reference:
        Gilbert, Automatic differentiation and iterative processes, Optim. Methods Softw. 1 (1992),
        p. 13-21.
    """

    transforms: ClassVar[tuple[str, ...]] = ("grad", "jvp")
    events: ClassVar[bool] = True
    saves: ClassVar[bool] = True

    iterates: tuple[Count, ...] = ()

    def run(self, solve: Solve, system: System, z0: Tensor) -> Solution | Trajectory:
        """See :meth:`GradientStrategy.run`."""
        if self.iterates:
            solution = solve_recording(solve, system, z0, self.iterates)
        else:
            solution = _connected(solve, system, solve(system, z0))
        if not torch.is_grad_enabled():
            return solution
        if isinstance(solve.solver, RootSolver):
            check_derivative(system, solution.z)
            solution = solution.amended(evaluations=system.evaluations)
        if len(z0) or system.scope.group is not None:
            return solution
        # An empty batch takes no step: one evaluation connects it with what f depends on, as a
        # data-parallel module requires.
        nothing = system.update(z0).sum(1, keepdim=True)
        if nothing.is_complex() and not solution.z.is_complex():
            nothing = nothing.real
        z = solution.z + nothing.to(solution.z.dtype)
        return solution.amended(z=z, evaluations=system.evaluations)


def _connected(solve: Solve, system: System, found: Solution | Trajectory) -> Solution | Trajectory:
    """The trajectory in one graph with events that happened to no sample.

    Their parameters have a gradient of zero, as a data-parallel module requires.
    """
    if not (solve.events and torch.is_grad_enabled() and isinstance(found, Trajectory)):
        return found
    times, index, z = found.event_times, found.event_index, found.z
    if times is None or index is None:
        return found
    for which in range(len(solve.events)):
        if bool((index == which).any()):
            continue
        start = found.times[0].expand_as(times)
        e = event_value(solve.events, which, system, start, found.start.detach())
        if e.requires_grad:
            nothing = torch.where(torch.zeros_like(times, dtype=torch.bool), e, 0)
            times, z = times + nothing, z + nothing.unsqueeze(1).to(z.dtype)
    return found.amended(event_times=times, z=z)
