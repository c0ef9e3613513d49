"""Compiled layers whose iterations are CUDA graphs, recorded on a CPU in an emulation.

The parts of a graph are compiled to operations of torch, which the emulation sees, where Inductor
would write C++ that it does not see.
"""

from __future__ import annotations

import threading
from typing import Any

import pytest
import torch
from gpu import compiled_graphs as programs
from gpu.compiled_graphs import compare, input_of, layer_of
from torch._dynamo.backends.registry import lookup_backend

import implicitcore as ic
from implicitcore.backends import capture
from implicitcore.errors import InputWarning
from implicitcore.graph import compiled, host_loop
from implicitcore.testing.emulated_graphs import emulated

pytestmark = pytest.mark.filterwarnings(
    "ignore::UserWarning",  # of torch, about its own parts
    "error::implicitcore.errors.ImplicitCoreWarning",
)
DOUBLE, FLOAT = torch.float64, torch.float32


@pytest.fixture
def recorder(monkeypatch):
    """Counts records and replays."""
    aot = lookup_backend("aot_eager")
    monkeypatch.setattr(compiled, "inductor", lambda graph, examples, options: aot(graph, examples))
    torch._dynamo.reset()
    yield emulated(monkeypatch)
    torch._dynamo.reset()


@pytest.fixture
def looks(monkeypatch):
    """One entry for each look of the host at a device."""
    found, later = [], host_loop.values_later

    def values_later(numbers):
        found.append(1)
        return later(numbers)

    monkeypatch.setattr(host_loop, "values_later", values_later)
    return found


@pytest.mark.parametrize(
    ("name", "dtype"),
    [
        ("picard", DOUBLE),
        pytest.param("anderson", FLOAT, marks=pytest.mark.slow(15)),
        pytest.param("broyden", DOUBLE, marks=pytest.mark.slow(15)),
        pytest.param("steady_state", DOUBLE, marks=pytest.mark.slow(15)),
        pytest.param("tsit5", FLOAT, marks=pytest.mark.slow(30)),
        pytest.param("rk4", DOUBLE, marks=pytest.mark.slow(20)),
    ],
)
def test_a_layer_by_graphs_is_the_layer(recorder, name, dtype):
    programs.as_the_layer(name, "cpu", dtype)
    assert recorder.records >= 8  # of two batches, forward and backward
    assert recorder.replays > 50


@pytest.mark.slow(30)
def test_output_times(recorder):
    programs.as_the_layer("tsit5", "cpu", DOUBLE, [0.0, 0.3, 0.31, 1.0])
    assert recorder.replays > 50


def test_solutions_stay(recorder):
    programs.solutions_stay("cpu")
    assert recorder.replays


def test_two_graphs_and_one_look_for_four_iterations(recorder, looks):
    layer = layer_of("picard", "cpu", DOUBLE)
    fast, x = ic.compile(layer), input_of(4, "cpu", DOUBLE).detach()
    for solve in range(4):
        before, seen = recorder.replays, len(looks)
        solution = fast.solve(x)
        # The first evaluation is before the loop; the end is seen four iterations late at most.
        chunks = -(-(solution.evaluations - 1 + 1) // 4)
        assert chunks <= len(looks) - seen <= chunks + 1
        assert recorder.replays - before == (2 * (len(looks) - seen) if solve else 0)
        assert recorder.records == (2 if solve else 0)


def test_a_solve_that_stops_at_once_and_a_sample_that_diverges(recorder):
    solver = ic.Picard(tol=1e-6, max_steps=60)
    eager = ic.ImplicitLayer(
        ic.FixedPoint(lambda z, x: x[:, :1] * z + x[:, 1:]),
        solver=solver,
        gradient=ic.Implicit(solver),
        start=ic.Zeros((2,)),
        on_failure="mask",
    )
    fast = ic.compile(eager)
    still = torch.zeros(3, 3)
    wild = torch.tensor([[0.5, 1.0, 2.0], [1e12, 1.0, 1.0], [torch.nan, 1.0, 1.0]])
    for x in (still, still, still, wild, wild, still):
        one, other = eager.solve(x), fast.solve(x)
        assert torch.equal(one.status, other.status) and torch.equal(one.steps, other.steps)
        torch.testing.assert_close(other.z, one.z, equal_nan=True)
    assert one.steps.tolist() == [1, 1, 1] and recorder.replays


def test_an_integration_of_no_steps_and_of_more_than_there_is_room_for(recorder):
    eager = layer_of("rk4", "cpu", DOUBLE)
    eager.solver = ic.RK4(dt=1 / 40)
    fast = ic.compile(eager)
    x = input_of(2, "cpu", DOUBLE)
    compare(eager, fast, x, None)
    plans: Any = fast.plans.values()
    rooms = [plan._room(x) for plan in plans]
    for room in rooms:
        room.steps = 16  # of 40
    for _ in range(3):
        compare(eager, fast, x, None)
    assert max(room.steps for room in rooms) == 64 and recorder.replays
    eager.on_failure = "mask"
    bad = torch.full_like(x, torch.nan).requires_grad_()
    for _ in range(2):
        one, other = eager.solve(bad), fast.solve(bad)
        assert torch.equal(one.status, other.status) and torch.equal(one.steps, other.steps)
        assert torch.equal(one.z, other.z)


def test_a_solve_meanwhile_has_kernels(recorder):
    fast = ic.compile(layer_of("picard", "cpu", DOUBLE))
    x = input_of(4, "cpu", DOUBLE).detach()
    expected = [fast(scale * x) for scale in (1.0, 0.5)]
    found = [[], []]

    def work(place, scale):
        for _ in range(20):
            found[place].append(fast(scale * x))

    threads = [threading.Thread(target=work, args=pair) for pair in ((0, 1.0), (1, 0.5))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for given, z in zip(found, expected, strict=True):
        assert len(given) == 20 and all(torch.equal(each, z) for each in given)


def test_what_cannot_be_recorded_runs_without_and_says_why(recorder):
    recorder.failing = True
    fast = ic.compile(layer_of("picard", "cpu", DOUBLE))
    x = input_of(4, "cpu", DOUBLE).detach()
    first, second = fast(x), fast(x)
    with pytest.warns(InputWarning, match="without CUDA graphs.*stream is capturing"):
        third = fast(x)
    assert torch.equal(first, second) and torch.equal(second, third)
    assert not recorder.replays


def test_the_option(recorder, monkeypatch):
    x = input_of(4, "cpu", DOUBLE).detach()
    layer = layer_of("picard", "cpu", DOUBLE)
    without = ic.compile(layer, cuda_graphs=False)
    assert without._prepared(x, x, None, None).plan.cuda_graphs is False
    assert ic.compile(layer)._prepared(x, x, None, None).plan.cuda_graphs is True
    monkeypatch.setattr(capture, "capture_on", lambda device: None)
    assert ic.compile(layer)._prepared(x, x, None, None).plan.cuda_graphs is False
    with pytest.warns(InputWarning, match="solved without: there are no CUDA graphs on cpu"):
        plan = ic.compile(layer, cuda_graphs=True)._prepared(x, x, None, None).plan
    assert plan.cuda_graphs is False
