"""Iterations of a root solver as CUDA graphs (``cuda_graphs``), on the GPU."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from gpu.loops import problem, solve
from torch import nn

import implicitcore as ic

pytestmark = pytest.mark.gpu
each_solver = pytest.mark.parametrize("name", ["anderson", "broyden"])


@pytest.fixture
def graphs(fused):
    """The backend with graphs; where it has no such iterations, there is nothing to test."""
    return dataclasses.replace(fused, cuda_graphs=True)


class Calls:
    """A count that no record depends on: what such an object holds is not looked at."""

    count = 0


class Counted(nn.Module):
    """A cell that counts the calls of its Python."""

    def __init__(self, cell):
        super().__init__()
        self.cell, self.calls = cell, Calls()

    def forward(self, z, x):
        self.calls.count += 1
        return self.cell(z, x)


def same(found, expected):
    assert torch.equal(found.z, expected.z)
    assert torch.equal(found.status, expected.status) and torch.equal(found.steps, expected.steps)
    assert found.evaluations == expected.evaluations


@each_solver
def test_a_solve_by_graphs_is_that_by_the_loop(fused, graphs, name):
    cell, x = problem()
    counted = Counted(cell)
    for scale in (1.0, 1.0, 0.5, -2.0):
        counted.calls.count = 0
        found = solve(name, graphs, counted, scale * x)
        same(found, solve(name, fused, cell, scale * x))
    assert counted.calls.count < found.evaluations


@each_solver
def test_parameters_are_followed_and_solutions_stay(fused, graphs, name):
    cell, x = problem()
    for _ in range(2):
        solve(name, graphs, cell, x)
    first, copy = (found := solve(name, graphs, cell, x)), found.z.clone()
    with torch.no_grad():
        for parameter in cell.parameters():
            parameter.mul_(0.8)
    same(solve(name, graphs, cell, x), solve(name, fused, cell, x))
    with torch.no_grad():
        for parameter in cell.parameters():
            parameter.data = 0.5 * parameter.data
    for _ in range(3):
        same(solve(name, graphs, cell, x), solve(name, fused, cell, x))
    assert torch.equal(first.z, copy)


def test_training(fused, graphs):
    found = []
    for backend in (graphs, fused):
        cell, x = problem()
        layer = ic.ImplicitLayer(ic.FixedPoint(cell), solver=ic.Anderson(tol=1e-5), backend=backend)
        optimizer = torch.optim.SGD(cell.parameters(), lr=1e-3)
        losses = []
        for _ in range(6):
            loss = layer(x).square().sum()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            losses.append(float(loss))
        found.append(losses)
    assert found[0] == pytest.approx(found[1], rel=1e-5)


def test_under_autocast(fused, graphs):
    cell, x = problem()
    for _ in range(3):
        with torch.autocast("cuda", torch.bfloat16), torch.no_grad():
            found, expected = (
                ic.fixed_point(
                    cell, torch.zeros_like(x), x, solver=ic.Anderson(tol=1e-2), backend=backend
                )
                for backend in (graphs, fused)
            )
        same(found, expected)


def test_another_stream_waits_for_the_memory(fused, graphs):
    cell, x = problem()
    expected = [solve("anderson", fused, cell, scale * x) for scale in (1.0, -2.0)]
    for _ in range(2):
        solve("anderson", graphs, cell, x)
    streams = [torch.cuda.Stream() for _ in range(2)]
    torch.cuda.synchronize()
    found = []
    for _ in range(10):
        for stream, scale in zip(streams, (1.0, -2.0), strict=True):
            with torch.cuda.stream(stream):
                found.append(solve("anderson", graphs, cell, scale * x))
    torch.cuda.synchronize()
    for place, one in enumerate(found):
        same(one, expected[place % 2])


def test_a_host_read_is_refused_and_the_device_is_as_before(fused, graphs):
    cell, x = problem()

    class Reading(Counted):
        def forward(self, z, x):
            return super().forward(z, x) * (1.0 if z.sum().item() < 1e9 else 0.0)

    reading = Reading(cell)
    expected = solve("anderson", fused, cell, x)
    with pytest.warns(ic.InputWarning, match="reads values on the host"):
        for _ in range(3):
            same(solve("anderson", graphs, reading, x), expected)
    for _ in range(3):
        same(solve("anderson", graphs, cell, x), expected)


def test_memory_does_not_grow(graphs):
    cell, x = problem()
    held = []
    for _ in range(20):
        solve("anderson", graphs, cell, x)
        held.append(torch.cuda.memory_allocated())
    assert held[-1] == held[3]
