"""The loop of every stepwise root solver."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from implicitcore.root_solvers.joint import JointProgress
from implicitcore.root_solvers.progress import Progress
from implicitcore.solution import Solution
from implicitcore.system import System

if TYPE_CHECKING:
    from implicitcore.root_solvers.base import StepwiseRootSolver


def iterate(solver: StepwiseRootSolver[Any], system: System, z0: Tensor) -> tuple[Solution, Any]:
    """Run a stepwise solver from z0 until every sample has stopped or ``max_steps`` evaluations are spent; and its last state."""
    kind = Progress if system.scope.group is None else JointProgress
    progress = kind(system, z0, solver.tol, solver.atol)
    z, state = z0, solver.init(system, z0)
    lent: tuple[Tensor, ...] = ()
    for step in range(solver.max_steps):
        fz = system.update(z)
        if system.visited is not None:
            system.visited.append(z)
        if not torch.is_grad_enabled():
            # Two buffers in turn, for a solver keeps a residual until its next step: fresh memory costs more than the subtraction.
            lent = lent if lent and lent[0].shape == z.shape else z.new_empty(2, *z.shape).unbind(0)
            system.residual(z, fz, lent[step % 2])
        if progress.observe(z, fz) or step == solver.max_steps - 1:
            break
        if progress.grown is not None:
            state = solver.restart(state, progress.grown)
        z_next, state = solver.step(system, z, fz, state)
        z = progress.freeze(z_next, z)
        if solver.compact and isinstance(progress, Progress) and progress.remaining <= system.crowded * len(progress.active):
            rows = progress.active.nonzero().squeeze(1)
            system, z, state = system.select(rows), z.index_select(0, rows), select(state, rows)
            progress = progress.part(system, rows)
    return progress.solution(), state


def select(state: Any, rows: Tensor) -> Any:
    """The state of some samples: every tensor in it has the batch first, and an object that holds others has its own ``select``."""

    def pick(leaf: Any) -> Any:
        if isinstance(leaf, Tensor):
            return leaf.index_select(0, rows)
        if hasattr(leaf, "select"):
            return leaf.select(rows)
        if dataclasses.is_dataclass(leaf) and not isinstance(leaf, type):
            fields = {field.name: select(getattr(leaf, field.name), rows) for field in dataclasses.fields(leaf)}
            return dataclasses.replace(leaf, **fields)
        return leaf

    return pytree.tree_map(pick, state)
