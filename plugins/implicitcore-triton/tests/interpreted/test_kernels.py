"""Every kernel against the torch backend, in Triton's interpreter."""

from __future__ import annotations

import pytest
import torch
from kernel_checks import DTYPES, REFERENCE, Kernels

from implicitcore_triton import Triton, backend

CHECKS = Kernels(Triton(interpret=True))
SIZES = (0, 1, 127, 128, 129)
LARGE = 100_003
each_dtype = pytest.mark.parametrize("dtype", DTYPES, ids=lambda dtype: str(dtype).removeprefix("torch."))
each_batch = pytest.mark.parametrize("batch", [0, 1, 3])
each_size = pytest.mark.parametrize("n", SIZES)
each_alignment = pytest.mark.parametrize("aligned", [True, False], ids=["aligned", "unaligned"])


@pytest.fixture(autouse=True)
def launches(monkeypatch):
    """The names of the kernels that ran."""
    names, launch = [], backend._launch
    monkeypatch.setattr(backend, "_launch", lambda name, *rest, **sizes: (names.append(name), launch(name, *rest, **sizes)))
    return names


@each_dtype
@each_batch
@each_size
@each_alignment
def test_whole_states(dtype, batch, n, aligned, launches):
    CHECKS.residual(batch, n, dtype, aligned)
    CHECKS.error_norm(batch, n, dtype, aligned)
    CHECKS.combine(batch, n, dtype, 7, aligned)
    once = ["residual", "error_norm", "error_norm", "combine", "combine"]
    assert launches == once * bool(batch and n), "an empty state is the torch backend's"


@each_dtype
@each_batch
@each_size
@pytest.mark.parametrize("depth", [1, 5, 11])
def test_histories(dtype, batch, n, depth, launches):
    CHECKS.gram_row(batch, n, dtype, depth)
    CHECKS.mix(batch, n, dtype, depth)
    assert launches == ["gram_row", "mix", "mix", "mix"] * bool(batch and n)


@each_dtype
def test_a_large_state(dtype, launches):
    CHECKS.residual(1, LARGE, dtype, True)
    CHECKS.error_norm(1, LARGE, dtype, True)
    CHECKS.combine(1, LARGE, dtype, 2, True)
    CHECKS.gram_row(1, LARGE, dtype, 5)
    assert launches.count("finish") == 4, "each sum takes a second kernel"


def test_a_large_mix():
    CHECKS.mix(1, LARGE, torch.float32, 2)


@pytest.mark.parametrize("count", range(1, 17))
def test_stages(count):
    CHECKS.combine(3, 40, torch.float64, count, aligned=True)


@pytest.mark.parametrize("n", [5, 5000])
def test_not_a_number(n):
    CHECKS.not_a_number(n)


@pytest.mark.parametrize("n", [3, 129, 5000])
def test_a_batch_gives_the_bits_of_single_samples(n):
    fz, z = CHECKS.draw(2, 70, n, dtype=torch.float32)
    together, apart = CHECKS.backend.residual(fz, z), CHECKS.backend.residual(fz[40:41], z[40:41])
    assert all(torch.equal(all_[40:41], one) for all_, one in zip(together, apart, strict=True))
    history, row = CHECKS.lines(9, 6, n, torch.float32), z[:9, None]
    assert torch.equal(CHECKS.backend.gram_row(history, row)[4:5], CHECKS.backend.gram_row(history[4:5], row[4:5]))


def test_rows_from_a_transposed_history():
    history = CHECKS.draw(3, 40, 5, dtype=torch.float64).mT
    row = history[:, :1]
    found, expected = CHECKS.backend.gram_row(history, row), REFERENCE.gram_row(history, row)
    assert torch.allclose(found, expected, rtol=1e-13)
