"""Which states of a sequence of steps to keep, to go back over it in bounded memory."""

from __future__ import annotations

from collections.abc import Callable
from math import comb, isqrt
from typing import Generic, NamedTuple, TypeVar

State = TypeVar("State")

# So many states are kept where no budget says less. The graph of a step of a Runge-Kutta method of
# order 5 has two tensors of that size a stage, beside those of f: as many.
FEW = 12


class _Kept(NamedTuple, Generic[State]):
    step: int
    level: int
    state: State


class Checkpoints(Generic[State]):
    """The states kept of a sequence whose length is not known before its end.

    Going forward a state is kept at a level that says how long it is to stay; one that is followed
    by a higher level makes room for the next. Going back the number of steps is known, and the free
    places are shared out by the binomial rule, which needs the fewest steps. With c places and N =
    C(c + r, c) steps, no step is taken more than about r times.

    Arguments:
        budget: most states kept beside the first; None keeps 2 sqrt(N) of N, and each step is then
            taken about twice; all of a dozen, which take less than the graph of one step.

    Reference:
        Forward: Wang, Moin, Iaccarino, Minimal repetition dynamic checkpointing algorithm for
        unsteady adjoint calculation, SIAM J. Sci. Comput. 31 (2009), p. 2549-2567. Backward:
        Griewank, Walther, Algorithm 799: revolve, ACM Trans. Math. Softw. 26 (2000).
    """

    def __init__(self, budget: int | None = None) -> None:
        self.budget = budget
        self.places = budget or 1
        self.kept: list[_Kept[State]] = []
        # All of a few states, beside those that would be kept of many; None where there are many.
        self.first: list[State] | None = [] if budget is None else None

    def offer(self, index: int, state: State) -> None:
        """The state before step ``index``, in order.

        The first is kept for good, the others as long as there is room.
        """
        if self.first is not None and index < FEW:
            self.first.append(state)
        else:
            self.first = None
        self.places = self.budget or 2 * isqrt(index) + 1
        level = 0
        if len(self.kept) > self.places:
            dispensable = self._dispensable()
            if dispensable:
                del self.kept[dispensable]
            else:
                level = self.kept.pop().level + 1
        self.kept.append(_Kept(index, level, state))

    def forget(self, index: int) -> None:
        """Forget the states from before step ``index`` on: others will be offered."""
        if self.first is not None:
            del self.first[index:]
        while self.kept and self.kept[-1].step >= index:
            self.kept.pop()

    def _dispensable(self) -> int:
        """The place of a state that one of a higher level follows; 0 where there is none."""
        highest = 0
        for place in range(len(self.kept) - 1, 0, -1):
            if self.kept[place].level < highest:
                return place
            highest = max(highest, self.kept[place].level)
        return 0

    def take(self, index: int, advance: Callable[[State, int, int], State]) -> State:
        """The state before step ``index``.

        To be asked for from the last index down to 0, any number of times. States are given up
        meanwhile, to make room; another pass begins from the first, which stays.

        Arguments:
            index: of the step.
            advance: (state, index of its step, steps) -> the state so many steps later.
        """
        if self.first is not None:
            self.kept = [_Kept(step, 0, first) for step, first in enumerate(self.first)]
            self.places, self.first = max(self.places, len(self.kept) - 1), None
        while (last := self.kept[-1]).step < index:
            free = self.places + 1 - len(self.kept)
            if not free:
                return advance(last.state, last.step, index - last.step)
            steps = split(index - last.step + 1, free + 1)
            self.kept.append(_Kept(last.step + steps, 0, advance(last.state, last.step, steps)))
        return self.kept.pop().state if index else last.state


def split(steps: int, places: int) -> int:
    """After how many of ``steps`` >= 2 to keep the next state.

    ``places`` >= 2 may be kept, the one at their start included.
    """
    repetitions = 1
    while comb(places + repetitions, places) < steps:
        repetitions += 1
    return min(
        comb(places + repetitions - 1, places), steps - comb(places + repetitions - 2, places - 1)
    )
