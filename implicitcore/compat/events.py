"""When an event happens: the sign of a function of the state changes."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import torch
from torch import Tensor

from implicitcore.dynamics.vector_field import VectorField
from implicitcore.ode_solvers.base import ODESolver
from implicitcore.solution import SolveError
from implicitcore.system.system import System
from implicitcore.tensors.packing import Packing

# Steps in which an event must happen, unless the options say how many: it may never.
MOST = 20_000

Event = Callable[[Tensor, Tensor], Tensor]


@torch.no_grad()
def find_event(
    solver: ODESolver,
    field: Callable[..., Tensor],
    event: Event,
    z0: Tensor,
    t0: Tensor,
    onwards: float,
) -> Tensor:
    """The first time after t0 at which the event, positive at t0, is zero.

    The solver's steps are watched until the sign changes; within that step the time is found by a
    secant method that keeps the bracket, each trial an integration from the start of the step.

    Arguments:
        solver: integrates.
        field: dz/dt of (t, z, x).
        event: a scalar of t (a scalar) and z ``[1, n]``.
        z0: the state at t0, ``[1, n]``.
        t0: where to begin, a scalar.
        onwards: 1, or -1 for back in time.

    Returns:
        A scalar, in the dtype of t0 or a finer one.

    Raises:
        SolveError: no event happened.
    """
    if not event(t0, z0) > 0:
        return t0
    system = System.of(VectorField(field), None, Packing.of(z0))
    watch = _Watch(event, t0, z0)
    first = _watchful(solver, system, z0, t0)
    ended = first.solve(system, z0, torch.stack((t0, t0.new_tensor(onwards * torch.inf))), watch)
    if watch.value > 0:
        raise SolveError(
            f"no event happened until t = {watch.after[0].item()}, in {int(ended.steps[0])} steps",
            ended,
        )
    (a, z), (b, _) = watch.before, watch.after

    def value(t: float) -> float:
        grid = torch.stack((a, a.new_tensor(t)))
        here = z if grid[0] == grid[1] else solver.solve(system, z, grid).z[-1]
        return float(event(grid[1], here))

    return a.new_tensor(_zero(value, a.item(), b.item(), 4 * torch.finfo(a.dtype).eps))


def _watchful(solver: ODESolver, system: System, z0: Tensor, t0: Tensor) -> ODESolver:
    """The solver with an end to its steps, and a first one that leaps over nothing."""
    fields = (
        {field.name: getattr(solver, field.name) for field in dataclasses.fields(solver)}
        if dataclasses.is_dataclass(solver)
        else {}
    )
    changes = {}
    if "max_steps" in fields:
        changes["max_steps"] = min(fields["max_steps"], MOST)
    if "first_step" in fields and fields["first_step"] is None:
        speed = system.velocity(t0.expand(len(z0)), z0).norm()
        changes["first_step"] = max(0.01 * float(z0.norm() / speed), 1e-6) if speed > 0 else 1e-3
    return dataclasses.replace(solver, **changes) if changes else solver  # pyright: ignore[reportArgumentType]


class _Watch:
    """The last two states of an integration, which ends when the event is not positive."""

    def __init__(self, event: Event, t0: Tensor, z0: Tensor) -> None:
        self.event = event
        self.before = self.after = (t0, z0)
        self.value = 1.0

    def __call__(self, t: Tensor, z: Tensor, velocity: Tensor) -> Tensor:
        del velocity
        self.before, self.after = self.after, (t[0], z)
        self.value = float(self.event(t[0], z))
        return torch.tensor([self.value > 0], device=z.device)


def _zero(value: Callable[[float], float], a: float, b: float, eps: float) -> float:
    """Where the sign changes between a and b, by the Illinois method.

    Reference:
        Dowell, Jarratt, A modified regula falsi method for computing the root of an equation, BIT
        11 (1971), p. 168-174.
    """
    at_a, at_b = value(a), value(b)
    for _ in range(100):
        if at_b == 0 or abs(b - a) <= eps * max(abs(a), abs(b)) or at_a == at_b:
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
