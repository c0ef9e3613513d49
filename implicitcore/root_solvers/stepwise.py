"""The root solvers that are one map per iteration, and the loop that they share."""

from __future__ import annotations

from abc import abstractmethod
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

import torch
from torch import Tensor

from implicitcore.backends.base import Backend
from implicitcore.backends.root_iteration import UpdateRule
from implicitcore.errors import ConfigError, InputError, show
from implicitcore.options.shared import Stopping
from implicitcore.options.types import Count
from implicitcore.root_solvers.base import RootSolver
from implicitcore.root_solvers.convergence import StopTest
from implicitcore.root_solvers.deferred import DeferredStopTest
from implicitcore.root_solvers.fused import fused_loop
from implicitcore.root_solvers.stop_criterion import StopCriterion
from implicitcore.root_solvers.synchronized import SynchronizedStopTest
from implicitcore.solution import Solution
from implicitcore.system.evaluation import Evaluation
from implicitcore.system.system import System
from implicitcore.tensors import host
from implicitcore.tensors.like import check_like
from implicitcore.tensors.restrict import restrict

State = TypeVar("State")


@dataclass(frozen=True, kw_only=True)
class StepwiseRootSolver(Stopping, RootSolver, Generic[State]):
    """A root solver that is two methods: the loop around them is shared by all.

    Attributes:
        min_steps: least iterates of a sample, the start included, before one that meets the
            tolerance stops it. For starts that may meet it while the graph is to have steps
            (``Unrolled``, ``Reversible``), and for depths that are to be no less in use than in
            training.
        compact: stopped samples leave the batch and cost no more evaluations, but for one, which
            shows whether f takes those that stay for what they were. For batches whose
            samples need unlike numbers of steps, and a cell that takes each sample by itself. What
            belongs to all samples in x is marked with :func:`implicitcore.shared`.
    """

    compact: bool = False
    min_steps: Count = 1

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.min_steps > self.max_steps:
            raise ConfigError(
                [f"min_steps: expected at most max_steps, {self.max_steps}; got {self.min_steps}"]
            )

    @property
    def keeps_residual(self) -> bool:
        """Whether the state may hold the residual of the last step, as it was given.

        Where it does not, one buffer is enough for all residuals.
        """
        return True

    @abstractmethod
    def init(self, system: System, z: Tensor) -> State:
        """The state before the first step from z: any pytree of tensors with the batch first.

        Where samples leave the batch (``compact``), the rows of the others are kept. A tensor that
        belongs to all samples is marked with :func:`implicitcore.shared`; a dataclass is built
        anew from its fields; another object may have a ``restrict(rows)``.
        """

    @abstractmethod
    def step(self, system: System, now: Evaluation, state: State) -> tuple[Tensor, State]:
        """One iteration, for every sample independently.

        Arguments:
            system: what is solved.
            now: the iterate ``now.z`` and ``now.fz``, f there, both ``[batch, n]``, with
                ``now.residual.value``, f(z) - z, and its norms. None of them may be changed in
                place. The buffer of a residual is used again after the next step: a solver that
                needs an older one copies it.
            state: as :meth:`init` or the last step returned it.

        Returns:
            The next iterate and state.
        """

    def restart(self, state: State, grown: Tensor) -> State:
        """Called before a step where the residuals of ``grown`` ``[batch]`` have more than doubled.

        A solver whose memory misled it forgets that memory for them; here nothing is done.
        """
        del grown
        return state

    def update_rule(self, z: Tensor) -> UpdateRule | None:
        """The iteration as data, for a backend that does it in one call; None where there is none.

        What :meth:`init`, :meth:`step` and :meth:`restart` do, from a start ``z`` on.
        """
        del z
        return None

    def solve(self, system: System, z0: Tensor) -> Solution:
        """See :meth:`RootSolver.solve`."""
        found = self._fused(system, z0, None)
        return iterate(self, system, system.evaluate(z0))[0] if found is None else found

    def solve_from(self, system: System, start: Evaluation) -> Solution:
        """See :meth:`RootSolver.solve_from`."""
        found = self._fused(system, start.z, start)
        return iterate(self, system, start)[0] if found is None else found

    def _fused(self, system: System, z0: Tensor, start: Evaluation | None) -> Solution | None:
        """The solution by the backend's own iterations, where it has them."""
        if self.compact or type(system.context.backend).root_iteration is Backend.root_iteration:
            return None
        limits = self.tol, self.atol, self.min_steps, self.max_steps
        loop = fused_loop(system, z0, self.update_rule(z0), limits)
        return None if loop is None else loop.run(z0, start)


def iterate(
    solver: StepwiseRootSolver[Any], system: System, start: Evaluation
) -> tuple[Solution, Any]:
    """Run a stepwise solver until every sample has stopped or ``max_steps`` evaluations are spent.

    Returns:
        The solution, and the solver's last state.
    """
    test = _stop_test(solver, system, start.z)
    known, z, state = start, start.z, solver.init(system, start.z)
    del start  # nothing of an iterate is held longer than it is used: a state may be large
    buffers: tuple[Tensor, ...] = ()
    for count in range(solver.max_steps):
        if known is None:
            if not torch.is_grad_enabled() and (not buffers or buffers[0].shape != z.shape):
                # In turn, for a solver keeps a residual until its next step: fresh memory costs
                # more than the subtraction.
                keeps = test.keeps - (not solver.keeps_residual)
                buffers = tuple(z.new_empty(z.shape) for _ in range(keeps))
            now = system.evaluate(z, buffers[count % len(buffers)] if buffers else None)
        else:
            now, known = known, None
        if test.check(now) or count == solver.max_steps - 1:
            break
        if test.grown is not None:
            state = solver.restart(state, test.grown)
        z_next, state = _checked(solver.step(system, now, state), solver, now.z)
        z = test.freeze(z_next, now.z)
        rows = test.leaving() if solver.compact else None
        if rows is not None:
            system, z, state = system.restrict(rows), z.index_select(0, rows), restrict(state, rows)
            test.narrow(system, rows)
        del now, z_next
    return test.solution(), state


def _stop_test(solver: StepwiseRootSolver[Any], system: System, z0: Tensor) -> StopCriterion:
    """That of the samples, at once or now and then, or that of processes which stop together."""
    options = solver.tol, solver.atol, solver.min_steps
    if system.context.scope.group is not None:
        return SynchronizedStopTest(system, z0, *options)
    if host.on_host(z0):
        return StopTest(system, z0, *options)
    test = DeferredStopTest(system, z0, *options)
    test.watches = type(solver).restart is not StepwiseRootSolver.restart
    if solver.compact:
        test.every = 1  # samples leave at a look
    return test


def _checked(found: Any, solver: StepwiseRootSolver[Any], z: Tensor) -> tuple[Tensor, Any]:
    """What a step from z returned, which may be somebody's own code."""
    if not (isinstance(found, tuple) and len(found) == 2):
        raise InputError(
            f"{type(solver).__name__}.step returned {show(found)}, expected the next iterate and "
            "the next state"
        )
    check_like(found[0], z, solver, "step")
    return found
