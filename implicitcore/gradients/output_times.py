"""The gradient with respect to the output times, with every strategy and solver."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd import forward_ad

from implicitcore.errors import GradientError
from implicitcore.gradients.base import GradientStrategy, Solve
from implicitcore.gradients.trajectory import first_order
from implicitcore.ode_solvers.times import RepeatedTimesError, distinct
from implicitcore.solution import Solution, Trajectory
from implicitcore.system.system import System
from implicitcore.tensors.norms import column, real_dtype


def run_from(
    strategy: GradientStrategy, solve: Solve, system: System, z0: Tensor
) -> Solution | Trajectory:
    """:meth:`GradientStrategy.run`, with the gradient with respect to the output times.

    The state at t_k moves by v(t_k, z(t_k)) dt_k. A start that is dt_0 later lies on the trajectory
    from z0 - v(t_0, z0) dt_0, and the strategy takes its gradient from there. So each time costs
    one evaluation, without a graph, where the times require a gradient, and nothing else.

    Raises:
        GradientError: the times have a tangent of forward mode, or require a gradient where the
            states there are not kept.
    """
    times = solve.times
    if times is None:
        return strategy.run(solve, system, z0)
    if not differentiated(times):
        return _run(strategy, solve, system, z0)
    solve = replace(solve, times=times.detach())
    if not torch.is_grad_enabled():
        return _run(strategy, solve, system, z0)
    if solve.save is not None:
        raise GradientError(_SAVED)
    moves = Moves.of(times, z0)
    start = moves.start(z0, system.velocity, solve.grid)
    found = _run(strategy, solve, system, start)
    if not isinstance(found, Trajectory):
        return found
    z = moves.states(z0, found.z, system.velocity, solve.grid, _ended(found))
    return found.amended(z=z, evaluations=system.evaluations)


Velocity = Callable[[Tensor, Tensor], Tensor]
"""Of times ``[batch]`` and states ``[batch, n]``."""


class Moves(NamedTuple):
    """The gradient of a trajectory with respect to its output times.

    Attributes:
        by: what the times differ by from themselves: zero, with their gradient, ``[T]`` or ``[T,
            batch]``.
    """

    by: Tensor

    @classmethod
    def of(cls, times: Tensor, z0: Tensor) -> Moves:
        """Of times that require a gradient, for a state."""
        by = first_order(times, _REVERSE) - times.detach()
        return cls(by.to(z0.device, real_dtype(z0)))

    def start(self, z0: Tensor, velocity: Velocity, times: Tensor) -> Tensor:
        """Where the trajectory begins that goes through ``z0`` at the first time."""
        rate = _rate(velocity, times[0], z0)
        return z0 - column(self.by[0].expand(len(z0))) * rate

    def states(
        self, z0: Tensor, z: Tensor, velocity: Velocity, times: Tensor, ended: Tensor
    ) -> Tensor:
        """The states ``[T, batch, n]`` with the gradient.

        Arguments:
            z0: the first of them.
            z: those of the trajectory from :meth:`start`.
            velocity: is evaluated once a time.
            times: ``[T]`` or ``[T, batch]``.
            ended: the samples that ended on their way: no later time moves their last state.
        """
        last, rows = z[-1].detach(), [z0]
        for t, move, each in zip(times[1:], self.by[1:], z[1:], strict=True):
            stays = ended & (each == last).all(1)
            rate = torch.where(column(stays), 0, _rate(velocity, t, each))
            rows.append(each + column(move.expand(len(z0))) * rate)
        return torch.stack(rows)


def _run(
    strategy: GradientStrategy, solve: Solve, system: System, z0: Tensor
) -> Solution | Trajectory:
    """:meth:`GradientStrategy.run`, also where output times are the same.

    They are looked for where the solver refused them, before it evaluated anything: nobody else
    pays for them.
    """
    try:
        return strategy.run(solve, system, z0)
    except RepeatedTimesError:
        times, index = distinct(solve.grid)
        found = strategy.run(replace(solve, times=times), system, z0)
    if not isinstance(found, Trajectory):
        return found
    z = repeated(found.z, index.to(z0.device))
    return found.amended(z=z, times=solve.grid.to(found.times))


def repeated(z: Tensor, index: Tensor) -> Tensor:
    """The states at all times ``[T, batch, ...]``, of those at the distinct ones.

    Arguments:
        z: ``[K, batch, ...]``.
        index: of each time its own among those, ``[T]`` or ``[T, batch]``.
    """
    if index.ndim == 1:
        return z.index_select(0, index)
    rows = index.reshape(*index.shape, *(1,) * (z.ndim - 2))
    return z.gather(0, rows.expand(-1, -1, *z.shape[2:]))


def differentiated(times: Any) -> bool:
    """Whether a gradient with respect to the times is wanted.

    Raises:
        GradientError: a forward-mode derivative is.
    """
    if not isinstance(times, Tensor):  # no times, as the solver will say
        return False
    if forward_ad._current_level >= 0 and forward_ad.unpack_dual(times).tangent is not None:
        raise GradientError(_REVERSE)
    return times.requires_grad


def _ended(found: Trajectory) -> Tensor:
    """The samples ``[batch]`` that ended on their way.

    From there on all their states are the last, which no later output time moves.
    """
    failed, event = ~found.converged, found.event_times
    return failed if event is None else failed | ~event.isnan()


@torch.no_grad()
def _rate(velocity: Velocity, t: Tensor, z: Tensor) -> Tensor:
    """v at a time ``[]`` or ``[batch]``; zero where it is not finite, for it is added to z."""
    found = velocity(t.to(z.device).expand(len(z)), z.detach())
    return torch.where(found.isfinite(), found, 0)


_SAVED = (
    "times: the gradient with respect to them needs the states there, in whose place save keeps "
    "something else: give times.detach(), or leave out save and take the function of trajectory.z"
)
_REVERSE = (
    "times: the gradient with respect to them is a first derivative, of torch.autograd.grad or "
    "backward; for a second one (create_graph=True), torch.func and forward mode with respect to "
    "anything else give times.detach()"
)
