"""Every kernel against the torch backend, in Triton's interpreter."""

from __future__ import annotations

import pytest
import torch

from implicitcore.testing.kernel_checks import CHECKS, DTYPES, SIZES, KernelProblem
from implicitcore_triton import TritonBackend, backend

BACKEND = TritonBackend(interpret=True)
SMALL = SIZES[:-1]
LARGE = 3 * backend.CHUNK + 3  # several chunks, and one of a few entries; a GPU has more of them
each_dtype = pytest.mark.parametrize(
    "dtype", DTYPES, ids=lambda dtype: str(dtype).removeprefix("torch.")
)


def problem(dtype, batch, n, aligned=True):
    return KernelProblem(
        BACKEND, "cpu", dtype, batch, n, aligned, truncates=dtype == torch.bfloat16
    )


@each_dtype
@pytest.mark.parametrize("check", CHECKS)
@pytest.mark.parametrize("n", SMALL)
def test_equal_to_the_torch_backend(check, dtype, n, launches):
    for batch in (0, 1, 3):
        for aligned in (True, False):
            before = len(launches)
            CHECKS[check](problem(dtype, batch, n, aligned))
            empty = not batch or not n
            assert not empty or len(launches) == before, "an empty state is the torch backend's"
    assert launches or not n
    assert "finish" not in launches


@each_dtype
@pytest.mark.parametrize("check", ["residual", "inner_products", "error_norm", "stage_combination"])
def test_a_large_state(check, dtype, launches):
    CHECKS[check](problem(dtype, 1, LARGE, aligned=False))
    assert ("finish" in launches) == (check != "stage_combination"), (
        "each sum takes a second kernel"
    )


def test_a_large_axpy_history():
    CHECKS["axpy_history"](problem(torch.float32, 1, LARGE, aligned=False))


@pytest.mark.parametrize("n", [3, 129, 5000])
def test_a_batch_gives_the_bits_of_single_samples(n):
    many = problem(torch.float32, 70, n)
    fz, z, history, row = many.state(), many.state(), many.rows(6), many.rows(1)
    together, apart = BACKEND.residual(fz, z), BACKEND.residual(fz[40:41], z[40:41])
    assert all(torch.equal(all_[40:41], one) for all_, one in zip(together, apart, strict=True))
    assert torch.equal(
        BACKEND.inner_products(history, row)[40:41],
        BACKEND.inner_products(history[40:41], row[40:41]),
    )
