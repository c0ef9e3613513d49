"""The gradient of events, for strategies that solve without a graph."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from implicitcore.errors import GradientError
from implicitcore.gradients.base import GradientStrategy, Solve
from implicitcore.gradients.trajectory import first_only, first_order
from implicitcore.gradients.unrolled import Unrolled
from implicitcore.ode_solvers.event import event_value
from implicitcore.ode_solvers.events import value_and_rate
from implicitcore.solution import Trajectory
from implicitcore.system.system import System
from implicitcore.tensors.norms import column


def check_between(
    strategy: GradientStrategy, *, dense: bool = False, event: bool = False, save: bool = False
) -> None:
    """Refuse what is wanted beside the output times where a strategy gives it no gradient.

    Raises:
        GradientError: it does not.
    """
    name = type(strategy).__name__
    if dense and not isinstance(strategy, Unrolled):
        raise GradientError(
            f"{name} has no gradient between the output times: dense output needs "
            "gradient=Unrolled()"
        )
    if event and not strategy.events:
        raise GradientError(
            f"{name} gives no gradient to an event: expected Unrolled, Checkpointed or Adjoint"
        )
    if save and not strategy.saves and torch.is_grad_enabled():
        raise GradientError(
            f"{name} goes back from the states at the output times, in whose place save keeps "
            "something else: use Checkpointed or Unrolled, or leave out save and take the function "
            "of trajectory.z"
        )


def with_event_times(
    strategy: GradientStrategy, solve: Solve, system: System, found: Trajectory
) -> Trajectory:
    """The trajectory with the gradient of its event times, and of the states there with them.

    With dt*/dp = -(de/dp) / (de/dt) at e(t*, z(t*; p), x) = 0, and z there moved by dz/dt dt*,
    where dz/dt is that of the continuous extension: what Newton's step of ``Unrolled`` gives. Each
    event of real values is evaluated twice more, with a graph, and the vector field is not.

    Arguments:
        strategy: is named in errors.
        solve: has the events.
        system: the one of the solve.
        found: its states have the gradients of those at fixed times.

    Raises:
        GradientError: the derivative of e along the trajectory is zero.
    """
    times, index, velocity = found.event_times, found.event_index, found.event_velocity
    if times is None or index is None or velocity is None:
        return found
    last = found.times[-1].expand_as(times)
    end = found.z[-1] if found.end is None else found.end
    t, move = torch.where(index < 0, last, times), torch.zeros_like(times)
    for which in range(len(solve.events)):
        e = event_value(solve.events, which, system, t, end)
        if not e.requires_grad:  # a boolean, or one of the time alone
            continue
        who = index == which
        rate = _rate(solve, which, system, t, end.detach(), velocity, who)
        change = torch.where(who, (e - e.detach()).to(t.dtype), 0)
        move = move - change / torch.where(who, rate, 1)
    if not move.requires_grad:
        return found
    move = first_order(move, first_only(type(strategy).__name__))
    later = (index >= 0) & ~earlier(found.times, times)
    if solve.save is not None:
        end = end + column(move).to(end.dtype) * velocity
        z = torch.where(later.unsqueeze(2), solve.save(system, t + move, end), found.z)
        return found.amended(event_times=times + move, z=z, end=end)
    shift = torch.where(later, move, 0).unsqueeze(2).to(found.z.dtype)
    return found.amended(event_times=times + move, z=found.z + shift * velocity)


def _rate(  # noqa: PLR0913, PLR0917 - the place of an event
    solve: Solve,
    which: int,
    system: System,
    t: Tensor,
    z: Tensor,
    velocity: Tensor,
    crossed: Tensor,
) -> Tensor:
    """De/dt along the trajectory, ``[batch]``, without a graph."""

    def along(s: Tensor) -> Tensor:
        moved = z + column(s).to(z.dtype) * velocity
        return event_value(solve.events, which, system, t + s, moved).to(t.dtype)

    return value_and_rate(along, torch.zeros_like(t), crossed)[1].detach()


def earlier(times: Tensor, than: Tensor) -> Tensor:
    """Which output times ``[T]`` or ``[T, batch]`` come before a time ``[batch]`` of each sample.

    ``[T, batch]`` bool; all of them before NaN.
    """
    grid = times.unsqueeze(1) if times.ndim == 1 else times
    forward = grid[-1] > grid[0]
    return torch.where(forward, ~(grid >= than), ~(grid <= than))


@dataclass(frozen=True, eq=False)
class SpansToEvents:
    """A trajectory in spans of each sample, the last of which ends at its event.

    The clocks of all samples have as many spans: where one has fewer output times before its event
    than another, its longest span is divided, at times for which nothing is known or asked.

    Attributes:
        trajectory: at these times ``[R, batch]``.
        divided: which of them only divide a span, ``[R, batch]`` bool.
        row: which of them each output time is, ``[T, batch]`` int64: from the event on the last.
    """

    trajectory: Trajectory
    divided: Tensor
    row: Tensor

    @classmethod
    def of(cls, found: Trajectory, event_times: Tensor) -> SpansToEvents:
        """Those of a trajectory whose events happened then, ``[batch]``, NaN where none did."""
        times = found.times.expand(len(event_times), -1).T if found.times.ndim == 1 else found.times
        end = _end(times, event_times)
        before = earlier(times, end)
        count = before.sum(0)  # also the row of the end, among the times before it
        most = int(count.amax())
        known = torch.where(before, times, end)[: most + 1]  # [R, batch], its end repeated
        gaps = known.diff(dim=0).abs()
        longest, extra = gaps.argmax(0), most - count
        index = torch.arange(most + 1, device=times.device).unsqueeze(1)
        divided = (index > longest) & (index <= longest + extra)
        source = torch.where(index > longest, (index - extra).clamp(min=longest), index)
        share = torch.where(divided, (index - longest) / (extra + 1).to(times.dtype), 0)
        here, there = known.gather(0, source), known.gather(0, (longest + 1).unsqueeze(0))
        clock = torch.where(divided, torch.lerp(here, there, share), here)
        states = torch.where(before.unsqueeze(2), found.z, found.z[-1])[: most + 1]
        samples = torch.arange(len(end), device=times.device)
        outputs = torch.arange(len(times), device=times.device).unsqueeze(1).minimum(count)
        row = outputs + torch.where(outputs > longest, extra, 0)
        return cls(found.amended(times=clock, z=states[source, samples]), divided, row)

    def at_outputs(self, z: Tensor) -> Tensor:
        """The states ``[T, batch, n]`` at the output times, out of those ``[R, batch, n]``."""
        return z[self.row, torch.arange(z.shape[1], device=z.device)]


def _end(times: Tensor, event_times: Tensor) -> Tensor:
    """Where each sample ends, ``[batch]``: so far from the start that the clock can divide it."""
    first, last = times[0], times[-1]
    least = 4 * len(times) * torch.finfo(times.dtype).eps * times.abs().amax(0)
    nearest = torch.where(last > first, last.minimum(first + least), last.maximum(first - least))
    end = torch.where(event_times.isnan(), last, event_times)
    return torch.where((end - first).abs() < least, nearest, end)
