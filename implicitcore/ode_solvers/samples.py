"""Where each sample of an integration is, and where it was at the output times."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

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
        target: that time, ``[batch]``.
        active: takes steps, ``[batch]`` bool.
        done: reached the last output time, ``[batch]`` bool.
        finite: had finite values so far, ``[batch]`` bool.
        moving: has a step size left to try, ``[batch]`` bool.
        steps: taken, ``[batch]``.
    """

    t: Tensor
    z: Tensor
    state: Any
    size: Tensor
    error: Tensor
    next: Tensor
    target: Tensor
    active: Tensor
    done: Tensor
    finite: Tensor
    moving: Tensor
    steps: Tensor

    @classmethod
    def at_start(cls, z0: Tensor, times: Tensor) -> Samples:
        """All of them at the first of the output times."""
        batch = z0.shape[0]
        t = times[:1].expand(batch)
        first = torch.ones(batch, dtype=torch.int64, device=z0.device)
        yes = torch.ones(batch, dtype=torch.bool, device=z0.device)
        return cls(
            t=t,
            z=z0,
            state=None,
            size=torch.zeros_like(t),
            error=torch.ones_like(t),
            next=first,
            target=times[1:2].expand(batch),
            active=yes,
            done=torch.zeros_like(yes),
            finite=yes,
            moving=yes,
            steps=torch.zeros_like(first),
        )

    def status(self, ended: Tensor | None) -> Tensor:
        """What became of each, ``[batch]`` int8; some may have ``ended`` before the last time."""
        status = torch.full_like(self.next, Status.MAX_STEPS, dtype=torch.int8)
        status[~self.moving] = Status.DIVERGED
        status[~self.finite] = Status.NON_FINITE
        status[self.done if ended is None else self.done | ended] = Status.CONVERGED
        return status


def spread(mask: Tensor, value: Tensor) -> Tensor:
    """``[batch]`` with as many dimensions as the value, to broadcast."""
    return mask.reshape(-1, *(1,) * (value.ndim - 1))


class Outputs:
    """The states at the output times: rows in the order of arrival, and whose they are.

    Arguments:
        z0: the state at the first time, ``[batch, n]``; None where only later ones are wanted.
    """

    def __init__(self, z0: Tensor | None = None) -> None:
        self.rows: list[Tensor] = [] if z0 is None else [z0]
        self.samples: list[Tensor] = []
        self.which: list[Tensor] = []

    def add(self, z: Tensor, arrived: Tensor, which: Tensor) -> None:
        """Samples ``arrived`` at their output times ``which``."""
        index = arrived.nonzero().squeeze(1)
        self.rows.append(z.index_select(0, index))
        self.samples.append(index)
        self.which.append(which.index_select(0, index))

    def assemble(self, rows: Sequence[Tensor], last: Tensor, reached: Tensor, count: int) -> Tensor:
        """``[T, batch, n]`` from the rows of the start and of each arrival.

        Arguments:
            rows: these, or others of their shapes.
            last: the state now, ``[batch, n]``: that of the times that were not ``reached``.
            reached: output times, the first included, ``[batch]``.
            count: of all output times.
        """
        batch, device = len(last), last.device
        place = torch.arange(batch, device=device).repeat(count, 1)
        if self.samples:
            samples = torch.cat(self.samples)
            used = batch + len(samples)
            place[torch.cat(self.which), samples] = torch.arange(batch, used, device=device)
        else:
            used = batch
        late = torch.arange(count, device=device)[:, None] >= reached
        place = torch.where(late, torch.arange(used, used + batch, device=device), place)
        return torch.cat((*rows, last)).index_select(0, place.flatten()).reshape(count, *last.shape)
