"""Where the steps of an integration have to end, and which output times lie between."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from implicitcore.backends.step_control import later
from implicitcore.errors import InputError, show
from implicitcore.tensors.norms import coarsest, real_dtype

StepAt = Tensor | Sequence[float]
"""Times at which steps end, because the field jumps there."""

# A step ends so many units of rounding before a jump, and the next begins as far behind it: the sum
# of t and dt is rounded, and no stage may see the other side.
MARGIN = 4


@dataclass(frozen=True, eq=False)
class Stops:
    """The times at which steps end whatever their size.

    Attributes:
        times: the output times, ``[T]``; those of each sample ``[T, batch]``, and what is ``[1]``
            or ``[S]`` below has the batch behind it then.
        start: where the first step begins, ``[1]``: the first output time, or behind a jump there.
        ends: where a step has to end, ``[S]``.
        resumes: where the next one begins, ``[S]``; differs from ``ends`` at a jump of the field
            before the last time.
        reached: how many output times are reached there, ``[S]`` int64.
        forward: time increases; ``[batch]`` bool where each sample has its own times.
        between: there are output times between the stops.
        jumps: the field jumps at one of them.
    """

    times: Tensor
    start: Tensor
    ends: Tensor
    resumes: Tensor
    reached: Tensor
    forward: bool | Tensor
    between: bool
    jumps: bool = False

    @classmethod
    def of(cls, times: Tensor, z0: Tensor, *, hit_times: bool, step_at: StepAt | None) -> Stops:
        """The stops of an integration.

        Arguments:
            times: the output times, checked.
            z0: the state.
            hit_times: each of them is a stop.
            step_at: times at which the field jumps.

        Raises:
            InputError: ``step_at`` cannot be used.
        """
        ahead = times[-1] > times[0]
        forward = ahead if times.ndim > 1 else bool(ahead)
        if step_at is None:
            first = 1 if hit_times else len(times) - 1
            ends = times[first:]
            reached = torch.arange(first + 1, len(times) + 1, device=times.device)
            return cls(times, times[:1], ends, ends, reached, forward, first > 1)
        if isinstance(forward, Tensor):
            raise InputError(
                "step_at: jumps of the field need one clock; expected times of shape [T], received "
                f"those of {times.shape[1]} samples"
            )
        jumps = _checked(step_at, times)
        eps = torch.finfo(coarsest((jumps.dtype, real_dtype(z0)))).eps
        return cls._at_jumps(times, jumps.to(times.dtype), eps, forward, hit_times)

    @classmethod
    def _at_jumps(
        cls, times: Tensor, jumps: Tensor, eps: float, forward: bool, hit_times: bool
    ) -> Stops:
        sign = 1 if forward else -1
        ahead, jumps = times * sign, (jumps * sign).unique()
        margin = MARGIN * eps * times.abs().max()
        jumps = jumps[(jumps >= ahead[0] - margin) & (jumps <= ahead[-1] + margin)]
        first = jumps - ahead[0] <= margin
        start = torch.cat((ahead[:1], jumps[first] + margin))[-1:]
        jumps = jumps[~first]
        others = ahead[1:] if hit_times else ahead[-1:]
        apart = ((others[:, None] - jumps).abs() > margin).all(1)
        stops = torch.cat((jumps, others[apart])).sort().values
        width = margin * torch.isin(stops, jumps)
        ends = stops - width
        resumes = torch.cat((stops[:-1] + width[:-1], ends[-1:]))
        if not bool((ends > torch.cat((start, resumes[:-1]))).all()):
            raise InputError(
                "step_at: expected times further from each other than "
                f"rounding ({margin.item():.2g}), received {(jumps * sign).tolist()}"
            )
        reached = torch.searchsorted(ahead, stops + width, right=True)
        between = len(times) > 2 and not hit_times
        ends, resumes = ends * sign, resumes * sign
        return cls(times, start * sign, ends, resumes, reached, forward, between, jumps=True)

    def check_ahead(self, name: str) -> None:
        """Require that a solver of this name, whose stages lie beyond its steps, meets no jump.

        Raises:
            InputError: the field jumps.
        """
        if self.jumps:
            raise InputError(
                f"step_at: a stage of {name} lies beyond the end of its step; expected a solver "
                "whose stages lie within (ESDIRK, RadauIIA5, every explicit solver)"
            )

    def later(self, t: Tensor, than: Tensor) -> Tensor:
        """Whether a time comes later than another one, bool."""
        return later(t, than, self.forward)

    def passed(self, t: Tensor) -> Tensor:
        """How many output times come earlier than t, ``[batch]`` int64."""
        if isinstance(self.forward, Tensor):
            sign = torch.where(self.forward, 1, -1).to(t.dtype)
            ahead = (self.times * sign).T.contiguous()
            return torch.searchsorted(ahead, (t * sign).unsqueeze(1)).squeeze(1)
        if self.forward:
            return torch.searchsorted(self.times, t.contiguous())
        return torch.searchsorted(-self.times, -t.contiguous())


def of_each(times: Tensor, index: Tensor) -> Tensor:
    """The time ``[batch]`` of each sample with its index, out of ``[T]`` or ``[T, batch]``."""
    return times[index] if times.ndim == 1 else times.gather(0, index.unsqueeze(0)).squeeze(0)


def _checked(step_at: object, times: Tensor) -> Tensor:
    """The times as a tensor like the output times.

    Raises:
        InputError: they are something else.
    """
    try:
        given = isinstance(step_at, Tensor)
        found = step_at if given else torch.tensor(step_at, dtype=torch.float64)
    except (TypeError, ValueError, RuntimeError) as error:
        raise InputError(
            f"step_at: expected a tensor of times, received {show(step_at)}"
        ) from error
    wrong = found.is_complex() or found.dtype == torch.bool or found.ndim != 1
    if wrong or not bool(found.isfinite().all()):
        raise InputError(
            f"step_at: expected finite times of shape [S], received {found.dtype} of shape "
            f"{list(found.shape)}: {found.tolist()}"
        )
    found = found.detach().to(times.device)
    return found if found.is_floating_point() else found.to(times.dtype)
