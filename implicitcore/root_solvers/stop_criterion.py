"""When the loop of a stepwise root solver is over."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import ClassVar

from torch import Tensor

from implicitcore.solution import Solution
from implicitcore.system.evaluation import Evaluation
from implicitcore.system.system import System

# A residual this many times that of the step before shows that what a solver remembers misleads it.
GROWTH = 2.0

# On an accelerator, iterations between two checks of which samples are done: a check waits for all
# that is queued.
CHECK_EVERY = 4


class StopCriterion(ABC):
    """Says when the loop of a stepwise root solver is over, and what its solution is.

    Attributes:
        grown: ``[batch]``, the samples whose residual has more than doubled in the last step; None
            where there are none.
        keeps: evaluations that it refers to at a time, the last step's included.
    """

    keeps: ClassVar[int] = 2
    grown: Tensor | None = None

    @abstractmethod
    def check(self, now: Evaluation) -> bool:
        """Take in an iterate and its residual; True when the loop is over."""

    @abstractmethod
    def freeze(self, z_next: Tensor, z: Tensor) -> Tensor:
        """z_next for the samples that go on, z for the others."""

    @abstractmethod
    def solution(self) -> Solution:
        """The solution so far, packed."""

    def leaving(self) -> Tensor | None:
        """Which samples ``[k]`` should go on alone; None where the batch stays together."""
        return None

    @abstractmethod
    def narrow(self, system: System, rows: Tensor) -> None:
        """Go on with the samples ``rows`` alone, and their ``system``."""
