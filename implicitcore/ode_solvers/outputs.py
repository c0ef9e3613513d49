"""The states at the output times, from where the samples arrived and the steps that passed them."""

from __future__ import annotations

from collections.abc import Sequence
from operator import sub
from typing import NamedTuple

import torch
from torch import Tensor

from implicitcore.ode_solvers.dense import StepStart, evaluate
from implicitcore.tensors.norms import column


class Rows(NamedTuple):
    """Whose rows are, and for which output times they stand."""

    samples: Tensor  # [rows] int64
    first: Tensor  # [rows] int64, the first output time
    end: Tensor  # [rows] int64, one more than the last; as the first where there is none
    # [rows], t and dt of the step, where the rows are pieces of its continuous extension
    t: Tensor | None = None
    dt: Tensor | None = None


class Outputs:
    """The states at the output times, in the order in which the samples came by.

    A row is a state ``[n]`` where a sample arrived at a stop, and a piece ``[degree + 1, n]`` of a
    step's continuous extension (see :func:`~implicitcore.ode_solvers.dense.evaluate`) where it
    passed output times: all of these are evaluated together at the end, so that a step costs the
    same however many times it passes.

    Arguments:
        z0: the state at the first time, ``[batch, n]``; None where only later ones are wanted.

    Attributes:
        rows: z0, then the rows of each arrival ``[rows, n]`` and passage ``[rows, degree + 1, n]``.
        together: how many output times were reached by each of the first arrivals, those of all
            samples together, whose rows are states ``[batch, n]``.
    """

    def __init__(self, z0: Tensor | None = None) -> None:
        self.rows: list[Tensor] = [] if z0 is None else [z0]
        self.together: list[int] = []
        self.which: list[Rows] = []
        self.every: Tensor | None = None  # the index of each sample, made once

    def arrive_together(self, z: Tensor, reached: int) -> None:
        """All samples arrived, and have ``reached`` so many output times."""
        self.rows.append(z)
        self.together.append(reached)

    def forget(self, kept: int) -> None:
        """Forget the arrivals of all samples together, but for the first ones."""
        del self.rows[len(self.rows) - len(self.together) + kept :], self.together[kept:]

    def arrive(self, z: Tensor, arrived: Tensor, first: Tensor, end: Tensor) -> None:
        """Samples ``arrived``, and are at the output times from the first up to the end."""
        index = arrived.nonzero().squeeze(1)
        self.rows.append(z.index_select(0, index))
        self.which.append(Rows(index, first.index_select(0, index), end.index_select(0, index)))

    def passing(
        self,
        start: StepStart,
        piece: Sequence[Tensor],
        passed: Tensor | None,
        first: Tensor,
        end: Tensor,
    ) -> None:
        """Samples that ``passed`` the output times from the first up to the end; None: all."""
        rows = torch.stack(list(piece), 1)
        if passed is None:
            if self.every is None:
                self.every = torch.arange(len(rows), device=rows.device)
            found = Rows(self.every, first, end, start.t, start.dt)
        else:
            index = passed.nonzero().squeeze(1)
            rows = rows.index_select(0, index)
            parts = (part.index_select(0, index) for part in (first, end, start.t, start.dt))
            found = Rows(index, *parts)
        self.rows.append(rows)
        self.which.append(found)

    def assemble(
        self, rows: Sequence[Tensor], last: Tensor, reached: Tensor, times: Tensor
    ) -> Tensor:
        """``[T, batch, n]`` from the rows.

        Arguments:
            rows: these, or others of their shapes.
            last: the state now, ``[batch, n]``: that of the times that were not ``reached``.
            reached: output times, the first included, ``[batch]``.
            times: the output times.
        """
        if self.together and self.together[-1] == len(times):
            return self._of_all(rows)
        count, batch, device, shared = len(times), len(last), last.device, 1 + len(self.together)
        place = torch.arange(batch, device=device).repeat(count, 1)
        if self.together:
            ends = torch.tensor([1, *self.together])
            row = torch.searchsorted(ends, torch.arange(count), right=True)
            place += row.clamp(max=shared - 1).to(device).unsqueeze(1) * batch
        states = [i for i, which in enumerate(self.which) if which.dt is None]
        pieces = [i for i, which in enumerate(self.which) if which.dt is not None]
        table, used = [*rows[:shared]], batch * shared
        for group in filter(None, (states, pieces)):
            which = _joined([self.which[i] for i in group])
            found = torch.cat([rows[shared + i] for i in group])
            index, row = _times_of(which)
            at = row
            if which.t is not None and which.dt is not None:
                found = _evaluated(found, row, (times[index] - which.t[row]) / which.dt[row])
                at = torch.arange(len(row), device=device)
            place[index, which.samples[row]] = at + used
            table.append(found)
            used += len(found)
        late = torch.arange(count, device=device)[:, None] >= reached
        place = torch.where(late, torch.arange(used, used + batch, device=device), place)
        return (
            torch.cat((*table, last)).index_select(0, place.flatten()).reshape(count, *last.shape)
        )

    def _of_all(self, rows: Sequence[Tensor]) -> Tensor:
        """``[T, batch, n]`` where all samples came to the last time together."""
        found, ends = torch.stack(list(rows)), [1, *self.together]
        if len(found) == ends[-1]:
            return found
        many = torch.tensor([1, *map(sub, ends[1:], ends)], device=found.device)
        return found.repeat_interleave(many, 0)


def _joined(parts: Sequence[Rows]) -> Rows:
    """All rows in one."""
    samples = torch.cat([part.samples for part in parts])
    first, end = torch.cat([part.first for part in parts]), torch.cat([part.end for part in parts])
    t = [part.t for part in parts if part.t is not None]
    dt = [part.dt for part in parts if part.dt is not None]
    return (
        Rows(samples, first, end, torch.cat(t), torch.cat(dt)) if t else Rows(samples, first, end)
    )


def _times_of(which: Rows) -> tuple[Tensor, Tensor]:
    """Each output time that a row stands for: its index, and the row."""
    many = which.end - which.first
    row = torch.arange(len(many), device=many.device).repeat_interleave(many)
    before = many.cumsum(0) - many
    return torch.arange(len(row), device=row.device) + (which.first - before)[row], row


def _evaluated(pieces: Tensor, row: Tensor, s: Tensor) -> Tensor:
    """Pieces ``[rows, degree + 1, n]`` at shares s of their steps, ``[times, n]``."""
    share = column(s).to(pieces.dtype)
    value, *lower = [piece.index_select(0, row) for piece in reversed(pieces.unbind(1))]
    return evaluate([*reversed(lower), value], share)
