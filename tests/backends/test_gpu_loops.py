"""What the GPU suite runs, on the CPU: it does what the suite takes for granted."""

from __future__ import annotations

import gc
import weakref

import pytest
import torch
from gpu.loops import SOLVERS, endless, one_step, problem, solve
from gpu.programs import (
    after_a_failure,
    exact_products,
    group_of_one,
    images,
    layer_of,
    long_run,
    scaled_training,
    training_in_step,
)
from support.tf32 import allowed, emulated

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


TORCH = ic.TorchBackend()


def test_a_training_whose_scale_overflows_goes_on():
    attempts = scaled_training("cpu", TORCH)
    moved = [each.moved for each in attempts]
    first = moved.index(True)
    assert first > 0 and all(moved[first:])
    scales = [2.0**40, *(each.scale for each in attempts)]
    assert all(
        after == (before if took else before / 2)
        for before, after, took in zip(scales, scales[1:], moved, strict=False)
    )
    assert attempts[-1].loss < 0.9 * attempts[0].loss


def test_images_in_either_order_of_memory():
    plain = images("cpu", TORCH, torch.contiguous_format)
    last = images("cpu", TORCH, torch.channels_last)
    torch.testing.assert_close(last, plain, rtol=1e-4, atol=1e-5)


def test_products_are_exact_where_those_of_f_may_be_rounded():
    solver = ic.Anderson(tol=1e-5)
    with emulated():
        expected = exact_products("cpu", TORCH, solver)
    with emulated(), allowed():
        found = exact_products("cpu", TORCH, solver)
    assert all(map(torch.equal, found, expected))


def test_a_process_stops_with_its_group(tmp_path):
    expected = training_in_step("cpu", TORCH)
    with group_of_one("gloo", str(tmp_path / "store")) as group:
        found = training_in_step("cpu", TORCH, group)
    torch.testing.assert_close(found, expected)


@pytest.mark.parametrize("calls", [1, 3, 12])
def test_a_solve_that_found_no_memory_leaves_nothing(calls):
    held = []

    class Greedy(torch.nn.Module):
        """Keeps a reference to each state, and finds no memory in the end."""

        def __init__(self, cell):
            super().__init__()
            self.cell = cell

        def forward(self, z, x):
            held.append(weakref.ref(z))
            if len(held) == calls:
                raise torch.OutOfMemoryError("none is left")
            return self.cell(z, x)

    after_a_failure("cpu", TORCH, lambda cell, x: layer_of(Greedy(cell), TORCH, 1e-9)(x))
    gc.collect()
    assert len(held) == calls
    assert all(state() is None for state in held)


def test_a_run_is_as_long_as_it_is_asked_to_be():
    assert long_run("cpu", TORCH, 6, lambda: 0) == [0] * 6
