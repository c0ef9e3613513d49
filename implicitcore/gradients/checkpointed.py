"""Backpropagation through a trajectory in bounded memory."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, final

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from implicitcore.errors import GradientError
from implicitcore.gradients.base import GradientStrategy, Solve
from implicitcore.gradients.checkpoints import Checkpoints
from implicitcore.gradients.trajectory import Bound, agrees, attach, pull, require_same, total
from implicitcore.ode_solvers.base import Step
from implicitcore.ode_solvers.integration import Integration, Outputs, check_times
from implicitcore.ode_solvers.step_size import Verdict
from implicitcore.ode_solvers.stepwise import StepwiseODESolver
from implicitcore.options.options import Options
from implicitcore.options.types import Count
from implicitcore.root_solvers.base import RootSolver
from implicitcore.solution import Backward, Solution
from implicitcore.system.system import System


@final
@dataclass(frozen=True)
class Checkpointed(Options, GradientStrategy):
    """Backpropagate through every step of a trajectory, and keep few of them.

    The gradient of ``unrolled`` in bounded memory. The way forward keeps some states and no graph.
    The way back takes the steps again from the last state kept, with a graph of one step at a time.
    They are the very same steps: their sizes, and which samples accepted them, are replayed and not
    chosen again. (That record takes 6 bytes a step and sample in float32.)

    The gradient is that of the discrete integration, exact whatever the tolerances, also where the
    flow contracts strongly and ``adjoint`` fails. A step costs two evaluations or more and one
    product in backward. Prefer ``unrolled`` where memory allows it, and ``adjoint`` where the steps
    are so many that even their record is too much.

    Gradients reach what those of ``adjoint`` do: z0, the tensors of x, the parameters of the
    dynamics, and captured leaves.

    Attributes:
        checkpoints: most states kept beside z0. With c of them and N = C(c + r, c) steps, each step
            is taken about r times (c = 8: 165 steps for r = 3, 1287 for r = 5). None keeps 2
            sqrt(N), and each step is taken two or three times, one of them with a graph.

    Raises:
        GradientError: with a root solver; with an ODE solver that shows no steps; on a second
            derivative.

    Reference:
        Griewank, Walther, Algorithm 799: revolve, ACM Trans. Math. Softw. 26 (2000), p. 19-45;
        where the number of steps is not known beforehand: Wang, Moin, Iaccarino, SIAM J. Sci.
        Comput. 31 (2009), p. 2549-2567.
    """

    checkpoints: Count | None = None

    def run(self, solve: Solve, system: System, z0: Tensor) -> Solution:
        """See :meth:`GradientStrategy.run`."""
        solver = solve.solver
        if not isinstance(solver, StepwiseODESolver):
            raise GradientError(_refusal(solver))
        if not torch.is_grad_enabled() or solve.times is None:
            return solve(system, z0)
        with torch.no_grad():
            march = _Replayable(solver, system, z0, check_times(solve.times, z0))
            kept = march.record(self.checkpoints)
            solution = march.solution()
        pullback = _Pullback(march, kept, solution.backward)
        return attach(self, pullback, system, solution, z0, replays=True)


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


class _Choice(NamedTuple):
    """How long a step was, and which samples accepted it."""

    dt: Tensor  # [batch]
    arrives: Tensor  # [batch] bool
    accept: Tensor  # [batch] bool
    lost: Tensor | None  # [batch] bool, which will not try again; None where none refused it


class _Replayable(Integration):
    """A march that writes down its choices, and whose copies make the same ones again."""

    def __init__(
        self, solver: StepwiseODESolver[Any], system: System, z0: Tensor, times: Tensor
    ) -> None:
        super().__init__(solver, solver.step_size, system, z0, times)
        self.script: list[_Choice] = []
        self.chosen: tuple[Tensor, Tensor]
        self.taken = 0

    def _choose(self) -> tuple[Tensor, Tensor]:
        """As the first time."""
        if self.taken < len(self.script):
            return self.script[self.taken][:2]
        self.chosen = super()._choose()
        return self.chosen

    def _judge(self, step: Step, dt: Tensor) -> tuple[Verdict, Tensor]:
        """As the first time."""
        self.taken += 1
        if self.taken <= len(self.script):
            accept = self.script[self.taken - 1].accept
            return Verdict(accept, self.size, self.error), accept
        verdict, finite = super()._judge(step, dt)
        self.script.append(_Choice(*self.chosen, verdict.accept, None))
        return verdict, finite

    def _refuse(self, verdict: Verdict, size: Tensor, refused: Tensor, finite: Tensor) -> None:
        """As the first time."""
        choice = self.script[self.taken - 1]
        if self.taken == len(self.script) and choice.lost is None:
            before = self.active
            super()._refuse(verdict, size, refused, finite)
            self.script[-1] = choice._replace(lost=before & ~self.active)
        elif choice.lost is not None:
            self.active = self.active & ~choice.lost

    def record(self, budget: int | None) -> Checkpoints[_Replayable]:
        """Go all the way; what was kept of it."""
        kept = Checkpoints[_Replayable](budget)
        while self.more and self.taken < self.solver.max_steps:
            kept.offer(self.taken, self.fork(self.system))
            if self.begin(None):
                self.step()
        return kept

    def fork(self, system: System) -> _Replayable:
        """A march that goes on from here as this one did."""
        part = copy.copy(self)
        part.system, part.outputs, part.started = system, _Arrivals(), True
        return part

    def advance(self, steps: int) -> _Replayable:
        """Itself, so many steps later."""
        for _ in range(steps):
            self.begin(None)
            self.step()
        return self

    def carried(self) -> list[Tensor]:
        """What a step hands on to the next: the tensors of z and of the solver's state."""
        return [leaf for leaf in pytree.tree_leaves((self.z, self.state)) if _differentiable(leaf)]

    def detach(self) -> list[Tensor]:
        """Begin a graph here; what it begins with."""
        self.z, self.state = pytree.tree_map(
            lambda leaf: leaf.detach().requires_grad_() if _differentiable(leaf) else leaf,
            (self.z, self.state),
        )
        return self.carried()


