"""What the methods of torchdiffeq have in common."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
import torchdiffeq
from torch import Tensor

from implicitcore import InputError, ODESolver, Trajectory
from implicitcore.extend import Count, StepLimit, Stop, System, check_times
from implicitcore_torchdiffeq.field import Field
from implicitcore_torchdiffeq.steady_state import integrate_to_steady_state
from implicitcore_torchdiffeq.trajectory import trajectory


@dataclass(frozen=True, kw_only=True)
class TorchdiffeqSolver(StepLimit, ODESolver):
    """A method of torchdiffeq.

    torchdiffeq has one step size for the whole batch: a sample's values depend on the others within
    the tolerances, and all take as many steps as the hardest one. The rest is per sample: the worst
    sample's error is held (torchdiffeq's own norm is the batch's mean), a sample that fails is left
    out and the others are solved without it, and what a failed sample holds is its state at the
    last output time that it reached. Inside ``SteadyState``, give the method stepping tolerances
    below the residual that is to be reached.

    Attributes:
        max_steps: most steps of the batch, rejected ones included, over all output times; where
            they run out, all have that status.
    """

    method: ClassVar[str]
    max_steps: Count = 10_000

    @abstractmethod
    def settings(self, grid: Tensor | None) -> dict[str, Any]:
        """torchdiffeq's options, over the output times ``grid``; None has no end."""

    def tolerances(self) -> Mapping[str, float]:
        """The arguments rtol and atol; of no meaning for fixed steps."""
        return {}

    def odeint(self, field: Field, z0: Tensor, times: Tensor, **arguments: Any) -> Any:
        """torchdiffeq's answer."""
        settings = {**self.settings(None if "event_fn" in arguments else times), "norm": field.norm}
        return torchdiffeq.odeint(
            field, z0, times, method=self.method, options=settings, **self.tolerances(), **arguments
        )

    def solve(
        self, system: System, z0: Tensor, times: Tensor, stop: Stop | None = None
    ) -> Trajectory:
        """See :meth:`ODESolver.solve`.

        Raises:
            InputError: ``stop`` is given with a finite end.
        """
        grid = check_times(times, z0, bounded=stop is None)
        if stop is None:
            return trajectory(self, system, z0, grid)
        if len(grid) > 2 or bool(grid[-1].isfinite()):
            raise InputError(
                f"{type(self).__name__} stops at a state only on the way to an infinite "
                f"time, received {times.tolist()}"
            )
        return integrate_to_steady_state(self, system, z0, grid, stop)


def equal_parts(grid: Tensor, dt: float) -> Tensor:
    """The output times, and between them equal steps no longer than dt.

    They may be longer by a hundredth, since t is rounded.
    """
    spans = zip(grid[:-1].tolist(), grid[1:].tolist(), strict=True)
    inner = [
        torch.linspace(a, b, _parts(b - a, dt) + 1, dtype=grid.dtype, device=grid.device)[1:-1]
        for a, b in spans
    ]
    pieces = [
        piece for a, between in zip(grid, inner, strict=False) for piece in (a[None], between)
    ]
    return torch.cat((*pieces, grid[-1:]))


def _parts(span: float, dt: float) -> int:
    return max(1, int(-(-(abs(span) / dt - 1e-2) // 1)))
