"""Every kernel on the CPU: the source that the GPU gets, launched by the host code that launches it
there."""

from __future__ import annotations

import pytest
import torch
from cpu_launcher import DTYPES, FORWARD, REVERSE, SHUFFLED, launches, on_cpu

from implicitcore.testing.kernel_checks import (
    BATCHES,
    CHECKS,
    SIZES,
    KernelProblem,
    kernel_problems,
)
from implicitcore_cupy.geometry import (
    MAX_SPANS,
    MAX_THREADS,
    SPAN,
    WARP,
    WHOLE,
    geometry,
    threads_for,
)

each_dtype = pytest.mark.parametrize("dtype", DTYPES, ids=DTYPES.values())
each_check = pytest.mark.parametrize("check", CHECKS.values(), ids=CHECKS)
ORDERS = {"forward": FORWARD, "reverse": REVERSE, "shuffled": SHUFFLED}


@each_check
@each_dtype
@pytest.mark.parametrize("n", SIZES)
@pytest.mark.slow
def test_equal_to_the_torch_backend(check, dtype, n):
    backend = on_cpu()
    for problem in kernel_problems(backend, "cpu", dtype, (n,)):
        check(problem)
    assert bool(launches(backend)) == bool(n)


@each_check
@each_dtype
@pytest.mark.parametrize("order", [REVERSE, SHUFFLED, SHUFFLED + 1])
def test_whichever_thread_comes_first(check, dtype, order):
    for n in (129, 5003, WHOLE + 1):
        check(KernelProblem(on_cpu(order), "cpu", dtype, 3, n, aligned=order == REVERSE))


@each_dtype
def test_the_same_bits_in_every_order_alone_and_in_a_batch(dtype):
    for n in (
        8,
        16,
        128,
        WHOLE,
        100_008,
    ):  # a sample in 16-byte pieces; else where it begins says how it is cut
        fz, z = (torch.randn(3, n).to(dtype) for _ in range(2))
        first, *others = [on_cpu(order).residual(fz, z) for order in ORDERS.values()]
        single = [on_cpu().residual(fz[i : i + 1].clone(), z[i : i + 1].clone()) for i in range(3)]
        for found in (
            *others,
            type(first)(*(torch.cat(parts) for parts in zip(*single, strict=True))),
        ):
            assert all(torch.equal(a, b) for a, b in zip(first, found, strict=True))


LAUNCHES = {
    "residual": lambda backend, z, history: backend.residual(z, z),
    "inner_products": lambda backend, z, history: backend.inner_products(history, history[:, :1]),
    "error_norm": lambda backend, z, history: backend.error_norm(z, z, z, 0.1, 0.1),
    "axpy_history": lambda backend, z, history: backend.axpy_history(
        history[:, :1], history[:, :1, :4], history
    ),
    "stage_combination": lambda backend, z, history: backend.stage_combination(
        z, torch.ones(3), [z, z], [0.5, 0.5]
    ),
}


@each_dtype
@pytest.mark.parametrize("kernel", LAUNCHES)
def test_launches(kernel, dtype):
    """A kernel is one launch, and one more adds up the spans of a long sample."""
    for n, sums in ((WHOLE, 1), (WHOLE + 1, 2)):
        backend = on_cpu()
        problem = KernelProblem(backend, "cpu", dtype, 3, n)
        LAUNCHES[kernel](backend, problem.state(), problem.rows(4))
        assert launches(backend) == (1 if kernel in ("axpy_history", "stage_combination") else sums)


@each_dtype
def test_a_step_size_of_any_real_dtype(dtype):
    problem = KernelProblem(on_cpu(), "cpu", dtype, 3, 129)
    z = problem.state()
    expected = problem.backend.stage_combination(z, torch.full((3,), 0.5), [z], [2.0])
    for time in (torch.float16, torch.bfloat16, torch.float64):
        assert torch.equal(
            problem.backend.stage_combination(z, torch.full((3,), 0.5, dtype=time), [z], [2.0]),
            expected,
        )


