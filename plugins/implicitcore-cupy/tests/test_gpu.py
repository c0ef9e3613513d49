"""The kernels on a GPU, through CuPy; skipped where there is none."""

from __future__ import annotations

import pytest
import torch

from implicitcore.testing.kernel_checks import CHECKS, REFERENCE, check_kernels
from implicitcore_cupy import CupyBackend

BACKEND = CupyBackend()


@pytest.fixture(autouse=True)
def gpu():
    reason = BACKEND.unavailable_reason()
    if reason:
        pytest.skip(reason)


@pytest.mark.parametrize("check", CHECKS)
def test_equal_to_the_torch_backend(check):
    for index in range(torch.cuda.device_count()):
        check_kernels(BACKEND, torch.device("cuda", index), (check,))


def test_a_stream_of_its_own():
    """The kernel waits for what its stream still has to do, which the default stream does not."""
    z, stream = torch.zeros(64, 4096, device="cuda"), torch.cuda.Stream()
    matrix = torch.randn(4096, 4096, device="cuda")
    BACKEND.residual(z, z)
    torch.cuda.synchronize()
    with torch.cuda.stream(stream):
        for _ in range(50):
            matrix = matrix @ matrix
        z.fill_(1)
        found = BACKEND.residual(2 * z, z)
    stream.synchronize()
    assert torch.equal(found.norm, torch.full_like(found.norm, 64.0))


def test_no_kernel_waits_for_the_device():
    z, history = torch.randn(3, 100_003, device="cuda"), torch.randn(3, 8, 100_003, device="cuda")
    weights, dt = torch.ones(3, 1, 8, device="cuda"), torch.ones(3, device="cuda")

    def run():
        BACKEND.residual(z, z)
        BACKEND.axpy_history(
            history[:, :1], BACKEND.inner_products(history, history[:, :1]) * weights, history
        )
        BACKEND.error_norm(z, BACKEND.stage_combination(z, dt, [z, z], [0.5, 0.5]), z, 1e-3, 1e-6)

    run()
    torch.cuda.set_sync_debug_mode("error")
    try:
        run()
    finally:
        torch.cuda.set_sync_debug_mode("default")


def test_the_capture_of_a_graph():
    fz, z, history = (
        torch.randn(3, 5003, device="cuda"),
        torch.randn(3, 5003, device="cuda"),
        torch.randn(3, 8, 5003, device="cuda"),
    )

    def run():
        norm = BACKEND.residual(fz, z).norm
        return norm, BACKEND.axpy_history(
            history[:, :1], BACKEND.inner_products(history, history[:, :1]), history, -1
        )

    run()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        found = run()
    for tensor in (fz, z, history):
        tensor.normal_()
    graph.replay()
    expected = (
        REFERENCE.residual(fz, z).norm,
        REFERENCE.axpy_history(
            history[:, :1], REFERENCE.inner_products(history, history[:, :1]), history, -1
        ),
    )
    for one, other in zip(found, expected, strict=True):
        assert torch.allclose(one, other, rtol=1e-4, atol=1e-2)
