"""What ends an integration before its last time: events, as they are given."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, get_args

import torch
from torch import Tensor

from implicitcore.dynamics.cells import called, takes_time
from implicitcore.errors import InputError, did_you_mean, show
from implicitcore.system.memory import as_given, check_given
from implicitcore.system.system import System
from implicitcore.tensors.like import described

EventFunction = Callable[..., Tensor]
"""e(t, z, x) or e(z, x) -> ``[batch]``; t comes as ``[batch, 1, ..., 1]``."""

Direction = Literal["any", "rising", "falling"]


@dataclass(frozen=True)
class Event:
    """Where a function of the state changes its sign, e(t, z(t), x) = 0, in one direction or any.

    The direction is that of e along the integration: of times that decrease, ``"rising"`` is where
    e is negative at later times and positive at earlier ones. A zero at the start is no event.

    A function that returns booleans happens where it turns True (``"falling"``: False); True at the
    start is no event. It is located by halving the continuous extension of a step, to rounding. The
    time of such an event has no derivative: it gets none, and the state there has the gradient of
    that at a fixed time. Prefer real values where there are some: they need fewer evaluations, and
    time and state have the gradient of the implicit function.

    Attributes:
        function: e(t, z, x) or, as its signature says, e(z, x) -> ``[batch]``, real or bool; t
            comes as ``[batch, 1, ..., 1]``.
        direction: ``"any"``; ``"rising"``, from negative to positive; or ``"falling"``.

    Raises:
        InputError: the function cannot be called; the direction is none of its words.

    Reference:
        Hairer, Norsett, Wanner, Solving Ordinary Differential Equations I, 2nd edition, section
        II.6 (event location by dense output).

    Example:
        A cosine falls through zero at pi / 2, and rises through it at 3 pi / 2.

        >>> import torch, implicitcore as ic
        >>> z0 = torch.tensor([[1.0, 0.0]], dtype=torch.float64)
        >>> swing = lambda t, z, x: torch.stack((z[:, 1], -z[:, 0]), 1)
        >>> rising = ic.Event(lambda t, z, x: z[:, 0], direction="rising")
        >>> solver = ic.Tsit5(rtol=1e-9, atol=1e-9)
        >>> found = ic.integrate(swing, z0, times=[0.0, 9.0], event=rising, solver=solver)
        >>> round(found.event_times.item(), 6)
        4.712389
    """

    function: EventFunction
    direction: Direction = "any"
    _timed: bool = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        if not callable(self.function):
            raise InputError(_expected("Event", self.function))
        known = get_args(Direction)
        if self.direction not in known:
            raise InputError(
                f"Event: direction: expected one of {', '.join(known)}, received "
                f"{show(self.direction)}{did_you_mean(self.direction, known)}"
            )
        object.__setattr__(self, "_timed", takes_time(self.function, otherwise=True))

    def value(self, name: str, t: Tensor, z: Any, x: Any) -> Any:
        """E, whatever it is.

        Raises:
            InputError: the function does not take these arguments.
        """
        return called(self.function, self._timed, name, (t, z, x))


Events = Event | EventFunction | Sequence[Event | EventFunction]
"""One event or several; a plain function is one of any direction."""


def as_events(given: Any) -> tuple[Event, ...]:
    """What was given as the event or events of an integration; None is none.

    Raises:
        InputError: it is something else.
    """
    if given is None:
        return ()
    if not isinstance(given, Sequence) or isinstance(given, str):
        return (_as_event(given, "event"),)
    if not given:
        raise InputError("event: expected an event or several, received none: []")
    return tuple(_as_event(event, f"event[{i}]") for i, event in enumerate(given))


def _as_event(given: Any, name: str) -> Event:
    if isinstance(given, Event):
        return given
    function: Any = given  # pyright reads callable() as a function that returns an object
    if not callable(given):
        raise InputError(_expected(name, given))
    return Event(function)


def _expected(name: str, given: object) -> str:
    return f"{name}: expected a function of (t, z, x) that returns [batch], received {show(given)}"


def event_value(
    events: Sequence[Event], which: int, system: System, t: Tensor, z: Tensor
) -> Tensor:
    """The value of one of the events, ``[batch]``, real or bool.

    Arguments:
        events: all of them.
        which: the index of the one.
        system: gives x and the layout of the state.
        t: ``[batch]``.
        z: ``[batch, n]``.

    Raises:
        InputError: it is something else, or it writes into what it is given.
    """
    packing = system.packing
    time = system.problem.time(t)
    name = "event" if len(events) == 1 else f"event[{which}]"
    state, x = packing.unpack(z), system.x
    given = as_given(t=time, z=state, x=x)
    found = system.scope.call(events[which].value, name, time, state, x)
    check_given(name, given)
    if (
        isinstance(found, Tensor)
        and found.shape == (packing.batch,)
        and (found.is_floating_point() or found.dtype == torch.bool)
    ):
        return found
    kind = described(found) if isinstance(found, Tensor) else f"a {type(found).__name__}"
    raise InputError(
        f"{name}: expected it to return real numbers or booleans of shape [{packing.batch}], "
        f"received {kind}"
    )
