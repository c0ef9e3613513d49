"""Compile every kernel as the backend launches it, for GPUs that need not be there; print a line
for each binary.

A program, for in its process nothing may be interpreted. Triton does all that it does at a launch,
but for the launch.
"""

from __future__ import annotations

from typing import Any

import torch
from triton.backends.compiler import GPUTarget
from triton.runtime import driver

from implicitcore.extend import (
    AdamsAttempt,
    AdamsPast,
    AndersonRule,
    BroydenRule,
    PicardRule,
    StepClock,
    StepRule,
    StepTaken,
    StopRule,
    UpdateRule,
    real_dtype,
)
from implicitcore_triton import backend
from implicitcore_triton.iteration import TritonIteration
from implicitcore_triton.krylov import CHUNK, TritonKrylov

CAPABILITIES = (80, 90, 120)
SIZES = {1: (120,), 129: (90,), 8192: CAPABILITIES}
"""Of states, each with the GPUs that it is compiled for: a size changes what is constant in a
kernel and how much a program loads, so that each GPU has each kernel at the largest size, and all
kernels at one that is small."""
BINARIES: list[Any] = []
TARGETS = [*CAPABILITIES]


class NoGPU:
    """What Triton asks its driver for before it compiles."""

    def __init__(self, capability: int) -> None:
        self.capability = capability

    def get_current_device(self) -> int:
        return self.capability  # a number for each: Triton remembers by it what it has compiled

    def get_current_stream(self, device: int) -> int:
        return 0

    def get_current_target(self) -> GPUTarget:
        return GPUTarget("cuda", self.capability, 32)


def compile_all(name: str, grid: tuple[int, ...], *arguments: Any, **options: Any) -> None:
    """Stands in for the call of a kernel."""
    for capability in TARGETS:
        driver.set_active(NoGPU(capability))  # pyright: ignore[reportArgumentType]
        compiled = backend._kernel(name).warmup(*arguments, grid=grid, **options)
        assert not compiled.metadata.global_scratch_size
        BINARIES.append(compiled)
        print(name, options["ACC"], f"sm_{capability}", len(compiled.asm["cubin"]))


def launch_all(dtype: torch.dtype, n: int, batch: int = 3, depth: int = 5) -> None:
    """Every kernel that states of this size meet."""
    TARGETS[:] = SIZES[n]
    cuda = backend.TritonBackend()
    z, history = torch.zeros(batch, n, dtype=dtype), torch.zeros(batch, depth, n, dtype=dtype)
    row, weights, dt = z[:, None], torch.zeros(batch, 1, depth, dtype=dtype), torch.zeros(batch)
    cuda._residual(z, z, z)
    cuda._inner_products(history, row)
    cuda._error_norm(z, z, z, 1e-3, 1e-6)
    for base in (row, None):
        cuda._axpy_history(base, weights, history, -1.0, row)
    for base, count in ((z, 1), (None, 7), (z, 16)):
        cuda._stage_combination(base, dt, [z] * count, [0.5] * count)
    TARGETS[:] = CAPABILITIES


RULE: dict[str, Any] = {
    **{"tol": 1e-3, "floor": 0.0, "scale": "update", "rounding": 1e-7, "min_steps": 1},
    **{"origin": None, "divergence": 1e8, "trust": 0.1, "growth": 2.0},
}
UPDATES = (PicardRule(0.7), AndersonRule(5, 10, 1.0, 1e-3, 0.0), BroydenRule(20))


def iterate_all(dtype: torch.dtype, n: int, batch: int = 3) -> None:
    """Every kernel of a whole iteration, with a next iterate and without."""
    z = torch.zeros(batch, n, dtype=dtype)
    usual = StopRule(**RULE)
    own: dict[str, Any] = {"floor": z[:, 0], "scale": z[:, 0]}  # what is said of each sample
    for update in UPDATES:
        _iteration(update, usual, z).launch(z, z, None, z, z)
    if dtype == torch.float32:
        for rule in (StopRule(**RULE | own), StopRule(**RULE | dict[str, Any](scale="root"))):
            _iteration(UPDATES[0], rule, z).launch(z, z, z, z, None)


USUAL = StepRule(1e-3, 1e-6, (0.7, -0.4), 0.9, 0.2, 10.0, 0.0, torch.inf, torch.inf, 5)


def step_all(dtype: torch.dtype, n: int, batch: int = 3) -> None:
    """The control of a step, with clocks of both dtypes, and a step of Adams."""
    z = torch.zeros(batch, n, dtype=dtype)
    yes, long = torch.ones(batch, dtype=torch.bool), torch.ones(batch, dtype=torch.int64)
    triton, pid = backend.TritonBackend(), USUAL._replace(exponents=(0.49, -0.34, 0.1))
    for time in dict.fromkeys((real_dtype(z), torch.float64)):
        t = torch.zeros(batch, dtype=time)
        clock = StepClock(t, t, t, yes, t, t, True)
        taken = StepTaken(z, z, z, 5, t, clock, yes, yes, False)
        triton._step_control(USUAL, taken)
        if dtype == torch.float32:
            own = clock._replace(target=None, forward=yes)
            triton._step_control(USUAL._replace(move_bound=0.3), taken._replace(order=long))
            triton._step_control(pid, taken._replace(memory=torch.stack((t, t)), clock=own))
    dt = torch.zeros(batch, dtype=real_dtype(z))
    for rows in (4, 12) if dtype == torch.float32 else (5,):
        past = AdamsPast(z.new_zeros(batch, rows, n), dt.new_ones(batch, rows), long)
        step = triton._adams_step(AdamsAttempt(rows, z, dt, past, (1e-3, 1e-6)))
        assert step is not None
        step.correct(z)


def span_all(dtype: torch.dtype, n: int, batch: int = 3, most: int = 5) -> None:
    """A Krylov space: at first, with a next vector and without, and the minimiser."""
    g = torch.zeros(batch, n, dtype=dtype)
    space = backend.TritonBackend()._krylov_space(g, torch.zeros(batch), most)
    assert isinstance(space, TritonKrylov)
    for rows, following in ((0, g), (1, g), (most, None)):
        space.launch(g, rows, following)
    space.combine(g)


def _iteration(update: UpdateRule, rule: StopRule, z: torch.Tensor) -> TritonIteration:
    found = backend.TritonBackend()._root_iteration(update, rule, z)
    assert isinstance(found, TritonIteration)
    return found


if __name__ == "__main__":
    backend._call = compile_all
    for dtype in backend.TritonBackend.dtypes:
        for n in SIZES:
            launch_all(dtype, n)
        if dtype != torch.bfloat16:  # a minute more, of the same code as float32
            iterate_all(dtype, 129)
            span_all(dtype, 129)
            span_all(dtype, CHUNK + 1)
        step_all(dtype, 129)
    known = set(map(id, BINARIES))
    for batch, depth in ((1, 1), (2, 16), (17, 21)):
        launch_all(torch.float32, 8192, batch, depth)
        iterate_all(torch.float32, 129, batch)
        step_all(torch.float32, 129, batch)
        span_all(torch.float32, 129, batch, 5 + depth % 2)
        span_all(torch.float32, CHUNK + 1, batch, 5 + depth % 2)
    assert known == set(map(id, BINARIES)), "another batch or depth is compiled anew"
