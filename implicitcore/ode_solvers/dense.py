"""The continuous extension of a trajectory: z at any time of the span."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from implicitcore.errors import InputError
from implicitcore.ode_solvers.stops import Stops
from implicitcore.tensors.packing import Packing


class StepStart(NamedTuple):
    """Where a step begins."""

    t: Tensor  # [batch]
    dt: Tensor  # [batch], to where it goes, with its sign
    z: Tensor  # [batch, n]
    state: Any  # the solver's


def evaluate(piece: Sequence[Tensor], s: Tensor) -> Tensor:
    """A piece at the share s of its step, c_0 + s (c_1 + (1 - s) (c_2 + s (c_3 + (1 - s) (...)))).

    S broadcasts against each c.
    """
    value = piece[-1]
    for i in range(len(piece) - 2, -1, -1):
        value = torch.addcmul(piece[i], s if i % 2 == 0 else 1 - s, value)
    return value


def bounded(pieces: Tensor) -> Tensor:
    """Pieces ``[rows, degree + 1, ...]``, straight where the field has no value at an end.

    The states at both ends have been accepted: what lies between is finite.
    """
    bends = pieces[:, 2:]
    return torch.cat((pieces[:, :2], torch.where(bends.isfinite(), bends, 0)), 1)


def slope(piece: Sequence[Tensor], s: Tensor) -> Tensor:
    """The derivative of :func:`evaluate` with respect to s."""
    value, rate = piece[-1], torch.zeros_like(piece[-1])
    for i in range(len(piece) - 2, -1, -1):
        share, sign = (s, 1) if i % 2 == 0 else (1 - s, -1)
        rate = sign * value + share * rate
        value = torch.addcmul(piece[i], share, value)
    return rate


@dataclass(frozen=True, eq=False, kw_only=True)
class Interpolant:
    """z(t) of each sample on the whole span, one piece per accepted step.

    Attributes:
        packing: how a state is laid out.
        span: the first and the last time of the integration, ``[2]``, or ``[2, batch]``.
        ends: the times at which the steps of each sample end, ``[batch, steps]``, rejected ones
            included: there t stands still.
        starts: the times at which they begin, ``[batch, steps]``.
        dt: their lengths, with the sign of the direction, ``[batch, steps]``.
        row: the row of ``pieces`` of each step, ``[batch, steps]``; for a rejected one the state at
            the first time.
        pieces: coefficients of the accepted steps, ``[rows, degree + 1, n]``; see :func:`evaluate`.
    """

    packing: Packing
    span: Tensor
    ends: Tensor
    starts: Tensor
    dt: Tensor
    row: Tensor
    pieces: Tensor

    def __call__(self, t: Tensor) -> Any:
        """The states at the times t, ``[T]`` for all samples or ``[batch, T]``.

        ``[T, batch, ...]``. A sample that ended before t (it failed, or its event happened) has NaN
        there.

        Raises:
            InputError: t has another shape, or is outside of the span.
        """
        t = self._check(t)
        forward = torch.where(self.span[1] > self.span[0], 1, -1).to(t).reshape(-1, 1)
        ahead = (t * forward).detach().contiguous()
        ends = (self.ends * forward).contiguous()
        first = torch.searchsorted(ends, ends[:, :1].contiguous(), right=True)
        step = torch.maximum(torch.searchsorted(ends, ahead), first).clamp(max=ends.shape[1] - 1)
        dt = self.dt.gather(1, step)
        s = (t - self.starts.gather(1, step)) / torch.where(dt == 0, 1, dt)
        pieces = self.pieces[self.row.gather(1, step).T].unbind(2)
        z = evaluate(pieces, s.T.unsqueeze(2).to(self.pieces.dtype))
        late = ahead > ends[:, -1:]
        return self.packing.unpack(torch.where(late.T.unsqueeze(2), torch.nan, z))

    def steps(self) -> tuple[Tensor, Any]:
        """See :meth:`~implicitcore.Trajectory.at_steps`."""
        with torch.no_grad():
            moved = torch.nn.functional.pad(self.ends.diff(dim=1) != 0, (1, 0), value=True)
            count = moved.sum(1, keepdim=True)
            order = (~moved).to(torch.uint8).sort(dim=1, stable=True).indices[:, : int(count.max())]
            beyond = torch.arange(order.shape[1], device=order.device) >= count
            t = self.ends.gather(1, order)
            t = torch.where(beyond, self.ends[:, -1:], t)
        absent = beyond.T

        def marked(z: Tensor) -> Tensor:
            return torch.where(absent.reshape(*absent.shape, *(1,) * (z.ndim - 2)), torch.nan, z)

        return torch.where(beyond, torch.nan, t), pytree.tree_map(marked, self(t))

    def _check(self, t: Tensor) -> Tensor:
        batch = len(self.ends)
        if (
            not isinstance(t, Tensor)
            or t.ndim not in (1, 2)
            or (t.ndim == 2 and len(t) != batch)
            or t.is_complex()
        ):
            found = (
                f"{t.dtype} of shape {list(t.shape)}"
                if isinstance(t, Tensor)
                else f"a {type(t).__name__}"
            )
            raise InputError(
                f"t: expected a real tensor of shape [T] or [{batch}, T], received {found}"
            )
        t = t.to(self.span).expand(batch, -1)
        low, high = (end.expand(batch) for end in self.span.aminmax(dim=0))
        outside = ~((t >= low.unsqueeze(1)) & (t <= high.unsqueeze(1)))
        if bool(outside.any()):
            sample, place = outside.nonzero()[0].tolist()
            whose = f" for sample {sample}" if self.span.ndim > 1 else ""
            raise InputError(
                f"t: expected times from {low[sample].item():g} to {high[sample].item():g}, "
                f"received {t[sample, place].item():g}{whose}"
            )
        return t


class Pieces:
    """The pieces of the accepted steps, as they are made.

    Arguments:
        t: the first time, ``[batch]``.
        z0: the state there, ``[batch, n]``.
    """

    def __init__(self, t: Tensor, z0: Tensor) -> None:
        self.z0 = z0
        self.starts, self.ends, self.dt = [t], [t], [torch.zeros_like(t)]
        self.accepted = [torch.ones_like(t, dtype=torch.bool)]
        self.rows: list[Tensor] = []

    def add(self, start: StepStart, end: Tensor, piece: Sequence[Tensor], accept: Tensor) -> None:
        """A step that was accepted for some samples, and for those holds up to ``end``."""
        self.starts.append(start.t)
        self.ends.append(torch.where(accept, end, start.t))
        self.dt.append(start.dt)
        self.accepted.append(accept)
        self.rows.append(torch.stack(list(piece), 1)[accept])

    def interpolant(self, packing: Packing, stops: Stops) -> Interpolant:
        """All of them; the first piece is the state at the first time."""
        ends, times = torch.stack(self.ends, 1), stops.times
        if stops.jumps:  # the last step may have ended just before the last time
            ends = torch.where(ends == stops.ends[-1], times[-1], ends)
        degree = self.rows[0].shape[1] - 1 if self.rows else 0
        first = torch.stack([self.z0, *[torch.zeros_like(self.z0)] * degree], 1)
        accepted = torch.stack(self.accepted)
        place = accepted.flatten().cumsum(0).sub(1).view_as(accepted)
        return Interpolant(
            packing=packing,
            span=times[[0, -1]],
            ends=ends,
            starts=torch.stack(self.starts, 1),
            dt=torch.stack(self.dt, 1),
            row=torch.where(accepted, place, place[0]).T,
            pieces=bounded(torch.cat((first, *self.rows))),
        )
