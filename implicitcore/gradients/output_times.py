"""The gradient with respect to the output times, with every strategy and solver."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

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
        GradientError: the times have a tangent of forward mode.
    """
    times = solve.times
    if times is None:
        return strategy.run(solve, system, z0)
    if not _differentiated(times):
        return _run(strategy, solve, system, z0)
    solve = replace(solve, times=times.detach())
    if not torch.is_grad_enabled():
        return _run(strategy, solve, system, z0)
    batch = len(z0)
    moved = (first_order(times, _REVERSE) - times.detach()).to(z0.device, real_dtype(z0))
    velocity = _velocity(system, solve.grid[0], z0)
    found = _run(strategy, solve, system, z0 - column(moved[0].expand(batch)) * velocity)
    if not isinstance(found, Trajectory):
        return found
    ended, last = _ended(found), found.z[-1].detach()
    rows = [z0]
    for t, move, z in zip(solve.grid[1:], moved[1:], found.z[1:], strict=True):
        stays = ended & (z == last).all(1)
        velocity = torch.where(column(stays), 0, _velocity(system, t, z))
        rows.append(z + column(move.expand(batch)) * velocity)
    return found.amended(z=torch.stack(rows), evaluations=system.evaluations)


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
    index = index.to(z0.device)
    if index.ndim == 1:
        z = found.z.index_select(0, index)
    else:
        z = found.z.gather(0, index.unsqueeze(2).expand(-1, -1, z0.shape[1]))
    return found.amended(z=z, times=solve.grid.to(found.times))


def _differentiated(times: Any) -> bool:
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
def _velocity(system: System, t: Tensor, z: Tensor) -> Tensor:
    """v at a time ``[]`` or ``[batch]``; zero where it is not finite, for it is added to z."""
    t = t.to(z.device).expand(len(z))
    found = system.velocity(t, z.detach())
    return torch.where(found.isfinite(), found, 0)


_REVERSE = (
    "times: the gradient with respect to them is a first derivative, of torch.autograd.grad or "
    "backward; for a second one (create_graph=True), torch.func and forward mode with respect to "
    "anything else give times.detach()"
)
