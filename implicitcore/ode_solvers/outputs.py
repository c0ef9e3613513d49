"""The states at the output times, from where the samples arrived and the steps that passed them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar, NamedTuple

import torch
from torch import Tensor

from implicitcore.ode_solvers.dense import StepStart, bounded, evaluate
from implicitcore.system.system import System


class Rows(NamedTuple):
    """Whose rows are, and for which output times they stand."""

    samples: Tensor  # [rows] int64
    first: Tensor  # [rows] int64, the first output time
    end: Tensor  # [rows] int64, one more than the last; as the first where there is none
    # [rows], t and dt of the step, where the rows are pieces of its continuous extension
    t: Tensor | None = None
    dt: Tensor | None = None


class Together(NamedTuple):
    """For how many output times the rows of all samples stand, from the first not yet reached."""

    many: int
    # [], t and dt of the step, where the rows are pieces of its continuous extension
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
        start: the state at the first time, ``[batch, n]``, where there is one.
        rows: z0, then the rows of each arrival ``[rows, n]`` and passage ``[rows, degree + 1, n]``.
        together: what the first of these stand for, those of all samples together, whose rows are
            ``[batch, ...]``; the first is z0.
        which: what the later ones stand for.
    """

    saves: ClassVar[bool] = False  # something else than states

    def __init__(self, z0: Tensor | None = None) -> None:
        self.start = z0
        self.rows: list[Tensor] = [] if z0 is None else [z0]
        self.together: list[Together] = [] if z0 is None else [Together(1)]
        self.which: list[Rows] = []
        self.every: Tensor | None = None  # the index of each sample, made once

    def again(self, system: System) -> Outputs:
        """Others like it, for steps that are taken again in a system, with none so far."""
        del system
        return Outputs()

    def kept(self, t: Tensor, z: Tensor) -> Tensor:
        """What is kept of states ``[batch, n]`` at times ``[batch]``."""
        del t
        return z

    def late(self, t: Tensor, z: Tensor, reached: Tensor) -> Tensor:
        """What is kept at the times that were not reached, of where the samples are now."""
        del reached
        return self.kept(t, z)

    def arrive_together(self, z: Tensor, first: int, end: int) -> None:
        """All samples are at the output times from the first, which is the next, up to the end."""
        self.rows.append(z)
        self.together.append(Together(end - first))

    def pass_together(
        self, start: StepStart, piece: Sequence[Tensor], first: int, end: int
    ) -> None:
        """All samples pass the output times from the first, which is the next, up to the end."""
        self.rows.append(torch.stack(list(piece), 1))
        self.together.append(Together(end - first, start.t[:1], start.dt[:1]))

    def forget(self, kept: int) -> None:
        """Forget the rows of all samples together, but for the first ones."""
        del self.rows[kept:], self.together[kept:]

    def arrive(self, z: Tensor, arrived: Tensor, first: Tensor, end: Tensor) -> None:
        """Samples ``arrived``, and are at the output times from the first up to the end."""
        index = arrived.nonzero().squeeze(1)
        first, end = first.index_select(0, index), end.index_select(0, index)
        self.add(z.index_select(0, index), Rows(index, first, end))

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
        self.add(rows, found)

    def add(self, rows: Tensor, which: Rows) -> None:
        """States or pieces, and what they stand for."""
        self.rows.append(rows)
        self.which.append(which)

    def assemble(
        self, rows: Sequence[Tensor], last: Tensor, reached: Tensor, times: Tensor
    ) -> Tensor:
        """``[T, batch, n]`` from the rows.

        Arguments:
            rows: these, or others of their shapes.
            last: what :meth:`late` gave, ``[batch, n]``, for the times that were not ``reached``.
            reached: output times, the first included, ``[batch]``.
            times: the output times, ``[T]`` or ``[T, batch]``.
        """
        together, shared = self._of_all(rows, times), len(self.together)
        if len(together) == len(times):
            return together
        count, batch, device, used = len(times), len(last), last.device, len(together) * len(last)
        place = torch.arange(count * batch, device=device).view(count, batch)
        states = [i for i, which in enumerate(self.which) if which.dt is None]
        pieces = [i for i, which in enumerate(self.which) if which.dt is not None]
        table = [together.flatten(0, 1)]
        for group in filter(None, (states, pieces)):
            which = _joined([self.which[i] for i in group])
            found = torch.cat([rows[shared + i] for i in group])
            index, row = _times_of(which)
            at = row
            if which.t is not None and which.dt is not None:
                due = times[index] if times.ndim == 1 else times[index, which.samples[row]]
                found = _evaluated(found, row, (due - which.t[row]) / which.dt[row])
                at = torch.arange(len(row), device=device)
            place[index, which.samples[row]] = at + used
            table.append(found)
            used += len(found)
        late = torch.arange(count, device=device)[:, None] >= reached
        place = torch.where(late, torch.arange(used, used + batch, device=device), place)
        return (
            torch.cat((*table, last)).index_select(0, place.flatten()).reshape(count, *last.shape)
        )

    def _of_all(self, rows: Sequence[Tensor], times: Tensor) -> Tensor:
        """The states at the times that all samples reached together, ``[reached, batch, n]``."""
        states, pieces, parts = [], [], []
        order, due, row, reached = [], [], [], 0
        for found, which in zip(rows, self.together, strict=False):
            if which.t is None:
                order += [(len(states), 0)] * which.many
                states.append(found)
            else:
                order += [(len(due) + k, 1) for k in range(which.many)]
                due += range(reached, reached + which.many)
                row += [len(pieces)] * which.many
                pieces.append(found)
                parts.append(which)
            reached += which.many
        table = torch.stack(states)
        if pieces:
            index, of = torch.tensor([due, row], device=table.device)
            t, dt = (torch.cat([getattr(which, name) for which in parts]) for name in ("t", "dt"))
            share = (times[index] - t[of]) / dt[of]
            table = torch.cat((table, _evaluated(torch.stack(pieces).movedim(2, 1), of, share)))
        place = [first + later * len(states) for first, later in order]
        if place == [*range(len(table))]:
            return table
        return table.index_select(0, torch.tensor(place, device=table.device))


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
    """Pieces ``[rows, degree + 1, ...]`` at shares s ``[times]`` of their steps."""
    share = s.view(-1, *(1,) * (pieces.ndim - 2)).to(pieces.dtype)
    value, *lower = [part.index_select(0, row) for part in reversed(bounded(pieces).unbind(1))]
    return evaluate([*reversed(lower), value], share)
