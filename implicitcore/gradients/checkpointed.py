"""Backpropagation through a trajectory in bounded memory."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, TypeGuard, final

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from implicitcore.errors import GradientError
from implicitcore.gradients.base import GradientStrategy, Solve
from implicitcore.gradients.checkpoints import Checkpoints
from implicitcore.gradients.event_times import with_event_times
from implicitcore.gradients.trajectory import Bound, agrees, attach, pull, require_same, total
from implicitcore.ode_solvers.events import Crossings
from implicitcore.ode_solvers.integration import Integration
from implicitcore.ode_solvers.lockstep import Lockstep
from implicitcore.ode_solvers.loop import StepsLeft
from implicitcore.ode_solvers.outputs import Outputs
from implicitcore.ode_solvers.recorded_cuts import RecordedCuts, ReplayedCuts
from implicitcore.ode_solvers.recorded_steps import RecordedSteps, ReplayedSteps
from implicitcore.ode_solvers.recorder import TrajectoryRecorder
from implicitcore.ode_solvers.samples import Samples
from implicitcore.ode_solvers.step_chooser import (
    GridSteps,
    choose_steps,
)
from implicitcore.ode_solvers.stepwise import StepwiseODESolver
from implicitcore.ode_solvers.stops import Stops
from implicitcore.ode_solvers.times import check_times
from implicitcore.options.options import Options
from implicitcore.options.types import Count
from implicitcore.root_solvers.base import RootSolver
from implicitcore.solution import Backward, Solution, Trajectory
from implicitcore.system.system import System


@final
@dataclass(frozen=True)
class Checkpointed(Options, GradientStrategy):
    """Backpropagate through every step of a trajectory, and keep few of them.

    The gradient of ``unrolled`` in bounded memory. The forward pass keeps some states and no graph.
    The backward pass takes the steps again from the last state kept, with a graph of one step at a
    time. They are the very same steps: their sizes, and which samples accepted them, are replayed
    and not chosen again. (That record takes 6 bytes a step and sample in float32, 7 with events.)

    The gradient is that of the discrete integration, exact whatever the tolerances, also where the
    flow contracts strongly and ``adjoint`` fails. A step costs two evaluations or more and one
    product in backward. Prefer ``unrolled`` where memory allows it, and ``adjoint`` where the steps
    are so many that even their record is too much.

    Gradients reach what those of ``adjoint`` do: z0, the tensors of x, the parameters of the
    dynamics, and captured leaves.

    Attributes:
        checkpoints: most states kept beside z0. With c of them and N = C(c + r, c) steps, each step
            is taken about r times (c = 8: 165 steps for r = 3, 1287 for r = 5). None keeps 2
            sqrt(N), or all of a dozen, and each step is taken two or three times, one of them with
            a graph.

    Raises:
        GradientError: with a root solver; with an ODE solver that shows no steps; on a second
            derivative.

    Reference:
        Griewank, Walther, Algorithm 799: revolve, ACM Trans. Math. Softw. 26 (2000), p. 19-45;
        where the number of steps is not known beforehand: Wang, Moin, Iaccarino, SIAM J. Sci.
        Comput. 31 (2009), p. 2549-2567.
    """

    events: ClassVar[bool] = True

    checkpoints: Count | None = None

    def run(self, solve: Solve, system: System, z0: Tensor) -> Solution | Trajectory:
        """See :meth:`GradientStrategy.run`."""
        solver = solve.solver
        if not isinstance(solver, StepwiseODESolver):
            raise GradientError(_refusal(solver))
        if not torch.is_grad_enabled():
            return solve(system, z0)
        with torch.no_grad():
            forward = _Forward(solver, solve, system, z0, self.checkpoints)
            solution = forward.run.trajectory()
        pullback = _Pullback(forward, solution.backward)
        found = attach(self, pullback, system, solution, z0, replays=True)
        return with_event_times(self, solve, system, found)


def _refusal(solver: object) -> str:
    name = type(solver).__name__
    if isinstance(solver, RootSolver):
        return (
            f"Checkpointed differentiates a trajectory, and {name} finds an equilibrium; use "
            "Implicit, whose memory is constant"
        )
    return (
        f"Checkpointed takes the steps of a solver again, and {name} shows none; use "
        "Adjoint(solver=Tsit5()), or another solver"
    )


class _Forward:
    """An integration whose choices are recorded, with the states that were kept of it.

    Arguments:
        solver: makes the steps.
        solve: has the output times.
        system: the vector field.
        z0: ``[batch, n]``.
        budget: most states kept beside the first.
    """

    def __init__(
        self,
        solver: StepwiseODESolver[Any],
        solve: Solve,
        system: System,
        z0: Tensor,
        budget: int | None,
    ) -> None:
        control, times = solver.step_size, check_times(solve.grid, z0, of_each=True)
        stops = Stops.of(times, z0, hit_times=solve.hit_times, step_at=solve.step_at)
        chooser = choose_steps(control, stops, solver.max_steps)
        self.chooser = RecordedSteps(chooser)
        self.kept = Checkpoints[Samples](budget)
        self.run = run = Integration.at_start(solver, system, z0, stops, self.chooser)
        self.grid, self.together, left = None, 0, StepsLeft(solver.max_steps)
        self.cuts: RecordedCuts | None = None
        if solve.events:
            self.cuts = RecordedCuts(Crossings(solve.events, system, run.samples.t, z0))
            run.record(TrajectoryRecorder(cutter=self.cuts))
        elif isinstance(chooser, GridSteps):
            left.sure -= self._lockstep(chooser)
        while run.more and left.take(run):
            self.kept.offer(self.steps, copy.copy(run.samples))
            if run.begin():
                run.step()

    @property
    def steps(self) -> int:
        """How many were taken."""
        return self.together + len(self.chooser.record)

    def _lockstep(self, chooser: GridSteps) -> int:
        """The steps of all samples together; how many of them are behind the last stop."""
        together = Lockstep.of(self.run, chooser)
        while together.going:
            self.kept.offer(chooser.index, copy.copy(self.run.samples))
            together.step()
        together.settle()
        self.grid, self.together = chooser.grid, chooser.index
        self.kept.forget(self.together)
        return together.spent

    def replay(self, system: System, samples: Samples, index: int, steps: int) -> Integration:
        """An integration that goes on from the samples before a step as this one did.

        So many steps: those of all samples together first.
        """
        run, first = self.run, min(steps, max(self.together - index, 0))
        chooser = ReplayedSteps(self.chooser.record, index + first - self.together)
        cuts = self.cuts and TrajectoryRecorder(cutter=ReplayedCuts(self.cuts.record, chooser))
        again = Integration(
            run.solver,
            system,
            run.stops,
            chooser,
            copy.copy(samples),
            Outputs(),
            recorder=cuts,
            started=True,
        )
        if first and self.grid is not None:
            together = Lockstep(again, GridSteps(self.grid, index), every=None)
            for _ in range(first):
                together.step()
            if index + steps >= self.together:
                together.settle()
        for _ in range(steps - first):
            again.begin()
            again.step()
        return again


def _carried(samples: Samples) -> list[Tensor]:
    """What a step hands on to the next: the tensors of z and of the solver's state."""
    return list(filter(_differentiable, pytree.tree_leaves((samples.z, samples.state))))


