"""The host's side of kernels that do what an adaptive step is beside its evaluations."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import ClassVar

import torch
from torch import Tensor

from implicitcore.backends.adams_step import AdamsAttempt, AdamsPast
from implicitcore.backends.step_control import (
    Look,
    StepJudgement,
    StepOutcome,
    StepRule,
    StepTaken,
)
from implicitcore.errors import InputError
from implicitcore.tensors.norms import real_dtype


class DeviceControl:
    """The control of one step by kernels: what they are given, what they write, and the one look.

    Arguments:
        rule: how a step is judged.
        taken: the step.

    Attributes:
        states: z, the end of the step and its error, ``[batch, n]``.
        clocks: of ``CLOCKS``, ``[batch]``; None where there is no such time.
        memory: what the control remembers, ``[batch]``, or ``[2, batch]`` where it is of two.
        masks: of ``MASKS``, ``[batch]`` bool; the last is None where it is one for all samples.
        forward: whether time increases, where it is one for all.
        orders: ``[batch]`` int64; None where ``order`` is that of all.
        order: of the step.
        reals: ``[rows, batch]``, to be written, in the dtype of the clock: of ``REALS``, then what
            the control remembers next; dt and end are those of the next step, where there is a
            target.
        flags: ``[len(FLAGS), batch]`` bool, to be written; ``arrives`` is that of the next step.
        counts: ``[len(COUNTS)]`` int64, zero, to be added to: samples that do not take the end of
            the step over, that arrive at a stop, refuse the step, and pass output times.
    """

    CLOCKS: ClassVar[tuple[str, ...]] = ("t", "dt", "end", "target", "due")
    MASKS: ClassVar[tuple[str, ...]] = ("arrives", "active", "done", "forward")
    REALS: ClassVar[tuple[str, ...]] = ("error", "size", "t", "dt", "end")
    FLAGS: ClassVar[tuple[str, ...]] = ("accept", "follows", "passed", "arrives")
    COUNTS: ClassVar[tuple[str, ...]] = ("stays", "arrived", "refused", "passing")

    def __init__(self, rule: StepRule, taken: StepTaken) -> None:
        clock, t = taken.clock, taken.clock.t
        self.batch, self.two = len(t), len(rule.exponents) > 2
        self.states = [each.contiguous() for each in (taken.z, taken.z_next, taken.error)]
        times = (clock.t, clock.dt, clock.end, clock.target, clock.due)
        self.clocks = [None if each is None else each.contiguous() for each in times]
        self.memory, forward = taken.memory.contiguous(), clock.forward
        self.forward, each = (True, forward) if isinstance(forward, Tensor) else (forward, None)
        masks = (clock.arrives, taken.active, taken.done, each)
        self.masks = [None if each is None else each.contiguous() for each in masks]
        own = isinstance(taken.order, Tensor)
        self.orders = taken.order.contiguous() if isinstance(taken.order, Tensor) else None
        self.order = 1 if own else int(taken.order)
        self.reals = t.new_empty(len(self.REALS) + 1 + self.two, self.batch)
        self.flags = t.new_empty(len(self.FLAGS), self.batch, dtype=torch.bool)
        self.counts = t.new_zeros(len(self.COUNTS), dtype=torch.int64)

    def judgement(self) -> StepJudgement:
        """What was written, for who does not wait for it."""
        error, size, *_ = self.reals.unbind()
        return StepJudgement(self.flags[0], error, size, self._memory())

    def _memory(self) -> Tensor:
        """What the control remembers next."""
        return self.reals[-2:] if self.two else self.reals[-1]

    def outcome(self) -> StepOutcome:
        """What was written; the host waits for it."""
        error, size, t, dt, end, *_ = self.reals.unbind()
        accept, follows, passed, arrives = self.flags.unbind()
        stays, arrived, refused, passing = self.counts.tolist()
        own = passed if passing else None
        look = Look(follows, stays == 0, arrived > 0, refused > 0, own, passing == self.batch)
        known = self.clocks[self.CLOCKS.index("target")] is not None and not arrived
        ahead = (dt, end, arrives) if known else None
        return StepOutcome(accept, error, size, self._memory(), t, look, ahead)


class DeviceAdamsStep(ABC):
    """One step of Adams by kernels, see :class:`~implicitcore.extend.AdamsStep`.

    One before the evaluation and one behind it.

    Arguments:
        attempt: what is to be taken.

    Attributes:
        start: z, contiguous, as all here.
        dt: ``[batch]``, in the dtype of the gaps.
        past: the differences have contiguous rows, and may have any other strides.
        z: the end, to be written by :meth:`predict`.
        gaps: ``[batch, rows]``, of the next step, to be written by it.
        known: ``[batch, 2 rows + 1]``, in the dtype of the gaps: beta_0 .. and g_0 .. of the step,
            to be written by it.
        orders: ``[3, batch]`` int64: the power of dt that the error goes with, one more than the
            order; and the highest order that may follow, both written by :meth:`predict`; and the
            next order, by :meth:`update`.
    """

    def __init__(self, attempt: AdamsAttempt) -> None:
        self.max_order, z, dt, past, self.tolerance = attempt
        real = real_dtype(z)
        rows = past.differences
        rows = rows if rows.stride(2) == 1 else rows.contiguous()
        self.past = AdamsPast(rows, past.gaps.contiguous(), past.order.contiguous())
        self.start, self.dt = z.contiguous(), dt.to(real).contiguous()
        batch, self.rows = past.gaps.shape
        self.z = torch.empty_like(self.start)
        self.gaps = z.new_empty(batch, self.rows, dtype=real)
        self.known = z.new_empty(batch, 2 * self.rows + 1, dtype=real)
        self.orders = z.new_empty(3, batch, dtype=torch.int64)
        self.predict()

    @abstractmethod
    def predict(self) -> None:
        """Launch what is before the evaluation."""

    @abstractmethod
    def update(self, velocity: Tensor, differences: Tensor, error: Tensor) -> None:
        """Launch what is behind it.

        Arguments:
            velocity: there, ``[batch, n]``.
            differences: ``[batch, rows, n]``, to be written.
            error: ``[batch, n]``, to be written.
        """

    def correct(self, velocity: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
        """See :meth:`AdamsStep.correct`.

        Raises:
            InputError: the velocity has another shape or dtype than z.
        """
        if velocity.shape != self.z.shape or velocity.dtype != self.z.dtype:
            raise InputError(
                f"a velocity is {velocity.dtype} of shape {tuple(velocity.shape)}, expected "
                f"{self.z.dtype} of shape {tuple(self.z.shape)}, as z"
            )
        batch, n = velocity.shape
        differences, error = velocity.new_empty(batch, self.rows, n), torch.empty_like(self.z)
        self.update(velocity.contiguous(), differences, error)
        power, _, following = self.orders.unbind()
        return error, differences, self.gaps, following, power
