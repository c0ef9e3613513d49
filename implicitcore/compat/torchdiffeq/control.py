"""The size of a step of the whole state, as torchdiffeq chooses it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from implicitcore.compat.torchdiffeq.state import Layout
from implicitcore.errors import InputError
from implicitcore.ode_solvers.base import Step
from implicitcore.system.system import System
from implicitcore.tensors.norms import real_dtype

Norm = Callable[[Any], Any]


def rms(part: Tensor) -> Tensor:
    """The root mean square."""
    return part.abs().square().mean().sqrt()


def mixed(parts: tuple[Tensor, ...]) -> Any:
    """The largest of the root mean squares of some tensors; 0 of none."""
    return max((rms(part) for part in parts), default=torch.zeros(()))


@dataclass(frozen=True, eq=False, kw_only=True)
class Control:
    """Accept a step where the norm of its error, over the tolerance of each entry, is at most one.

    Attributes:
        rtol: relative tolerance, of all entries or ``[1, n]``.
        atol: absolute tolerance, alike.
        norm: of a state in the user's shapes; real and not negative.
        layout: of the state.
        first_step: None estimates it.
        min_step: a step so short is accepted whatever its error.
        max_step: no step is longer.
        safety: of the next size.
        ifactor: the next step is at most so many times as long.
        dfactor: and after a rejection at least so many times.
        share: of the solver's error that counts.
    """

    rtol: Tensor | float
    atol: Tensor | float
    norm: Norm
    layout: Layout
    first_step: float | None = None
    min_step: float = 0.0
    max_step: float = torch.inf
    safety: float = 0.9
    ifactor: float = 10.0
    dfactor: float = 0.2
    share: float = 1.0

    @torch.no_grad()
    def first(
        self, system: System, t: Tensor, z: Tensor, velocity: Tensor, order: float, forward: float
    ) -> float:
        """The size of the first step, at one evaluation where it is not given.

        Reference:
            Hairer, Norsett, Wanner, Solving Ordinary Differential Equations I (1993), section II.4.
        """
        if self.first_step is not None:
            return self.first_step
        scale = z.abs() * self.rtol + self.atol
        size, speed = self._norm(z / scale), self._norm(velocity / scale)
        trial = 1e-6 if size < 1e-5 or speed < 1e-5 else 0.01 * size / speed
        ahead = z + forward * trial * velocity
        there = system.velocity(t + forward * trial, ahead)
        bend = self._norm((there - velocity) / scale) / trial
        steepest = max(speed, bend)
        if steepest <= 1e-15:
            return min(100 * trial, max(1e-6, 1e-3 * trial))
        return min(100 * trial, (0.01 / steepest) ** (1 / order))

    @torch.no_grad()
    def decide(self, z: Tensor, step: Step, size: float, order: float) -> tuple[bool, float]:
        """Whether a step of this size is accepted, and the size of the next."""
        if step.error is None:
            return True, size
        scale = torch.maximum(z.abs(), step.z.abs()) * self.rtol + self.atol
        error = self.share * self._norm(step.error / scale)
        accept = error <= 1 or size <= self.min_step
        if error == 0:
            return accept, size * self.ifactor
        least = 1.0 if error < 1 else self.dfactor
        # not finite: as short as it may be
        factor = self.safety / error ** (1 / order) if 0 < error < torch.inf else 0.0
        return accept, size * min(self.ifactor, max(factor, least))

    def _norm(self, z: Tensor) -> float:
        return abs(float(self.norm(self.layout.unpack(z[0]))))


def tolerance(name: str, value: Any, y0: Any) -> Tensor | float:
    """A tolerance of torchdiffeq: a number, a tensor, or of a tuple one for each part.

    Arguments:
        name: for the message.
        value: the tolerance.
        y0: the state.

    Returns:
        A number, or ``[1, n]``.

    Raises:
        InputError: it does not fit the state.
    """
    if isinstance(value, Tensor) and value.requires_grad:
        raise InputError(f"{name}: cannot require a gradient")
    if not isinstance(value, tuple | list) and torch.as_tensor(value).ndim == 0:
        return float(value)
    parts = (y0,) if isinstance(y0, Tensor) else y0
    each = (value,) if isinstance(y0, Tensor) else tuple(value)
    if len(each) != len(parts):
        raise InputError(
            f"{name}: received {len(each)} entries, expected one for each of the {len(parts)} "
            "parts of y0"
        )
    full = [
        torch.as_tensor(one, dtype=real_dtype(part), device=part.device).expand(part.shape)
        for one, part in zip(each, parts, strict=True)
    ]
    return torch.cat([one.reshape(-1) for one in full]).unsqueeze(0)
