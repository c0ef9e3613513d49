"""The abstract root solvers."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import ClassVar, Generic, TypeVar

from torch import Tensor

from implicitcore.options import Options
from implicitcore.root_solvers.loop import iterate
from implicitcore.solution import Solution
from implicitcore.system import System
from implicitcore.tolerances import Count, Tolerance

State = TypeVar("State")


class RootSolver(ABC):
    """Finds z with f(z) = z (that is, g(z) = 0) for each sample of a batch.

    A black box implements :meth:`solve` alone; a solver that is one map per iteration derives from
    :class:`StepwiseRootSolver` and gets the shared loop.
    """

    kind: ClassVar[str] = "root_solver"

    @abstractmethod
    def solve(self, system: System, z0: Tensor) -> Solution:
        """Solve from z0.

        Arguments:
            system: gives f, its residual and its Jacobian products on packed states.
            z0: ``[batch, n]``.

        Returns:
            The best iterate with its measured residual and a status per sample, packed.
        """


@dataclass(frozen=True, kw_only=True)
class StepwiseRootSolver(Options, RootSolver, Generic[State]):
    """A root solver that is two methods: the loop around them is shared by all.

    Attributes:
        tol: relative tolerance per sample, in the 2-norm: stop where ``|f(z) - z| <= tol |f(z)| + atol``.
        atol: absolute tolerance beside it.
        max_steps: most evaluations of f.
        compact: stopped samples leave the batch and cost no more evaluations. For batches whose samples need unlike numbers of
            steps, and a cell that takes each sample by itself; see :meth:`implicitcore.System.select` for what x may hold.
    """

    tol: Tolerance = 1e-4
    atol: Tolerance = 0.0
    max_steps: Count = 50
    compact: bool = False

    @abstractmethod
    def init(self, system: System, z: Tensor) -> State:
        """The state before the first step from z: any pytree of tensors with the batch first.

        An object in it that is no such tensor may have a ``select(rows)``, which ``compact`` calls to keep some samples.
        """

    @abstractmethod
    def step(self, system: System, z: Tensor, fz: Tensor, state: State) -> tuple[Tensor, State]:
        """One iteration, for every sample independently.

        Arguments:
            system: ``system.residual(z, fz)`` gives f(z) - z at no cost; the loop has computed it already, in a buffer that is
                written again after the next step: a solver that needs the residual of an older iterate copies it.
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
