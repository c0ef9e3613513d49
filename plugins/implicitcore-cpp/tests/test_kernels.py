"""Every kernel against the torch backend, strictly."""

from __future__ import annotations

import pytest
import torch

from implicitcore.testing.kernel_checks import CHECKS, DTYPES, SIZES, KernelProblem

*SMALL, LARGE = SIZES
each_dtype = pytest.mark.parametrize(
    "dtype", DTYPES, ids=lambda dtype: str(dtype).removeprefix("torch.")
)


@each_dtype
@pytest.mark.parametrize("check", CHECKS)
@pytest.mark.parametrize("n", SMALL)
def test_equal_to_the_torch_backend(cpp, check, dtype, n):
    for batch in (0, 1, 3):
        for aligned in (True, False):
            CHECKS[check](KernelProblem(cpp, "cpu", dtype, batch, n, aligned))


@each_dtype
@pytest.mark.parametrize("check", CHECKS)
def test_a_large_state(cpp, check, dtype):
    CHECKS[check](KernelProblem(cpp, "cpu", dtype, 1, LARGE, aligned=False))


@pytest.mark.parametrize("n", [3, 129, 5000])
def test_a_batch_gives_the_bits_of_single_samples(cpp, n):
    problem = KernelProblem(cpp, "cpu", torch.float32, 70, n)
    fz, z, history, row = problem.state(), problem.state(), problem.rows(6), problem.rows(1)
    together, apart = cpp.residual(fz, z), cpp.residual(fz[40:41], z[40:41])
    assert all(torch.equal(all_[40:41], one) for all_, one in zip(together, apart, strict=True))
    found = cpp.inner_products(history, row)[40:41]
    assert torch.equal(found, cpp.inner_products(history[40:41], row[40:41]))
