"""What an adaptive step is beside its evaluations as kernels: what each of them is given."""

from __future__ import annotations

from struct import Struct

import torch
from torch import Tensor

from implicitcore.extend import (
    AdamsAttempt,
    AdamsPast,
    DeviceAdamsStep,
    DeviceControl,
    StepRule,
    StepTaken,
    gauss,
    real_dtype,
)
from implicitcore_cupy.geometry import WARP, Geometry, geometry, threads_for
from implicitcore_cupy.launcher import NAMES, Launcher

MAX_ROWS = 12
MAX_NODES = MAX_ROWS // 2 + 1
LONGER = 1e3
"""A step so many times as long as the last is of order 1."""

LEAST = 1e-4
"""The least error that a later step remembers."""

SUMS = 3
"""Of a sample: of the errors of a step, and of the differences whose orders may follow."""

# The structs of steps.cu, member by member: Q is a pointer, q an integer, d a double.
_CONTROL = Struct("=18Q9q8d3d2d")
_PREDICT = Struct(f"=9Q9qd{2 * MAX_NODES}d")
_CORRECT = Struct("=10Q8q2d")


def control(launcher: Launcher, rule: StepRule, taken: StepTaken) -> DeviceControl:
    """Launch the control of a step."""
    step, z = DeviceControl(rule, taken), taken.z
    laid, tiny = geometry(z.shape[1], z.dtype, sums=True), torch.finfo(real_dtype(z)).tiny
    partial = _partial(z, laid)
    memory_step = step.batch if step.memory.ndim > 1 else 0
    whole = step.order, step.forward, len(rule.exponents), memory_step
    bounds = rule.rtol, rule.atol, rule.safety, rule.shrink, rule.grow, rule.min_step
    exponents = (*rule.exponents, *(0.0,) * (3 - len(rule.exponents)))
    words = _CONTROL.pack(
        *map(address, (*step.states, *step.clocks, step.memory, *step.masks, step.orders)),
        *map(address, (step.reals, step.flags, step.counts, partial)),
        *(*_shape(z, laid), laid.spans, *whole),
        *(*bounds, rule.max_step, rule.move_bound, *exponents, LEAST, tiny),
    )
    names = f"{NAMES[z.dtype].state}, {NAMES[taken.clock.t.dtype].state}"
    _launch(launcher, ("control", "conclude"), names, z, laid, words)
    return step


def takes(past: AdamsPast) -> bool:
    """Whether the kernels have registers for so many rows."""
    return past.gaps.shape[1] <= MAX_ROWS


class CupyAdamsStep(DeviceAdamsStep):
    """A step of Adams in two launches, three where a sample is long.

    Arguments:
        launcher: runs the kernels.
        attempt: see :class:`DeviceAdamsStep`.
    """

    def __init__(self, launcher: Launcher, attempt: AdamsAttempt) -> None:
        self.launcher = launcher
        super().__init__(attempt)

    def predict(self) -> None:
        """See :meth:`DeviceAdamsStep.predict`."""
        z, past = self.start, self.past
        laid, quadrature = geometry(z.shape[1], z.dtype, sums=False), gauss(self.rows // 2 + 1)
        nodes = len(quadrature[0])
        tensors = z, past.differences, self.z, self.dt, past.gaps, self.gaps, self.known
        unused = (0.0,) * (MAX_NODES - nodes)
        words = _PREDICT.pack(
            *map(address, (*tensors, past.order, self.orders)),
            *(*_shape(z, laid), *self._steps(), self.max_order, nodes, LONGER),
            *(number for numbers in quadrature for number in (*numbers, *unused)),
        )
        _launch(self.launcher, ("predict",), NAMES[z.dtype].state, z, laid, words)

    def update(self, velocity: Tensor, differences: Tensor, error: Tensor) -> None:
        """See :meth:`DeviceAdamsStep.update`."""
        laid = geometry(velocity.shape[1], velocity.dtype, sums=True)
        partial = _partial(velocity, laid)
        given = velocity, self.past.differences, self.start, self.z
        tensors = *given, differences, error, self.dt, self.known, self.orders, partial
        words = _CORRECT.pack(
            *map(address, tensors),
            *(*_shape(velocity, laid), laid.spans, *self._steps(), *self.tolerance),
        )
        state = NAMES[velocity.dtype].state
        _launch(self.launcher, ("correct", "choose"), state, velocity, laid, words)

    def _steps(self) -> tuple[int, ...]:
        return self.rows, *self.past.differences.stride()[:2]


def _shape(z: Tensor, laid: Geometry) -> tuple[int, ...]:
    return len(z), laid.lanes, z.shape[1], laid.span


def _partial(z: Tensor, laid: Geometry) -> Tensor | None:
    """Room for the sums of the spans of each sample; none where that has but one."""
    shape = len(z), SUMS, laid.spans
    return None if laid.spans == 1 else z.new_empty(shape, dtype=real_dtype(z))


def _launch(
    launcher: Launcher,
    kernels: tuple[str, ...],
    names: str,
    z: Tensor,
    laid: Geometry,
    words: bytes,
) -> None:
    """A kernel over the samples; where those have several spans, the second adds them up."""
    size, batch = real_dtype(z).itemsize, len(z)
    first, *others = (f"{kernel}<{names}>" for kernel in kernels)
    threads, shared = laid.threads(batch), laid.shared(SUMS, size) if others else 0
    launcher.launch(first, z, laid.grid(batch), threads, words, shared)
    if others and laid.spans > 1:
        few = max(WARP, threads_for(laid.spans))
        launcher.launch(others[0], z, (batch, 1), few, words, SUMS * few // WARP * size)


def address(tensor: Tensor | None) -> int:
    """What a kernel is given for a tensor: zero for none."""
    return 0 if tensor is None else tensor.data_ptr()
