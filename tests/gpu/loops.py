"""What the tests of the queue run, on any device, and what makes the host wait, as torch and the
CUDA runtime tell it."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.profiler import ProfilerActivity, profile

import implicitcore as ic
from implicitcore.system.system import System
from implicitcore.tensors.packing import Packing
from implicitcore.testing.problems import Cell, inputs

N = 64
SOLVERS = {"anderson": ic.Anderson, "broyden": ic.Broyden, "tsit5": ic.Tsit5}


class Restless(nn.Module):
    """A cell with noise in it, which has no root."""

    def __init__(self, cell: nn.Module) -> None:
        super().__init__()
        self.cell = cell

    def forward(self, z: Tensor, x: Tensor) -> Tensor:
        return self.cell(z, x) + 0.1 * torch.rand_like(z)


def endless(name: str, cell: nn.Module) -> nn.Module:
    """A cell whose solve takes every step that it may; the way of an ODE solver is long enough, and
    noise would have its steps refused."""
    return cell if name == "tsit5" else Restless(cell)


def problem(device: str = "cuda") -> tuple[Cell, Tensor]:
    """A cell in float32, and its input."""
    return Cell(N, contraction=0.9, dtype=torch.float32).to(device), inputs(
        16, N, dtype=torch.float32
    ).to(device)


def solve(
    name: str, backend: ic.Backend, cell: nn.Module, x: Tensor, steps: int = 50
) -> ic.Solution | ic.Trajectory:
    """At most so many steps, without a graph."""
    with torch.no_grad():
        if name == "tsit5":
            times = torch.tensor([0.0, 1000.0], device=x.device)
            solver = ic.Tsit5(rtol=1e-3, atol=1e-6, max_step=0.1, max_steps=steps)
            return ic.integrate(
                lambda t, z, x: cell(z, x) - z,
                torch.zeros_like(x),
                x,
                times=times,
                solver=solver,
                backend=backend,
                on_failure="ignore",
            )
        return ic.fixed_point(
            cell,
            torch.zeros_like(x),
            x,
            solver=SOLVERS[name](tol=1e-5, max_steps=steps),
            backend=backend,
            on_failure="ignore",
        )


@torch.no_grad()
def one_step(
    name: str, backend: ic.Backend, device: str = "cuda"
) -> tuple[Callable[[Tensor], Tensor], Tensor]:
    """A step of a solver in the midst of a solve, f included, as a function of z that changes
    nothing; and its z."""
    cell, x = problem(device)
    z = 0.1 * x
    packing = Packing.of(z)
    if name == "tsit5":
        system = System.of(
            ic.VectorField(lambda t, z, x: cell(z, x) - z), x, packing, backend=backend
        )
        t, dt = torch.zeros(len(z), device=device), torch.full((len(z),), 0.1, device=device)
        return lambda z: ic.Tsit5().step(system, t, dt, z, system.velocity(t, z)).z, z
    solver, system = SOLVERS[name](), System.of(ic.FixedPoint(cell), x, packing, backend=backend)
    state = solver.init(system, z)
    for _ in range(4):
        z, state = solver.step(system, system.evaluate(z), state)
    return lambda z: solver.step(system, system.evaluate(z), copy.deepcopy(state))[0], z


@contextmanager
def waits() -> Iterator[list[str]]:
    """The operations that made the host wait, as torch itself reports them."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        torch.cuda.set_sync_debug_mode("warn")
        found: list[str] = []
        try:
            yield found
        finally:
            torch.cuda.set_sync_debug_mode("default")
            found += [
                str(warning.message)
                for warning in caught
                if "synchronizing CUDA operation" in str(warning.message)
            ]


def traced_waits(work: Callable[[], Any]) -> int:
    """Synchronisations and copies to the host in a trace of the CUDA runtime: those of kernels that
    torch knows nothing of as well."""
    with (
        warnings.catch_warnings(action="ignore"),
        profile(activities=[ProfilerActivity.CPU, ProfilerActivity.CUDA]) as trace,
    ):
        work()
    names = [event.name for event in trace.events() or ()]
    return sum(
        "StreamSynchronize" in name or "DeviceSynchronize" in name or "DtoH" in name
        for name in names
    )
