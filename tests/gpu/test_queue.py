"""The queue of the GPU: no waiting in each step, any stream, CUDA graphs, and no memory that
stays."""

from __future__ import annotations

import pytest
import torch
from gpu.loops import endless, one_step, problem, solve, traced_waits, waits

import implicitcore as ic

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.filterwarnings("ignore:Synchronization debug mode:UserWarning"),
]
each_solver = pytest.mark.parametrize("name", ["anderson", "broyden", "tsit5"])
FEW, MANY = 21, 61
PER_STEP = {"anderson": 1 / 4, "broyden": 1 / 4, "tsit5": 1}
"""Looks at which samples are done; an ODE solver looks at which arrived."""


@each_solver
def test_the_host_waits_for_the_stop_test_alone(backend, name):
    cell, x = problem()
    cell = endless(name, cell)
    counts, traced = [], []
    solve(name, backend, cell, x, MANY)  # what is made once is made
    for steps in (FEW, MANY):
        with waits() as found:
            solution = solve(name, backend, cell, x, steps)
        assert solution.steps.max() == steps
        counts.append(len(found))
        traced.append(traced_waits(lambda steps=steps: solve(name, backend, cell, x, steps)))
    expected = PER_STEP[name] * (MANY - FEW)
    assert counts[1] - counts[0] <= expected
    # A look is a copy to the host and a synchronisation; the trace sees both.
    assert traced[1] - traced[0] <= 2 * expected


@pytest.mark.parametrize("name", ["anderson", "broyden", "tsit5"])
@torch.no_grad()
def test_a_step_waits_for_nothing(backend, name):
    step, z = one_step(name, backend)
    expected = step(z)
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("error")
    try:
        found = step(z)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert torch.equal(found, expected)


@pytest.mark.parametrize("name", ["anderson", "broyden", "tsit5"])
@torch.no_grad()
def test_a_step_is_captured_and_replayed(backend, name):
    step, z = one_step(name, backend)
    start = z.clone()
    aside = torch.cuda.Stream()
    with torch.cuda.stream(aside):  # what is made once may not be captured
        step(start)
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        result = step(start)
    for scale in (1.0, 0.5, -2.0):
        start.copy_(scale * z)
        graph.replay()
        assert torch.allclose(result, step(scale * z), rtol=1e-5, atol=1e-6)


@each_solver
def test_another_stream_while_the_default_one_is_busy(backend, name):
    cell, x = problem()
    expected = solve(name, backend, cell, x).z
    stream, busy = torch.cuda.Stream(), torch.cuda.Event()
    with torch.cuda.stream(stream):
        solve(name, backend, cell, x)  # its memory is taken, its kernels are loaded
    torch.cuda.synchronize()
    torch.cuda._sleep(4_000_000_000)  # about two seconds
    busy.record()
    with torch.cuda.stream(stream):
        mine = 2 * x / 2  # written on this stream: a kernel on another one would not wait for it
        found = solve(name, backend, cell, mine).z
        stream.synchronize()
    assert not busy.query(), "nothing waited for the default stream"
    assert torch.allclose(found, expected, rtol=1e-5, atol=1e-6)


@each_solver
def test_memory_does_not_grow(backend, name):
    cell, x = problem()
    held = []
    for _ in range(20):
        solve(name, backend, cell, x)
        held.append(torch.cuda.memory_allocated())
    assert held[-1] == held[2]


def test_memory_of_training_does_not_grow(backend):
    cell, x = problem()
    layer = ic.ImplicitLayer(ic.FixedPoint(cell), solver=ic.Anderson(tol=1e-4), backend=backend)
    held = []
    for _ in range(20):
        layer(x).square().sum().backward()
        held.append(torch.cuda.memory_allocated())
    assert held[-1] == held[2]
