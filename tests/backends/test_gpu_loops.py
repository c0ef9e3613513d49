"""What the GPU suite runs, on the CPU: it does what the suite takes for granted."""

from __future__ import annotations

import pytest
import torch
from gpu.loops import SOLVERS, endless, one_step, problem, solve

import implicitcore as ic

each_solver = pytest.mark.parametrize("name", SOLVERS)


@each_solver
def test_an_endless_solve_takes_all_its_steps(name):
    cell, x = problem("cpu")
    for steps in (21, 61):
        assert solve(name, ic.TorchBackend(), endless(name, cell), x, steps).steps.tolist() == [
            steps
        ] * len(x)


@each_solver
@torch.no_grad()
def test_a_step_changes_nothing_and_can_be_replayed(name):
    step, z = one_step(name, ic.TorchBackend(), "cpu")
    start = z.clone()
    first = step(z)
    assert torch.equal(step(z), first)
    assert torch.equal(z, start)
    assert not torch.allclose(step(-2 * z), first)