def _detach(samples: Samples) -> None:
    """Begin a graph here."""
    samples.z, samples.state = pytree.tree_map(
        lambda leaf: leaf.detach().requires_grad_() if _differentiable(leaf) else leaf,
        (samples.z, samples.state),
    )


def _differentiable(leaf: object) -> TypeGuard[Tensor]:
    return isinstance(leaf, Tensor) and (leaf.is_floating_point() or leaf.is_complex())


@dataclass(frozen=True)
class _Pullback:
    """The backward pass, one step at a time."""

    forward: _Forward
    record: Backward

    def __call__(self, bound: Bound, v: Tensor) -> tuple[Tensor | None, list[Tensor | None]]:
        """See :data:`implicitcore.gradients.trajectory.Pullback`."""
        *arrivals, last = self._arrivals(v)
        cotangents: Sequence[Tensor | None] = [last]
        gradients: list[Tensor | None] = [None] * len(bound.inputs)
        after, same = self.forward.run.samples.z, []
        for index in reversed(range(self.forward.steps)):
            with torch.no_grad():
                samples = self._before(index, bound.system)
            cotangents, found, end = self._step(samples, index, bound, cotangents, arrivals)
            same.append(agrees(end, after))
            after = samples.z
            gradients = [total(*pair) for pair in zip(gradients, found, strict=True)]
        require_same(same)  # once, for a look at each step would wait for the device
        self.record.evaluations += bound.system.evaluations
        return total(cotangents[0], arrivals[0]), gradients

    def _before(self, index: int, system: System) -> Samples:
        """The samples before a step."""

        def advance(samples: Samples, at: int, steps: int) -> Samples:
            return self.forward.replay(system, samples, at, steps).samples

        return self.forward.kept.take(index, advance)

    def _arrivals(self, v: Tensor) -> Sequence[Tensor]:
        """The cotangent of each row of states that arrived together, and of the last state."""
        run = self.forward.run
        rows = [row.detach().requires_grad_() for row in (*run.outputs.rows, run.samples.z)]
        with torch.enable_grad():
            z = run.outputs.assemble(rows[:-1], rows[-1], run.samples.ahead.next, run.stops.times)
        return torch.autograd.grad(z, rows, v, allow_unused=True)

    def _step(
        self,
        samples: Samples,
        index: int,
        bound: Bound,
        cotangents: Sequence[Tensor | None],
        arrivals: list[Tensor],
    ) -> tuple[Sequence[Tensor | None], Sequence[Tensor | None], Tensor]:
        """The cotangents of what the step began with, its share of the gradients, and its end."""
        start = copy.copy(samples)
        _detach(start)
        before, evaluations = _carried(start), bound.system.evaluations
        with torch.enable_grad():
            run = self.forward.replay(bound.system, start, index, 1)
        self.record.vjps += bound.system.evaluations - evaluations
        reached = [
            *zip(_carried(run.samples), cotangents, strict=False),
            *((row, arrivals.pop()) for row in reversed(run.outputs.rows)),
        ]
        used = [(tensor, v) for tensor, v in reached if tensor.requires_grad and v is not None]
        wrt = [*before, *bound.inputs]
        found = (
            pull([tensor for tensor, _ in used], wrt, [v for _, v in used])
            if used
            else [None] * len(wrt)
        )
        return found[: len(before)], found[len(before) :], run.samples.z.detach()
