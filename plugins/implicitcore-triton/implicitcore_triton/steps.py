"""What an adaptive step is beside its evaluations, each part one launch."""

from __future__ import annotations

from functools import cache
from typing import final

import torch
from torch import Tensor

from implicitcore.extend import (
    AdamsAttempt,
    DeviceAdamsStep,
    DeviceControl,
    StepRule,
    StepTaken,
    gauss,
    real_dtype,
)
from implicitcore_triton.iteration import WHOLE, Launch

LONGER = 1e3
"""A step so many times as long as the last is of order 1."""

LEAST = 1e-4
"""The least error that a later step remembers."""


def fits(z: Tensor) -> bool:
    """Whether a program goes through a whole sample."""
    return z.shape[1] <= WHOLE


def control(
    run: Launch, rule: StepRule, taken: StepTaken, samples: int, columns: int
) -> DeviceControl:
    """Launch the control of a step, of samples of at most 16,384 entries.

    Arguments:
        run: launches a kernel, with its name, grid, arguments and sizes.
        rule: how a step is judged.
        taken: the step.
        samples: that a program holds.
        columns: of each that it holds at once.
    """
    step, (batch, n) = DeviceControl(rule, taken), taken.z.shape
    masks = [None if mask is None else mask.view(torch.uint8) for mask in step.masks]
    given = *step.states, *step.clocks, step.memory, *masks, step.orders
    memory_step = batch if step.memory.ndim > 1 else 0
    bounds = rule.rtol, rule.atol, rule.safety, rule.shrink, rule.grow, rule.min_step
    exponents = (*rule.exponents, *(0.0,) * (3 - len(rule.exponents)))
    tiny = torch.finfo(real_dtype(taken.z)).tiny
    run(
        "control",
        (-(-batch // samples),),
        *(*given, step.reals, step.flags.view(torch.uint8), step.counts),
        *(batch, n, step.order, int(step.forward), memory_step),
        *map(float, (*bounds, rule.max_step, rule.move_bound, *exponents, LEAST, tiny)),
        SAMPLES=samples,
        COLUMNS=columns,
        EXPONENTS=len(rule.exponents),
        BOUNDED=rule.move_bound < torch.inf,
    )
    return step


@final
class TritonAdamsStep(DeviceAdamsStep):
    """A step of Adams in two launches, of samples of at most 16,384 entries.

    Arguments:
        run: launches a kernel, with its name, grid, arguments and sizes.
        attempt: see :class:`DeviceAdamsStep`.
        samples: that a program holds.
        columns: of each that it holds at once.
    """

    def __init__(self, run: Launch, attempt: AdamsAttempt, samples: int, columns: int) -> None:
        self.run, self.grid = run, (-(-len(attempt.z) // samples),)
        rows = attempt.past.gaps.shape[1]
        self.sizes = {"ROWS": rows, "SAMPLES": samples, "COLUMNS": columns}
        super().__init__(attempt)

    def predict(self) -> None:
        """See :meth:`DeviceAdamsStep.predict`."""
        z, past = self.start, self.past
        nodes = _nodes(self.rows // 2 + 1, self.dt.dtype, z.device)
        tensors = z, past.differences, self.z, self.dt, past.gaps, self.gaps, self.known
        self.run(
            "predict",
            self.grid,
            *(*tensors, past.order, self.orders, nodes, *z.shape),
            *(*past.differences.stride()[:2], self.max_order, LONGER),
            NODES=nodes.shape[1],
            **self.sizes,
        )

    def update(self, velocity: Tensor, differences: Tensor, error: Tensor) -> None:
        """See :meth:`DeviceAdamsStep.update`."""
        phi = self.past.differences
        states = velocity, phi, self.start, self.z, differences, error
        tensors = *states, self.dt, self.known, self.orders
        numbers = *velocity.shape, *phi.stride()[:2], *map(float, self.tolerance)
        self.run("correct", self.grid, *tensors, *numbers, **self.sizes)


@cache
def _nodes(count: int, dtype: torch.dtype, device: torch.device) -> Tensor:
    """The nodes of Gauss and their weights, ``[2, a power of two]``, the last of no weight."""
    with torch.inference_mode(False):
        found = torch.tensor(gauss(count), dtype=torch.float64, device="cpu")
        unused = max(2, 1 << (count - 1).bit_length()) - count
        return torch.nn.functional.pad(found, (0, unused)).to(device, dtype)
