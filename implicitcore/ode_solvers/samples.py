"""Where each sample of an integration is."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from implicitcore.ode_solvers.stops import Stops, of_each
from implicitcore.solution import Status


class Ahead(NamedTuple):
    """The times that each sample goes to."""

    next: Tensor  # [batch], the index of the next output time
    due: Tensor  # [batch], that time; kept where output times lie between the stops
    stop: Tensor  # [batch], the index of the next time at which a step has to end
    target: Tensor  # [batch], that time
    mark: Tensor  # [batch], the steps taken until the last stop

    @classmethod
    def at_start(cls, none: Tensor, stops: Stops) -> Ahead:
        """The first ones; ``none`` is zero for each sample."""
        due, target = (t.expand(len(none)) for t in (stops.times[1], stops.ends[0]))
        return cls(none + 1, due, none, target, none)

    def passed(self, reached: Tensor, stops: Stops) -> Ahead:
        """With so many output times ``reached``."""
        if not stops.between:
            return self._replace(next=reached)
        due = of_each(stops.times, reached.clamp(max=len(stops.times) - 1))
        return self._replace(next=reached, due=due)

    def arrived(self, arrived: Tensor, steps: Tensor, stops: Stops) -> Ahead:
        """Where samples ``arrived`` at their stops, after so many ``steps``."""
        last = len(stops.ends) - 1
        reached = torch.where(arrived, stops.reached[self.stop.clamp(max=last)], self.next)
        stop, mark = self.stop + arrived, torch.where(arrived, steps, self.mark)
        target = of_each(stops.ends, stop.clamp(max=last))
        return self.passed(reached, stops)._replace(stop=stop, target=target, mark=mark)


class StepCount(NamedTuple):
    """Steps that samples took: those that all of them took are counted by the host."""

    each: Tensor  # [batch] int64
    undefined: Tensor  # [batch] int64, of all those that were refused as they were not finite
    together: int = 0


@dataclass
class Samples:
    """Where each sample is.

    Its tensors are replaced and never changed, so that a shallow copy keeps this moment.

    Attributes:
        t: the time, ``[batch]``.
        z: the state, ``[batch, n]``.
        state: the solver's, any pytree of ``[batch, ...]``; None where it is to be made.
        size: of the next step, positive, ``[batch]``.
        error: what the control of the step size remembers, ``[..., batch]``.
        ahead: the times that it goes to.
        active: takes steps, ``[batch]`` bool.
        done: reached the last output time, ``[batch]`` bool.
        finite: had finite values so far, ``[batch]`` bool.
        moving: has a step size left to try, ``[batch]`` bool.
        count: of the steps that they took.
        whole: it is known that all of them are active.
    """

    t: Tensor
    z: Tensor
    state: Any
    size: Tensor
    error: Tensor
    ahead: Ahead
    active: Tensor
    done: Tensor
    finite: Tensor
    moving: Tensor
    count: StepCount
    whole: bool = False

    @classmethod
    def at_start(cls, z0: Tensor, stops: Stops) -> Samples:
        """All of them at the first of the output times."""
        batch = z0.shape[0]
        t = stops.start[0].expand(batch)
        none = torch.zeros(batch, dtype=torch.int64, device=z0.device)
        yes = torch.ones(batch, dtype=torch.bool, device=z0.device)
        return cls(
            t=t,
            z=z0,
            state=None,
            size=torch.zeros_like(t),
            error=torch.ones_like(t),
            ahead=Ahead.at_start(none, stops),
            active=yes,
            done=torch.zeros_like(yes),
            finite=yes,
            moving=yes,
            count=StepCount(none, none),
        )

    @property
    def steps(self) -> Tensor:
        """The steps taken, ``[batch]``."""
        return self.count.each + self.count.together

    def now(self, event_times: Tensor | None) -> Tensor:
        """The time of each, ``[batch]``: that of its event with its graph, where one happened."""
        if event_times is None:
            return self.t
        return torch.where(event_times.isnan(), self.t, event_times)

    def take(self) -> None:
        """Those that are active took a step."""
        count = self.count
        if self.whole:
            self.count = count._replace(together=count.together + 1)
        else:
            self.count = count._replace(each=self.steps + self.active, together=0)

    def status(self, ended: Tensor | None) -> Tensor:
        """What became of each, ``[batch]`` int8; some may have ``ended`` before the last time."""
        status = torch.full_like(self.count.each, Status.MAX_STEPS, dtype=torch.int8)
        status = status.masked_fill(~self.moving, Status.DIVERGED)
        status = status.masked_fill(~self.finite, Status.NON_FINITE)
        arrived = self.done if ended is None else self.done | ended
        return status.masked_fill(arrived, Status.CONVERGED)


def chosen(which: Tensor, new: Any, old: Any) -> Any:
    """The new state of a solver for some samples, the old one for the others.

    What is no tensor belongs to no sample: the new one.
    """

    def of_each(new: Any, old: Any) -> Any:
        if not isinstance(new, Tensor):
            return new
        return torch.where(which.reshape(-1, *(1,) * (new.ndim - 1)), new, old)

    return pytree.tree_map(of_each, new, old)
