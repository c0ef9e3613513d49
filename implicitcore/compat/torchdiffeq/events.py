"""When an event happens: the sign of a function of the state changes."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from implicitcore.compat.torchdiffeq.problem import Problem
from implicitcore.compat.torchdiffeq.state import Field, Function, Layout, moved
from implicitcore.errors import InputError
from implicitcore.solution import SolveError

# Steps in which an event must happen, unless the options say how many: it may never.
MOST = 20_000

Event = Callable[[Tensor, Tensor], Tensor]


def signed(event_fn: Function, layout: Layout, y0: Any, t0: Tensor) -> Event:
    """The event as a scalar of t and a row ``[1, n]``, positive before it.

    The first of the entries to change its sign.
    """
    with torch.no_grad():
        sign = torch.sign(event_fn(t0, y0))
    return lambda t, z: (event_fn(t, layout.unpack(z[0])) * sign).min()


def find_event(problem: Problem, event_fn: Function) -> tuple[Tensor, Tensor]:
    """The first time at which an event happens.

    The steps are watched until a sign changes; within that step the time is found by a secant
    method that keeps the bracket, each trial a step from its begin.

    Arguments:
        problem: the integration; its second time says which way to go.
        event_fn: of t and y.

    Returns:
        The time, a scalar in the dtype of the clock without a gradient, and the states at the
        first time and there, ``[2, n]``, as at a fixed time.

    Raises:
        SolveError: no event happened.
    """
    if len(problem.t) != 2:
        raise InputError(
            f"t: expected [2] entries with event_fn, received shape {list(problem.t.shape)}"
        )
    t0, z0 = problem.t[0].detach(), problem.z0
    event = signed(event_fn, problem.layout, problem.y0, t0)
    with torch.no_grad():
        if not event(t0, z0) > 0:
            return t0, torch.cat((z0, z0))
    steps = problem.steps(endless=True)
    most = min(int(problem.method.options.get("max_num_steps", MOST)), MOST)
    while True:
        if steps.tried >= most:
            raise SolveError(f"no event happened in {steps.tried} steps")
        piece = steps.advance()
        with torch.no_grad():
            if not event(_time(piece.end, z0), piece.step.z) > 0:
                break
    start, clock = piece.t.detach(), piece.t.dtype

    @torch.no_grad()
    def value(t: float) -> float:
        at = start.new_tensor([t])
        return float(event(_time(at, z0), piece.shortened(at)))

    found = _zero(value, start.item(), piece.end.item(), 4 * torch.finfo(clock).eps)
    at = start.new_tensor([found])
    return at[0], torch.cat((z0, piece.shortened(at)))


def link(field: Field, event: Event, t: Tensor, z: Tensor) -> tuple[Tensor, Tensor]:
    """Give the time of an event its gradient, and the state there what follows from that.

    Dt* = -de / (de/dt) at e(t*, z(t*)) = 0.

    Arguments:
        field: dz/dt.
        event: a scalar of t and a row.
        t: the time of the event, a scalar.
        z: the state there ``[1, n]``, with the gradient that it has at a fixed time.
    """
    with torch.enable_grad():
        at, there = t.detach().requires_grad_(), z.detach().requires_grad_()
        value = event(at, there)
        if not value.requires_grad:  # a constant, as where time is up: so is the time
            return t.detach(), z
        by_t, by_z = torch.autograd.grad(
            value, (at, there), materialize_grads=True, allow_unused=True
        )
    with torch.no_grad():
        velocity = field(_time(at, z), there)
    rate = by_t + (by_z.conj() * velocity).real.sum()
    t = moved(t.detach(), -1 / rate, event(t.detach(), z))
    return t, moved(z, velocity, t)


def _time(t: Tensor, z: Tensor) -> Tensor:
    """A time as functions of the user receive it: a scalar in the real dtype of the state."""
    return t.reshape(()).to(z.real.dtype)


def _zero(value: Callable[[float], float], a: float, b: float, eps: float) -> float:
    """Where the sign changes between a and b, by the Illinois method.

    Reference:
        Dowell, Jarratt, A modified regula falsi method for computing the root of an equation, BIT
        11 (1971), p. 168-174.
    """
    at_a, at_b = value(a), value(b)
    for _ in range(100):
        if at_b == 0:
            return _first_zero(value, a, b, eps)
        if abs(b - a) <= eps * max(abs(a), abs(b)) or at_a == at_b:
            return b
        c = (a * at_b - b * at_a) / (at_b - at_a)
        at_c = value(c)
        if (at_c > 0) != (at_b > 0):
            a, at_a = b, at_b
        else:
            at_a /= 2
        moved = abs(c - b)
        b, at_b = c, at_c
        if moved <= eps * abs(c):
            return b
    return b


def _first_zero(value: Callable[[float], float], a: float, b: float, eps: float) -> float:
    """Where a value that is zero at b, and maybe before, ceases to be positive.

    An event may jump to zero: then by halves.
    """
    if value(b - (b - a) / 1024) > 0:
        return b
    while abs(b - a) > eps * max(abs(a), abs(b)):
        c = (a + b) / 2
        if value(c) > 0:
            a = c
        else:
            b = c
    return b
