"""The root solvers that are one map per iteration, and the loop that they share."""

from __future__ import annotations

import dataclasses
from abc import abstractmethod
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from implicitcore.options.shared import Stopping
from implicitcore.root_solvers.base import RootSolver
from implicitcore.root_solvers.convergence import StopTest
from implicitcore.root_solvers.synchronized import SynchronizedStopTest
from implicitcore.solution import Solution
from implicitcore.system.system import System

State = TypeVar("State")


@dataclass(frozen=True, kw_only=True)
class StepwiseRootSolver(Stopping, RootSolver, Generic[State]):
    """A root solver that is two methods: the loop around them is shared by all.

    Attributes:
        compact: stopped samples leave the batch and cost no more evaluations. For batches whose
            samples need unlike numbers of steps, and a cell that takes each sample by itself; see
            :meth:`implicitcore.System.select` for what x may hold.
    """

    compact: bool = False

    @abstractmethod
    def init(self, system: System, z: Tensor) -> State:
        """The state before the first step from z: any pytree of tensors with the batch first.

        An object in it that is no such tensor may have a ``select(rows)``, which ``compact`` calls
        to keep some samples.
        """

    @abstractmethod
    def step(self, system: System, z: Tensor, fz: Tensor, state: State) -> tuple[Tensor, State]:
        """One iteration, for every sample independently.

        Arguments:
            system: ``system.residual(z, fz)`` gives f(z) - z at no cost; the loop has computed it
                already, in a buffer that is written again after the next step: a solver that needs
                the residual of an older iterate copies it.
            z: the iterate, ``[batch, n]``; must not be changed in place.
            fz: f(z), ``[batch, n]``.
            state: as :meth:`init` or the last step returned it.

        Returns:
            The next iterate and state.
        """

    def restart(self, state: State, grown: Tensor) -> State:
        """Hear, before a step, that the residual of some samples ``grown`` ``[batch]`` has more than doubled since the last one.

        A solver whose memory misled it forgets that memory for them; here nothing is done.
        """
        del grown
        return state

    def solve(self, system: System, z0: Tensor) -> Solution:
        """See :meth:`RootSolver.solve`."""
        return iterate(self, system, z0)[0]


def iterate(solver: StepwiseRootSolver[Any], system: System, z0: Tensor) -> tuple[Solution, Any]:
    """Run a stepwise solver from z0 until every sample has stopped or ``max_steps`` evaluations are spent; and its last state."""
    kind = StopTest if system.scope.group is None else SynchronizedStopTest
    progress = kind(system, z0, solver.tol, solver.atol)
    z, state = z0, solver.init(system, z0)
    buffers: tuple[Tensor, ...] = ()
    for step in range(solver.max_steps):
        fz = system.update(z)
        if system.record_iterates is not None:
            system.record_iterates.append(z)
        if not torch.is_grad_enabled():
            # Two buffers in turn, for a solver keeps a residual until its next step: fresh memory
            # costs more than the subtraction.
            buffers = (
                buffers
                if buffers and buffers[0].shape == z.shape
                else z.new_empty(2, *z.shape).unbind(0)
            )
            system.residual(z, fz, buffers[step % 2])
        if progress.observe(z, fz) or step == solver.max_steps - 1:
            break
        if progress.grown is not None:
            state = solver.restart(state, progress.grown)
        z_next, state = solver.step(system, z, fz, state)
        z = progress.freeze(z_next, z)
        if (
            solver.compact
            and isinstance(progress, StopTest)
            and progress.remaining <= system.compact_below * len(progress.active)
        ):
            rows = progress.active.nonzero().squeeze(1)
            system, z, state = system.select(rows), z.index_select(0, rows), select(state, rows)
            progress = progress.part(system, rows)
    return progress.solution(), state


def select(state: Any, rows: Tensor) -> Any:
    """The state of some samples.

    Every tensor in it has the batch first, and an object that holds others has its own ``select``.
    """

    def pick(leaf: Any) -> Any:
        if isinstance(leaf, Tensor):
            return leaf.index_select(0, rows)
        if hasattr(leaf, "select"):
            return leaf.select(rows)
        if dataclasses.is_dataclass(leaf) and not isinstance(leaf, type):
            fields = {
                field.name: select(getattr(leaf, field.name), rows)
                for field in dataclasses.fields(leaf)
            }
            return dataclasses.replace(leaf, **fields)
        return leaf

    return pytree.tree_map(pick, state)