def _differentiable(leaf: object) -> bool:
    return isinstance(leaf, Tensor) and (leaf.is_floating_point() or leaf.is_complex())


class _Arrivals(Outputs):
    """The states that arrive at output times, in their order."""

    def __init__(self) -> None:
        self.rows: list[Tensor] = []

    def add(self, z: Tensor, arrived: Tensor, which: Tensor) -> None:
        """See :meth:`Outputs.add`."""
        self.rows.append(z[arrived])


@dataclass(frozen=True)
class _Pullback:
    """The way back, one step at a time."""

    march: _Replayable
    kept: Checkpoints[_Replayable]
    record: Backward

    def __call__(self, bound: Bound, v: Tensor) -> tuple[Tensor | None, list[Tensor | None]]:
        """See :data:`implicitcore.gradients.trajectory.Pullback`."""
        *arrivals, last = self._arrivals(v)
        cotangents: Sequence[Tensor | None] = [last]
        gradients: list[Tensor | None] = [None] * len(bound.inputs)
        after, same = self.march.z, []
        for index in reversed(range(self.march.taken)):
            with torch.no_grad():
                march = self.kept.take(
                    index, lambda march, steps: march.fork(bound.system).advance(steps)
                )
            again = march.fork(bound.system)
            cotangents, found = self._step(again, bound, cotangents, arrivals)
            same.append(agrees(again.z.detach(), after))
            after = march.z
            gradients = [total(*pair) for pair in zip(gradients, found, strict=True)]
        require_same(same)  # once, for a look at each step would wait for the device
        self.record.evaluations += bound.system.evaluations
        return total(cotangents[0], arrivals[0]), gradients

    def _arrivals(self, v: Tensor) -> Sequence[Tensor]:
        """The cotangent of each row of states that arrived together, and of the last state."""
        outputs, last = copy.copy(self.march.outputs), self.march.z.detach().requires_grad_()
        outputs.rows = [row.detach().requires_grad_() for row in outputs.rows]
        with torch.enable_grad():
            z = outputs.trajectory(last, self.march.next)
        return torch.autograd.grad(z, [*outputs.rows, last], v)

    def _step(
        self,
        march: _Replayable,
        bound: Bound,
        cotangents: Sequence[Tensor | None],
        arrivals: list[Tensor],
    ) -> tuple[Sequence[Tensor | None], Sequence[Tensor | None]]:
        """The cotangents of what the step began with, and its share of the gradients."""
        before, evaluations = march.detach(), bound.system.evaluations
        with torch.enable_grad():
            march.advance(1)
        self.record.vjps += bound.system.evaluations - evaluations
        reached = [
            *zip(march.carried(), cotangents, strict=False),
            *((row, arrivals.pop()) for row in march.outputs.rows),
        ]
        used = [(tensor, v) for tensor, v in reached if tensor.requires_grad and v is not None]
        wrt = [*before, *bound.inputs]
        found = (
            pull([tensor for tensor, _ in used], wrt, [v for _, v in used])
            if used
            else [None] * len(wrt)
        )
        return found[: len(before)], found[len(before) :]
