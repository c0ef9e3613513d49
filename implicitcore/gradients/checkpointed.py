"""Backpropagation through a trajectory in bounded memory."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, TypeGuard, final

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from implicitcore.errors import GradientError
from implicitcore.gradients.base import GradientStrategy, Solve
from implicitcore.gradients.event_times import with_event_times
from implicitcore.gradients.recorded_integration import RecordedIntegration
from implicitcore.gradients.trajectory import (
    Bound,
    agrees,
    attach,
    pull,
    require_same,
    total,
)
from implicitcore.ode_solvers.integration import Integration
from implicitcore.ode_solvers.samples import Samples
from implicitcore.ode_solvers.stepwise import StepwiseODESolver
from implicitcore.options.options import Options
from implicitcore.options.types import Count
from implicitcore.root_solvers.base import RootSolver
from implicitcore.solution import Backward, Solution, Trajectory
from implicitcore.system.system import System
from implicitcore.tensors.graph_leaves import Listed


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
    saves: ClassVar[bool] = True

    checkpoints: Count | None = None

    def run(self, solve: Solve, system: System, z0: Tensor) -> Solution | Trajectory:
        """See :meth:`GradientStrategy.run`."""
        solver = solve.solver
        if not isinstance(solver, StepwiseODESolver):
            raise GradientError(_refusal(solver))
        if not torch.is_grad_enabled():
            return solve(system, z0)
        with torch.no_grad():
            forward = RecordedIntegration(solver, solve, system, z0, self.checkpoints)
            solution = forward.run.trajectory()
        pullback = _Pullback(forward, solution.backward)
        found = attach(self, pullback, system, solution, z0, replays=True, save=solve.save)
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

    forward: RecordedIntegration
    record: Backward

    def __call__(
        self, bound: Bound, v: Tensor, end: Tensor | None = None
    ) -> tuple[Tensor | None, list[Tensor | None]]:
        """See :data:`implicitcore.gradients.trajectory.Pullback`."""
        outputs = self.forward.run.outputs
        arrivals, last, gradients = self._arrivals(bound, v)
        cotangents: Sequence[Tensor | None] = [total(last, end)]
        after, same, listed = self.forward.run.samples.z, [], Listed(bound.inputs)
        for index in reversed(range(self.forward.steps)):
            with torch.no_grad():
                samples = self._before(index, bound.system)
            run, before = self._step(samples, index, bound)
            reached = [*zip(_carried(run.samples), cotangents, strict=False)]
            rows, known = run.outputs.rows, outputs.rows[: len(arrivals)]
            if outputs.saves and rows:
                listed.check("what is saved", rows, before)
                again = zip(rows, known[-len(rows) :], strict=True)
                same += [agrees(row.detach(), kept) for row, kept in again]
            reached += [(row, arrivals.pop()) for row in reversed(rows)]
            cotangents, found = _pulled(reached, before, bound.inputs)
            same.append(agrees(run.samples.z.detach(), after))
            after = samples.z
            gradients = [total(*pair) for pair in zip(gradients, found, strict=True)]
        require_same(same)  # once, for a look at each step would wait for the device
        first, found = self._first(bound, arrivals[0])
        self.record.evaluations += bound.system.evaluations
        gradients = [total(*pair) for pair in zip(gradients, found, strict=True)]
        return total(cotangents[0], first), gradients

    def _before(self, index: int, system: System) -> Samples:
        """The samples before a step."""

        def advance(samples: Samples, at: int, steps: int) -> Samples:
            return self.forward.replay(system, samples, at, steps).samples

        return self.forward.kept.take(index, advance)

    def _arrivals(
        self, bound: Bound, v: Tensor
    ) -> tuple[list[Tensor | None], Tensor | None, list[Tensor | None]]:
        """The cotangents of each row of what arrived together and of the last state.

        And of the inputs, as far as what is kept of that state depends on them.
        """
        run = self.forward.run
        rows = [row.detach().requires_grad_() for row in run.outputs.rows]
        z, reached = run.samples.z.detach().requires_grad_(), run.samples.ahead.next
        with torch.enable_grad():
            late = run.outputs.again(bound.system).late(run.samples.t, z, reached)
            states = run.outputs.assemble(rows, late, reached, run.stops.times)
        found = pull([states], [*rows, z, *bound.inputs], [v])
        count = len(rows)
        return [*found[:count]], found[count], [*found[count + 1 :]]

    def _first(
        self, bound: Bound, v: Tensor | None
    ) -> tuple[Tensor | None, Sequence[Tensor | None]]:
        """The cotangents of z0 and of the inputs, for what is kept of it."""
        run = self.forward.run
        with torch.enable_grad():
            z0 = self.forward.z0.detach().requires_grad_()
            t = run.stops.times[0].expand(len(z0))
            row = run.outputs.again(bound.system).kept(t, z0)
        (first,), found = _pulled([(row, v)], [z0], bound.inputs)
        return first, found

    def _step(
        self, samples: Samples, index: int, bound: Bound
    ) -> tuple[Integration, Sequence[Tensor]]:
        """A step taken again with a graph, and what it began with."""
        start = copy.copy(samples)
        _detach(start)
        before, evaluations = _carried(start), bound.system.evaluations
        with torch.enable_grad():
            run = self.forward.replay(bound.system, start, index, 1)
        self.record.vjps += bound.system.evaluations - evaluations
        return run, before


def _pulled(
    reached: Sequence[tuple[Tensor, Tensor | None]],
    before: Sequence[Tensor],
    inputs: Sequence[Tensor],
) -> tuple[Sequence[Tensor | None], Sequence[Tensor | None]]:
    """The cotangents of what came ``before`` and of the inputs, for those of what they led to."""
    used = [(tensor, v) for tensor, v in reached if tensor.requires_grad and v is not None]
    wrt = [*before, *inputs]
    if not used:
        return [None] * len(before), [None] * len(inputs)
    found = pull([tensor for tensor, _ in used], wrt, [v for _, v in used])
    return found[: len(before)], found[len(before) :]