def test_bfloat16_is_rounded_as_torch_does():
    """To nearest, halves to even, with infinities, NaNs and numbers below the normal ones: through
    a sum with nothing."""
    bits = torch.arange(2**16, dtype=torch.int32)
    values = (bits << 16).view(torch.float32).to(torch.bfloat16).view(1, -1)
    halves = torch.tensor([1.0, -(2.0**-8), 2.0**-9, 3 * 2.0**-9], dtype=torch.bfloat16)
    ones = torch.ones(1)
    for other in halves:
        second = other.expand(1, 2**16).contiguous()
        found = on_cpu().stage_combination(values, ones, [second], [1.0])
        expected = (values.float() + second.float()).to(torch.bfloat16)
        assert torch.equal(found.isnan(), expected.isnan())
        assert torch.equal(found.nan_to_num(7.0), expected.nan_to_num(7.0))


def test_the_threads_cover_every_entry_within_the_limits_of_a_grid():
    for dtype in DTYPES:
        for n in (
            1,
            2,
            31,
            33,
            511,
            WHOLE - 1,
            WHOLE,
            WHOLE + 1,
            100_003,
            SPAN * MAX_SPANS,
            SPAN * MAX_SPANS + 1,
            2**33 + 5,
        ):
            for sums in (False, True):
                laid = geometry(n, dtype, sums=sums)
                span, spans, lanes = laid
                assert span * (spans - 1) < n <= span * spans
                assert spans == 1 or span % 8 == 0
                assert spans <= MAX_SPANS
                assert lanes in [2**i for i in range(10)]
                assert spans == 1 or lanes > WARP
                for batch in (1, 2, 33, 100_000):
                    blocks, threads = laid.grid(batch)[0], laid.threads(batch)
                    assert threads % WARP == 0 and threads <= MAX_THREADS
                    assert threads == lanes or lanes <= WARP and threads % lanes == 0
                    assert (blocks - 1) * threads < batch * lanes <= blocks * threads
    assert [threads_for(items) for items in (1, 2, 31, 33, 512, 10**9)] == [
        1,
        2,
        32,
        64,
        512,
        MAX_THREADS,
    ]


@pytest.mark.parametrize(
    ("n", "lanes", "threads", "blocks"),
    [
        (1, 1, 128, 782),
        (2, 1, 128, 782),
        (17, 8, 128, 6250),
        (128, 32, 128, 25_000),
        (129, 64, 64, 100_000),
    ],
)
def test_samples_of_few_entries_share_a_block(n, lanes, threads, blocks):
    """A hundred thousand of them."""
    laid = geometry(n, torch.float32, sums=True)
    assert laid.lanes == lanes
    assert (laid.threads(100_000), laid.grid(100_000)) == (threads, (blocks, 1))
    assert laid.shared(2, 4) == (0 if lanes <= WARP else 2 * 2 * 4)


@each_dtype
@each_check
@pytest.mark.parametrize("n", [1, 2, 5, 16, 40])
def test_teams_that_share_a_block(check, dtype, n):
    """Whole blocks of them, and one that the batch ends within, in any order of the threads."""
    for order, batch in ((FORWARD, 3), (SHUFFLED, 129)):
        check(KernelProblem(on_cpu(order), "cpu", dtype, batch, n))


def test_steps_beyond_32_bits():
    """Two samples four gigabytes apart, of which the system gives only the pages that are
    touched."""
    step = 2**31 + 8
    history = torch.empty(step + 64, dtype=torch.bfloat16).as_strided((2, 2, 16), (step, 16, 1))
    history.copy_(torch.randn(2, 2, 16))
    weights = torch.ones(2, 1, 2, dtype=torch.bfloat16)
    near, backend = history.clone(), on_cpu()
    assert torch.equal(
        backend.inner_products(history, history[:, :1]), backend.inner_products(near, near[:, :1])
    )
    assert torch.equal(
        backend.axpy_history(history[:, :1], weights, history),
        backend.axpy_history(near[:, :1], weights, near),
    )


def test_all_batches_and_sizes_of_the_contract_are_here():
    assert set(SIZES) == {0, 1, 127, 128, 129, 100_003}
    assert {0, 1, 3, 33} == set(BATCHES)
