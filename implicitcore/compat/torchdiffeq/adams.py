"""The Adams methods on a given grid."""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from typing import Annotated, NamedTuple, final

import torch
from pydantic import Field
from torch import Tensor

from implicitcore.errors import ConvergenceWarning
from implicitcore.ode_solvers.base import Step
from implicitcore.ode_solvers.error_scale import allowed
from implicitcore.ode_solvers.runge_kutta import RK38
from implicitcore.ode_solvers.stepwise import EqualSteps
from implicitcore.options.shared import ErrorTolerance
from implicitcore.options.types import Count
from implicitcore.system.system import System

_START = RK38()
_FEWEST = 3  # velocities, for a step that is not one of Runge and Kutta


class Past(NamedTuple):
    """The last times ``[1]`` and the velocities there ``[1, n]``, the latest first."""

    times: tuple[Tensor, ...]
    velocities: tuple[Tensor, ...]


@final
@dataclass(frozen=True, kw_only=True)
class GridAdams(ErrorTolerance, EqualSteps[Past]):
    """Adams-Bashforth, or Adams-Bashforth-Moulton, of an order that grows to ``max_order`` - 1.

    z + int of the polynomial through the last velocities: its weights are those of the times as
    they are, so that the order holds on uneven grids too. The corrector integrates the polynomial
    that the new velocity is on as well, until it moves by less than the tolerances. Begins with the
    3/8 rule.

    Attributes:
        implicit: correct.
        max_iters: evaluations of the corrector.
        max_order: one more than the velocities that are kept.

    Reference:
        Hairer, Norsett, Wanner, Solving Ordinary Differential Equations I (1993), section III.1.
    """

    implicit: bool = True
    max_iters: Count = 4
    max_order: Annotated[int, Field(ge=1, le=12)] = 12

    def init(self, system: System, t: Tensor, z: Tensor) -> Past:
        """The velocity, and nothing before."""
        return Past((t,), (system.velocity(t, z),))

    def renewed(self, system: System, t: Tensor, z: Tensor, past: Past) -> Past:
        """With the latest velocity evaluated anew, behind a jump of the field."""
        return Past(past.times, (system.velocity(t, z), *past.velocities[1:]))

    def velocity(self, state: Past) -> Tensor:
        """The latest."""
        return state.velocities[0]

    def step(self, system: System, t: Tensor, dt: Tensor, z: Tensor, state: Past) -> Step:
        """See :meth:`Stepper.step`."""
        if min(len(state.velocities), self.max_order - 1) < _FEWEST:
            z_next = _START.step(system, t, dt, z, state.velocities[0]).z
        else:
            z_next = z + self._move(system, t, dt, z, state)
        kept = max(self.max_order - 1, 1)
        end = t + dt.to(t)
        velocity = system.velocity(end, z_next)
        past = Past(
            (end, *state.times)[:kept],
            (velocity, *state.velocities)[:kept],
        )
        return Step(z_next, None, past)

    def _move(self, system: System, t: Tensor, dt: Tensor, z: Tensor, state: Past) -> Tensor:
        shares = (torch.cat(state.times) - t) / dt.to(t)
        move = _combined(dt, _weights(shares), state.velocities)
        if not self.implicit:
            return move
        newest, *others = _weights(torch.cat((torch.ones_like(t), shares))).unbind(0)
        known = _combined(dt, torch.stack(others), state.velocities)
        for _ in range(self.max_iters):
            last, end = move, t + dt.to(t)
            velocity = system.velocity(end, z + move)
            move = known + (dt * newest).to(z.dtype) * velocity
            if self._converged(last, move):
                return move
        warnings.warn(
            f"implicit_adams: the corrector did not converge in {self.max_iters} evaluations at "
            f"t = {t.item():g}; take shorter steps",
            ConvergenceWarning,
            stacklevel=2,
        )
        return move

    @torch.no_grad()
    def _converged(self, last: Tensor, move: Tensor) -> bool:
        scale = allowed(torch.maximum(last.abs(), move.abs()), self.rtol, self.atol)
        return bool(((move - last).abs() < scale).all())


def _weights(shares: Tensor) -> Tensor:
    """W with sum_i w_i p(s_i) = int_0^1 p(s) ds for each polynomial p of degree below their number.

    Arguments:
        shares: s ``[k]``, distinct.
    """
    nodes = shares.double()
    powers = torch.arange(len(nodes), dtype=nodes.dtype, device=nodes.device)
    scale = nodes.detach().abs().max().clamp(min=1)
    matrix = (nodes / scale) ** powers[:, None]
    moments = 1 / (powers + 1) / scale**powers
    return torch.linalg.solve(matrix, moments)


def _combined(dt: Tensor, weights: Tensor, velocities: tuple[Tensor, ...]) -> Tensor:
    """dt sum_i w_i velocities_i."""
    stack = torch.cat(velocities)
    stack = stack.to(torch.promote_types(stack.dtype, torch.float64))
    return ((weights.to(stack.dtype) @ stack).unsqueeze(0) * dt).to(velocities[0].dtype)
