"""What a training meets on the GPU beside its kernels: loss scaling, TF32, orders of memory, NCCL,
too little memory, long runs, and a cell that is a graph itself."""

from __future__ import annotations

import pytest
import torch
from gpu.loops import problem
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
from support.tf32 import allowed

import implicitcore as ic

pytestmark = pytest.mark.gpu


def test_a_scaled_loss_that_overflows(backend):
    attempts = scaled_training("cuda", backend)
    moved = [each.moved for each in attempts]
    assert not moved[0] and moved[-1], "the first scale overflows, a later one does not"
    assert attempts[-1].loss < 0.9 * attempts[0].loss


@pytest.mark.parametrize("solver", [ic.Anderson(tol=1e-5), ic.Broyden(tol=1e-5)], ids=str)
def test_tf32_is_for_f(backend, solver):
    if torch.cuda.get_device_capability() < (8, 0):
        pytest.skip("this GPU has no TF32")
    factor = torch.randn(256, 256, device="cuda")
    exact = factor @ factor
    expected = exact_products("cuda", backend, solver)
    with allowed():
        assert not torch.equal(factor @ factor, exact), "the setting rounds nothing here"
        found = exact_products("cuda", backend, solver)
    assert all(map(torch.equal, found, expected))


def test_channels_last(backend):
    plain = images("cuda", backend, torch.contiguous_format)
    last = images("cuda", backend, torch.channels_last)
    torch.testing.assert_close(last, plain, rtol=1e-3, atol=1e-4)


def test_a_process_of_nccl_stops_with_its_group(backend, tmp_path):
    if not torch.distributed.is_nccl_available():
        pytest.skip("this torch has no NCCL")
    expected = training_in_step("cuda", backend)
    with group_of_one("nccl", str(tmp_path / "store")) as group:
        found = training_in_step("cuda", backend, group)
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)


def test_too_little_memory(backend):
    def fail(cell, x):
        wide = torch.randn(2**20, x.shape[1], device="cuda")  # 256 MiB a state
        torch.cuda.empty_cache()
        free, total = torch.cuda.mem_get_info()
        room = torch.cuda.memory_reserved() + min(free, 6 * wide.nbytes)
        torch.cuda.set_per_process_memory_fraction(room / total)
        try:
            layer_of(cell, backend)(wide)
        finally:
            torch.cuda.set_per_process_memory_fraction(1.0)

    after_a_failure("cuda", backend, fail)  # what is made once is made
    before = torch.cuda.memory_allocated()
    after_a_failure("cuda", backend, fail)
    assert torch.cuda.memory_allocated() == before


def test_a_long_run_holds_no_more_memory(backend):
    held = long_run("cuda", backend, 300, torch.cuda.memory_allocated)
    assert held[-2:] == held[8:10]


def test_a_cell_that_is_a_graph_itself(backend):
    """Its results are the same memory at each call."""
    cell, x = problem()
    samples = torch.zeros_like(x).requires_grad_(), x.clone().requires_grad_()
    x.requires_grad_()

    def gradients(f):
        z = layer_of(f, backend)(x)
        return [z.detach(), *torch.autograd.grad(z.square().sum(), [*cell.parameters(), x])]

    expected = gradients(cell)
    graphed = torch.cuda.make_graphed_callables(cell, samples)
    for _ in range(2):
        torch.testing.assert_close(gradients(graphed), expected, rtol=1e-4, atol=1e-5)
