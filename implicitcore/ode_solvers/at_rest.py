"""Samples that take no step while others do."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from implicitcore.ode_solvers.samples import Samples
from implicitcore.system.coupling import check_velocities, note_asked, was_asked
from implicitcore.system.system import System
from implicitcore.tensors.norms import column, norm


@dataclass(eq=False)
class AtRest:
    """Samples that go along with dt = 0, whose velocity may not change while others move.

    A sample that is done is evaluated beside the others, at its last time and state, in every
    stage: what the field gives for it tells at no cost whether the field mixes samples.

    Attributes:
        late: the velocity that a sample comes to rest with is not that of the place: at an event.
        going: how many samples are not at rest, as last counted.
        rows: ``[batch]`` bool, which are; None where all or none are.
        before: the same a step earlier.
        known: ``[batch]`` bool, those whose velocity at rest is known.
        velocity: ``[batch, n]``, the first there.
        last: ``[batch, n]``, the last one.
        start: ``[batch, n]``, the velocity at the start.
    """

    late: bool = False
    going: int = -1
    rows: Tensor | None = None
    before: Tensor | None = None
    known: Tensor | None = None
    velocity: Tensor | None = None
    last: Tensor | None = None
    start: Tensor | None = None

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
        ready, self.before = self.before if self.late else self.rows, self.rows
        self.last = velocity
        if ready is None or ready is self.known:
            return
        if self.known is None or self.velocity is None:
            self.velocity = velocity
        else:
            self.velocity = torch.where(column(self.known), self.velocity, velocity)
        self.known = ready

    @torch.no_grad()
    def check(self, system: System, times: Tensor, samples: Samples, end: Tensor | None) -> None:
        """Require that no sample at rest has another velocity than it came to rest with.

        Arguments:
            system: the vector field.
            times: the output times.
            samples: where they are at the end.
            end: their velocities there, where they are known.

        Raises:
            InputError: the field mixes samples.
        """
        last = self.last if end is None else end
        if self.known is None or self.velocity is None or self.start is None or last is None:
            return
        scale = _scale(self.start, samples.z, times)
        check_velocities(system, self.known, self.velocity, last, scale)

    @torch.no_grad()
    def ask(
        self, system: System, z0: Tensor, times: Tensor, samples: Samples, end: Tensor | None
    ) -> None:
        """Require it where none was at rest and their steps were not alike: one evaluation.

        Once for each f: every other sample is taken back to the start, where its velocity is known.

        Arguments:
            system: the vector field.
            z0: ``[batch, n]``, where they began.
            times: the output times.
            samples: where they are at the end.
            end: their velocities there, where they are known.

        Raises:
            InputError: the field mixes samples.
        """
        if self.known is not None or self.start is None or was_asked(system):
            return
        alike = (samples.size == samples.size[0]) | (samples.steps < len(times))
        if bool(alike.all()):
            return
        back = torch.arange(len(z0), device=z0.device) % 2 == 0
        z = torch.where(column(back), z0, samples.z)
        found = system.velocity(torch.where(back, times[0], samples.t), z)
        known = self.start if end is None else torch.where(column(back), self.start, end)
        rows = back if end is None else torch.ones_like(back)
        check_velocities(system, rows, known, found, _scale(self.start, z, times))
        note_asked(system)


def _scale(start: Tensor, z: Tensor, times: Tensor) -> Tensor:
    """The size of a velocity, ``[batch]``: at the start, and what passes over z in the span."""
    return norm(start) + norm(z) / (times[-1] - times[0]).abs().to(z.dtype)
