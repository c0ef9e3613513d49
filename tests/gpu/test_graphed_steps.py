"""Chunks of steps as CUDA graphs (``cuda_graphs``), on the GPU."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from gpu.loops import problem
from torch import nn

import implicitcore as ic

pytestmark = pytest.mark.gpu
SOLVERS = {
    "rk4": ic.RK4(dt=0.05),
    "tsit5": ic.Tsit5(rtol=1e-5, atol=1e-7),
    "adams": ic.Adams(rtol=1e-4, atol=1e-6),
}
each_solver = pytest.mark.parametrize("name", SOLVERS)
each_way = pytest.mark.parametrize(
    "options",
    [
        {"times": [0.0, 3.0]},
        {"times": [0.0, 0.3, 0.31, 1.0, 3.0]},
        {"times": [0.0, 0.3, 1.0, 3.0], "hit_times": True},
    ],
    ids=["two times", "several times", "steps that end at times"],
)


@pytest.fixture
def graphs(fused):
    """The backend with graphs."""
    return dataclasses.replace(fused, cuda_graphs=True)


class Calls:
    """A count that no record depends on: what such an object holds is not looked at."""

    count = 0


class Field(nn.Module):
    """The velocity of a cell, of which samples have unlike rates; it counts the calls of its
    Python."""

    def __init__(self, cell, batch):
        super().__init__()
        self.cell, self.calls = cell, Calls()
        self.register_buffer("rates", torch.linspace(0.2, 4, batch, device="cuda")[:, None])

    def forward(self, t, z, x):
        self.calls.count += 1
        return self.rates * (self.cell(z, x) - z) + torch.cos(t)


def field_of():
    cell, x = problem()
    return Field(cell, len(x)), x


@torch.no_grad()
def solve(field, x, backend, name, **options):
    return ic.integrate(field, 0.1 * x, x, solver=SOLVERS[name], backend=backend, **options)


def same(found, expected):
    assert torch.equal(found.status, expected.status) and torch.equal(found.steps, expected.steps)
    assert torch.allclose(found.z, expected.z, rtol=1e-5, atol=1e-6)
    assert found.evaluations >= expected.evaluations


@each_solver
@each_way
def test_a_trajectory_by_graphs_is_that_by_the_loop(fused, graphs, name, options):
    field, x = field_of()
    for scale in (1.0, 1.0, 0.5, -2.0):
        field.calls.count = 0
        found = solve(field, scale * x, graphs, name, **options)
        calls = field.calls.count
        same(found, solve(field, scale * x, fused, name, **options))
    assert calls < found.evaluations / 2


@each_solver
def test_parameters_are_followed_and_trajectories_stay(fused, graphs, name):
    (field, x), options = field_of(), {"times": [0.0, 0.5, 2.0]}
    for _ in range(2):
        solve(field, x, graphs, name, **options)
    first, copy = (found := solve(field, x, graphs, name, **options)), found.z.clone()
    with torch.no_grad():
        for parameter in field.parameters():
            parameter.mul_(0.8)
    same(solve(field, x, graphs, name, **options), solve(field, x, fused, name, **options))
    with torch.no_grad():
        for parameter in field.parameters():
            parameter.data = 0.5 * parameter.data
    for _ in range(3):
        same(solve(field, x, graphs, name, **options), solve(field, x, fused, name, **options))
    assert torch.equal(first.z, copy)


@each_solver
def test_samples_that_fail_do_so_alone(fused, graphs, name):
    def poles(t, z, x):
        return x * z.square()

    x = torch.tensor([[-1.0], [1.0], [-0.5], [2.0]], device="cuda")
    for _ in range(3):
        found, expected = (
            solve(poles, x, each, name, times=[0.0, 20.0]) for each in (graphs, fused)
        )
        assert torch.equal(found.status, expected.status)
        assert torch.equal(found.steps, expected.steps)


def test_another_stream_waits_for_the_memory(fused, graphs):
    (field, x), options = field_of(), {"times": [0.0, 0.5, 2.0]}
    expected = [solve(field, scale * x, fused, "tsit5", **options) for scale in (1.0, -2.0)]
    for _ in range(2):
        solve(field, x, graphs, "tsit5", **options)
    streams = [torch.cuda.Stream() for _ in range(2)]
    torch.cuda.synchronize()
    found = []
    for _ in range(10):
        for stream, scale in zip(streams, (1.0, -2.0), strict=True):
            with torch.cuda.stream(stream):
                found.append(solve(field, scale * x, graphs, "tsit5", **options))
    torch.cuda.synchronize()
    for place, one in enumerate(found):
        same(one, expected[place % 2])


def test_a_host_read_is_refused_and_the_device_is_as_before(fused, graphs):
    (field, x), options = field_of(), {"times": [0.0, 2.0]}

    class Reading(Field):
        def forward(self, t, z, x):
            return super().forward(t, z, x) * (1.0 if z.sum().item() < 1e9 else 0.0)

    reading = Reading(field.cell, len(x))
    expected = solve(field, x, fused, "tsit5", **options)
    with pytest.warns(ic.InputWarning, match="reads values on the host"):
        for _ in range(3):
            same(solve(reading, x, graphs, "tsit5", **options), expected)
    for _ in range(3):
        same(solve(field, x, graphs, "tsit5", **options), expected)


@each_solver
def test_memory_does_not_grow(graphs, name):
    field, x = field_of()
    held = []
    for _ in range(12):
        solve(field, x, graphs, name, times=[0.0, 0.5, 2.0])
        held.append(torch.cuda.memory_allocated())
    assert held[-1] == held[3]
