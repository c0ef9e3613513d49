"""Samples that take no step while others do."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from implicitcore.ode_solvers.samples import Samples
from implicitcore.system.coupling import Velocities, check_velocities, note_asked, was_asked
from implicitcore.system.system import System
from implicitcore.tensors.norms import column, norm


@dataclass(eq=False)
class AtRest:
    """Samples that go along with dt = 0, whose velocity may not change while others move.

    A sample that is done is evaluated beside the others, at its last time and state, in every
    stage: what the field gives for it tells at no cost whether the field mixes samples.

    Attributes:
        late: the velocity that a sample comes to rest with is not that of the place: at an event,
            or by a solver whose state holds that of a point beside it.
        going: how many samples are not at rest, as last counted.
        rows: ``[batch]`` bool, which are; None where all or none are.
        before: the same a step earlier.
        known: ``[batch]`` bool, those whose velocity at rest is known.
        many: how many these are.
        velocity: ``[batch, n]``, the first there.
        last: ``[batch, n]``, the last one.
        start: ``[batch, n]``, the velocity at the start.
        same: no sample took the last step, so that its velocities are those before it.
    """

    late: bool = False
    going: int = -1
    rows: Tensor | None = None
    before: Tensor | None = None
    known: Tensor | None = None
    many: int = 0
    velocity: Tensor | None = None
    last: Tensor | None = None
    start: Tensor | None = None
    same: bool = False

    def count(self, active: Tensor) -> bool:
        """Whether a sample is active: one look at the device."""
        going = int(active.sum())
        if going != self.going:
            self.going, self.rows = going, ~active if 0 < going < len(active) else None
        return going > 0

    @torch.no_grad()
    def note(self, velocity: Tensor) -> None:
        """The velocities ``[batch, n]`` before a step."""
        if self.start is None:
            self.start = velocity
        if self.same:
            self.same = False
            return
        ready, self.before = self.before if self.late else self.rows, self.rows
        self.last = velocity
        if ready is None or ready is self.known:
            return
        if self.known is None or self.velocity is None:
            self.velocity = velocity
        else:
            self.velocity = torch.where(column(self.known), self.velocity, velocity)
        self.known, self.many = ready, len(velocity) - self.going

    @torch.no_grad()
    def check(
        self,
        system: System,
        velocity: Callable[[Any], Tensor],
        samples: Samples,
        times: Tensor,
        z0: Tensor | None,
    ) -> None:
        """Require that a sample has the same velocity at the same place whatever the others do.

        Those that were at rest: no evaluation. Where these were few, and the steps of the samples
        not alike, f is asked, once: every other sample is taken back to the start.

        Arguments:
            system: the vector field.
            velocity: what a solver's state holds of it.
            samples: where they are at the end.
            times: the output times.
            z0: ``[batch, n]``, where they began; None where f is not to be asked.

        Raises:
            InputError: the field mixes samples.
        """
        if self.start is None:
            return
        end = None if samples.state is None else velocity(samples.state)
        seen = self._seen(end)
        if seen is not None:
            check_velocities(system, seen, _scale(self.start, samples.z, times))
        few = seen is None or 2 * self.many < len(samples.z)
        if few and z0 is not None and not self.late and not was_asked(system):
            found = self._ask(system, samples, times[0], z0, end)
            if found is not None:
                check_velocities(system, found, _scale(self.start, samples.z, times))
                note_asked(system)

    def _seen(self, end: Tensor | None) -> Velocities | None:
        """The velocities of samples at rest, where they were evaluated twice."""
        last = self.last if end is None else end
        if self.known is None or self.velocity is None or last is None or last is self.velocity:
            return None
        return Velocities(self.known, self.velocity, last)

    def _ask(
        self, system: System, samples: Samples, t0: Tensor, z0: Tensor, end: Tensor | None
    ) -> Velocities | None:
        """The velocities of some at the start and of some at the end: one evaluation.

        None where all steps were alike, or there was one alone: all samples were then at one time.
        """
        alike = (samples.size == samples.size[0]) | (samples.steps <= 1)
        if self.start is None or bool(alike.all()):
            return None
        back = torch.arange(len(z0), device=z0.device) % 2 == 0
        z = torch.where(column(back), z0, samples.z)
        found = system.velocity(torch.where(back, t0, samples.t), z)
        if end is None:
            return Velocities(back, self.start, found)
        known = torch.where(column(back), self.start, end)
        return Velocities(torch.ones_like(back), known, found)


def _scale(start: Tensor, z: Tensor, times: Tensor) -> Tensor:
    """The size of a velocity, ``[batch]``: at the start, and of what goes through z in the span."""
    return norm(start) + norm(z) / (times[-1] - times[0]).abs()
