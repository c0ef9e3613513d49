"""Where each sample of an integration is."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from implicitcore.ode_solvers.stops import Stops
from implicitcore.solution import Status


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
        next: the index of the next output time, ``[batch]``.
        due: that time, ``[batch]``.
        stop: the index of the next time at which a step has to end, ``[batch]``.
        target: that time, ``[batch]``.
        active: takes steps, ``[batch]`` bool.
        done: reached the last output time, ``[batch]`` bool.
        finite: had finite values so far, ``[batch]`` bool.
        moving: has a step size left to try, ``[batch]`` bool.
        steps: taken, ``[batch]``.
        mark: ``steps`` at the last stop, ``[batch]``.
    """

    t: Tensor
    z: Tensor
    state: Any
    size: Tensor
    error: Tensor
    next: Tensor
    due: Tensor
    stop: Tensor
    target: Tensor
    active: Tensor
    done: Tensor
    finite: Tensor
    moving: Tensor
    steps: Tensor
    mark: Tensor

    @classmethod
    def at_start(cls, z0: Tensor, stops: Stops) -> Samples:
        """All of them at the first of the output times."""
        batch = z0.shape[0]
        t = stops.start.expand(batch)
        first = torch.ones(batch, dtype=torch.int64, device=z0.device)
        none = torch.zeros_like(first)
        yes = torch.ones(batch, dtype=torch.bool, device=z0.device)
        return cls(
            t=t,
            z=z0,
            state=None,
            size=torch.zeros_like(t),
            error=torch.ones_like(t),
            next=first,
            due=stops.times[1:2].expand(batch),
            stop=none,
            target=stops.ends[:1].expand(batch),
            active=yes,
            done=torch.zeros_like(yes),
            finite=yes,
            moving=yes,
            steps=none,
            mark=none,
        )

    def status(self, ended: Tensor | None) -> Tensor:
        """What became of each, ``[batch]`` int8; some may have ``ended`` before the last time."""
        status = torch.full_like(self.next, Status.MAX_STEPS, dtype=torch.int8)
        status[~self.moving] = Status.DIVERGED
        status[~self.finite] = Status.NON_FINITE
        status[self.done if ended is None else self.done | ended] = Status.CONVERGED
        return status


def chosen(which: Tensor, new: Any, old: Any) -> Any:
    """The new state of a solver for some samples, the old one for the others."""

    def of_each(new: Tensor, old: Tensor) -> Tensor:
        return torch.where(which.reshape(-1, *(1,) * (new.ndim - 1)), new, old)

    return pytree.tree_map(of_each, new, old)
