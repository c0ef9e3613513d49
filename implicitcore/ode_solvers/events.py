"""Where events happen along the steps of an integration."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from math import ceil, log2
from typing import NamedTuple

import torch
from torch import Tensor

from implicitcore.errors import GradientError
from implicitcore.ode_solvers.base import Step
from implicitcore.ode_solvers.dense import StepStart, evaluate, slope
from implicitcore.ode_solvers.event import Event, event_value
from implicitcore.system.system import System
from implicitcore.tensors.norms import column

_MOST = 100  # evaluations of e in a search: halving alone needs some fifty
_POLISH = 2  # Newton steps in the graph: each doubles the number of derivatives that are exact
_BEFORE = 1 - 2**-10  # the share of the way to a zero at which it is tried for one too
_TIE = 16  # events that are this close, in rounding of a step, happen together


class Cut(NamedTuple):
    """Where a step ends because events happened in it."""

    crossed: Tensor  # [batch] bool, the samples that end
    share: Tensor  # [batch], of the step
    at: Tensor  # [batch], that time

    def apply(self, piece: Sequence[Tensor], step: Step, end: Tensor) -> tuple[Step, Tensor]:
        """The step and its end, cut off."""
        z = evaluate(_of_crossed(piece, self.crossed), column(self.share).to(piece[0].dtype))
        step = step._replace(z=torch.where(column(self.crossed), z, step.z))
        return step, torch.where(self.crossed, self.at, end)


class StepCutter(ABC):
    """Cuts steps off where events happen.

    Attributes:
        ended: the samples whose event happened, ``[batch]`` bool.
        undefined: the samples of which an event became NaN, ``[batch]`` bool.
    """

    ended: Tensor
    undefined: Tensor

    @property
    def goes_on(self) -> Tensor:
        """The samples that go on after the last step, ``[batch]`` bool."""
        return ~(self.ended | self.undefined)

    def found(self) -> dict[str, Tensor]:
        """What it adds to a trajectory."""
        return {}

    @abstractmethod
    def cut(
        self, start: StepStart, step: Step, piece: Sequence[Tensor], end: Tensor, accept: Tensor
    ) -> tuple[Step, Tensor]:
        """The step and its end, both cut off where an event happens in its ``piece``."""


class Crossings(StepCutter):
    """Watches events along the steps, and finds the first that happens to each sample.

    The root of e is found on the continuous extension of the step, that of a boolean by halving.
    Newton's steps from a root, in the graph, give it the derivative of the implicit function:
    dt*/dp = -(de/dp) / (de/dt) at e(t*, z(t*; p), x) = 0. A zero at the start is no event, and two
    changes of an event within one step are not seen. Of several events in one step the earliest
    counts, and of those at one time the first in their order.

    Arguments:
        events: one or more.
        system: gives x and the layout of the state.
        t: the first time, ``[batch]``.
        z: the state there, ``[batch, n]``.

    Attributes:
        times: when one happened, ``[batch]``, NaN where none has.
        index: which it was, ``[batch]`` int64; -1: none.
        velocity: dz/dt there, that of the continuous extension, ``[batch, n]``; zero: none.
        sign: of each event until then, ``[events, batch]``, -1 and 1 of a boolean; zero where it
            was zero from the start, NaN where it became NaN.
    """

    def __init__(self, events: Sequence[Event], system: System, t: Tensor, z: Tensor) -> None:
        self.events, self.system = events, system
        self.times = torch.full_like(t, torch.nan)
        self.index = torch.full_like(t, -1, dtype=torch.int64)
        self.velocity = torch.zeros_like(z)
        self.ended = torch.zeros_like(t, dtype=torch.bool)
        with torch.no_grad():
            found = self._values(t, z)
            self.sign = torch.stack([_sign(e, t) for e in found])
            self.undefined = self.sign.isnan().any(0)
        self.switches = [e.dtype == torch.bool for e in found]
        turns = [
            "rising" if event.direction == "any" and switch else event.direction
            for event, switch in zip(events, self.switches, strict=True)
        ]
        rises, falls = ([turn != other for turn in turns] for other in ("falling", "rising"))
        self._rises = torch.tensor(rises, device=t.device).unsqueeze(1)
        self._falls = torch.tensor(falls, device=t.device).unsqueeze(1)

    def found(self) -> dict[str, Tensor]:
        """See :meth:`StepCutter.found`."""
        times, index, velocity = self.times, self.index, self.velocity
        return {"event_times": times, "event_index": index, "event_velocity": velocity}

    def _value(self, which: int, t: Tensor, z: Tensor) -> Tensor:
        return event_value(self.events, which, self.system, t, z)

    def _values(self, t: Tensor, z: Tensor) -> list[Tensor]:
        return [self._value(which, t, z) for which in range(len(self.events))]

    def cut(
        self, start: StepStart, step: Step, piece: Sequence[Tensor], end: Tensor, accept: Tensor
    ) -> tuple[Step, Tensor]:
        """See :meth:`StepCutter.cut`.

        Raises:
            GradientError: the derivative of e along the trajectory is zero, and a gradient is
                wanted.
        """
        found = self.search(start, step, piece, end, accept)
        return (step, end) if found is None else found.apply(piece, step, end)

    def search(
        self, start: StepStart, step: Step, piece: Sequence[Tensor], end: Tensor, accept: Tensor
    ) -> Cut | None:
        """Where :meth:`cut` cuts; None where no event happened."""
        crossed = self._crossed(end, step.z, accept)
        seen = crossed.any(1).tolist()
        return self._locate(start, piece, crossed, seen) if any(seen) else None

    @torch.no_grad()
    def _crossed(self, t: Tensor, z: Tensor, accept: Tensor) -> Tensor:
        """Which events happened in a step to (t, z) to the samples that accepted it.

        ``[events, batch]``.
        """
        now = torch.stack([_sign(e, t) for e in self._values(t, z)])
        rose, fell = (self.sign < 0) & (now >= 0), (self.sign > 0) & (now <= 0)
        # A zero goes on to have the sign before it: a touch is no change.
        self.sign = torch.where(accept & (now != 0), now, self.sign)
        self.undefined = self.sign.isnan().any(0)
        return accept & ((rose & self._rises) | (fell & self._falls))

    def _locate(
        self, start: StepStart, piece: Sequence[Tensor], crossed: Tensor, seen: Sequence[bool]
    ) -> Cut:
        """Where the first of the events ``crossed`` ``[events, batch]`` happens to each sample.

        Of each event the host knows whether it was ``seen`` at all.
        """
        t, dt, who = start.t, start.dt, crossed.any(0)
        piece = _of_crossed(piece, who)

        def along(which: int) -> Callable[[Tensor], Tensor]:
            def value(s: Tensor) -> Tensor:
                e = self._value(which, t + s * dt, evaluate(piece, column(s).to(piece[0].dtype)))
                return _sign(e, t) if e.dtype == torch.bool else e.to(t.dtype)

            return value

        happened = [which for which, found in enumerate(seen) if found]
        s, first = self._first(along, crossed, happened)
        for which in happened:
            if not self.switches[which]:
                s = _polished(along(which), s, who & (first == which), piece)
        at = t + s * dt
        with torch.no_grad():
            rate = slope(piece, column(s).to(piece[0].dtype)) / column(dt).to(piece[0].dtype)
            self.velocity = torch.where(column(who), rate, self.velocity)
            self.index = torch.where(who, first, self.index)
        self.times, self.ended = torch.where(who, at, self.times), self.ended | who
        return Cut(who, s, at.detach())

    @torch.no_grad()
    def _first(
        self,
        along: Callable[[int], Callable[[Tensor], Tensor]],
        crossed: Tensor,
        happened: list[int],
    ) -> tuple[Tensor, Tensor]:
        """The share of the step at which the first happens, and which it is, ``[batch]`` each."""
        eps = torch.finfo(self.system.packing.real_dtype).eps
        shares = torch.full_like(crossed, torch.inf, dtype=self.times.dtype)
        for which in happened:
            who = crossed[which]
            search = _turn if self.switches[which] else _root
            shares[which] = torch.where(who, search(along(which), who, self.times, eps), torch.inf)
        first = (shares <= shares.amin(0) + _TIE * eps).int().argmax(0)
        s = shares.gather(0, first.unsqueeze(0)).squeeze(0)
        return torch.where(s.isinf(), 1, s), first


def _of_crossed(piece: Sequence[Tensor], crossed: Tensor) -> list[Tensor]:
    """The pieces of the samples that ended; what was rejected may hold a NaN."""
    keep = column(crossed)
    return [piece[0], *(torch.where(keep, c, 0) for c in piece[1:])]


def _sign(e: Tensor, t: Tensor) -> Tensor:
    """The sign in the dtype of t, of a boolean -1 and 1; NaN of NaN: torch says zero."""
    if e.dtype == torch.bool:
        return e.to(t.dtype) * 2 - 1
    return torch.where(e.isnan(), e, e.sign()).to(t.dtype)


def _root(along: Callable[[Tensor], Tensor], crossed: Tensor, like: Tensor, eps: float) -> Tensor:
    """The root in [0, 1] by the Illinois variant of regula falsi; one where nothing ``crossed``."""
    a, b = torch.where(crossed, 0, torch.ones_like(like)), torch.ones_like(like)
    at_a, at_b = along(a), along(b)
    at_a = torch.where(at_a * at_b > 0, -at_a, at_a)  # rounding: the sign is known
    move = torch.ones_like(b)
    for _ in range(_MOST):
        going = crossed & (at_b != 0) & (move > 4 * eps)
        if not bool(going.any()):
            break
        s = b - at_b * (b - a) / (at_b - at_a)
        s = torch.where(
            torch.minimum(a, b) <= s, torch.minimum(s, torch.maximum(a, b)), (a + b) / 2
        )
        found = along(s)
        passed = found * at_b < 0
        a, at_a = torch.where(going & passed, b, a), torch.where(passed, at_b, at_a / 2)
        move = torch.where(going, (s - b).abs(), move)
        b, at_b = torch.where(going, s, b), torch.where(going, found, at_b)
    zero = crossed & (at_b == 0)
    if bool(zero.any()) and bool((zero & (along(torch.where(zero, b * _BEFORE, b)) == 0)).any()):
        return _halved(along, torch.where(zero, 0, b), b, eps)  # it stays zero: from where on?
    return b


def _turn(along: Callable[[Tensor], Tensor], crossed: Tensor, like: Tensor, eps: float) -> Tensor:
    """Where a boolean turns to what it is at the end; one where nothing ``crossed``."""
    end = torch.ones_like(like)
    return _halved(along, torch.where(crossed, 0, end), end, eps)


def _halved(along: Callable[[Tensor], Tensor], a: Tensor, b: Tensor, eps: float) -> Tensor:
    """Where a sign, which differs between a and b, becomes what it is at b: by halving."""
    end = along(b).sign()
    for _ in range(ceil(-log2(eps))):
        middle = (a + b) / 2
        turned = along(middle).sign() == end
        a, b = torch.where(turned, a, middle), torch.where(turned, middle, b)
    return b


def _polished(
    along: Callable[[Tensor], Tensor], s: Tensor, crossed: Tensor, piece: Sequence[Tensor]
) -> Tensor:
    """The root with the derivatives of the implicit function, where a gradient is wanted."""
    wanted = torch.is_grad_enabled() and (
        any(c.requires_grad for c in piece) or along(s).requires_grad
    )
    for _ in range(_POLISH if wanted else 0):
        found, rate = value_and_rate(along, s, crossed)
        s = s - torch.where(crossed, found, 0) / torch.where(crossed, rate, 1)
    return s


def value_and_rate(
    along: Callable[[Tensor], Tensor], s: Tensor, crossed: Tensor
) -> tuple[Tensor, Tensor]:
    """An event and its derivative along the trajectory, ``[batch]`` each, differentiable.

    Raises:
        GradientError: that is zero for a sample that ``crossed``.
    """
    found, pull, *_ = torch.func.vjp(along, s)
    rate = pull(torch.ones_like(found))[0]
    if bool((crossed & (rate == 0)).any()):
        raise GradientError(
            "the event does not change along the trajectory where it is zero, so that its "
            "time has no derivative"
        )
    return found, rate
