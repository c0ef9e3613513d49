"""Iterations of compiled layers as CUDA graphs, on the GPU."""

from __future__ import annotations

import pytest
import torch
from gpu.compiled_graphs import EQUILIBRIA, TRAJECTORIES, as_the_layer, input_of, layer_of
from gpu.compiled_graphs import solutions_stay as program

import implicitcore as ic

pytestmark = pytest.mark.gpu


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("name", [*EQUILIBRIA, *TRAJECTORIES])
def test_a_compiled_layer_is_the_layer(name, dtype):
    as_the_layer(name, "cuda", dtype)


def test_output_times():
    as_the_layer("tsit5", "cuda", torch.float64, [0.0, 0.3, 0.31, 1.0])


def test_solutions_stay():
    program("cuda")


def test_a_solve_launches_graphs_in_place_of_kernels():
    x = input_of(4, "cuda", torch.float32).detach()
    layer, launches = layer_of("anderson", "cuda", torch.float32), []
    for wanted in (True, False):
        fast = ic.compile(layer, cuda_graphs=wanted)
        for _ in range(3):
            fast(x)
        torch.cuda.synchronize()
        with torch.profiler.profile() as trace:
            fast(x)
            torch.cuda.synchronize()
        names = [event.name for event in trace.events() or ()]
        launches.append(sum("LaunchKernel" in name for name in names))
        assert wanted == any("GraphLaunch" in name for name in names)
    assert launches[0] < launches[1]
