"""Each backend on the GPU gives what the torch backend gives there, on every device of the machine."""

from __future__ import annotations

import pytest
import torch
from kernel_checks import DTYPES, Kernels, Solves

import implicitcore as ic

pytestmark = pytest.mark.gpu
each_dtype = pytest.mark.parametrize("dtype", DTYPES, ids=lambda dtype: str(dtype).removeprefix("torch."))
BATCHES = (0, 1, 3, 257)
each_size = pytest.mark.parametrize("n", [0, 1, 127, 128, 129, 4096, 100_003])


@each_dtype
@each_size
def test_whole_states(fused, dtype, n):
    checks = Kernels(fused, "cuda")
    for batch in BATCHES:
        for aligned in (True, False):
            checks.residual(batch, n, dtype, aligned)
            checks.error_norm(batch, n, dtype, aligned)
            checks.combine(batch, n, dtype, aligned=aligned)


@each_dtype
@each_size
def test_histories(fused, dtype, n):
    checks = Kernels(fused, "cuda")
    for batch in BATCHES:
        for depth in (1, 5, 21):
            checks.gram_row(batch, n, dtype, depth)
            checks.mix(batch, n, dtype, depth)


def test_stages(fused):
    for count in range(1, 17):
        Kernels(fused, "cuda").combine(3, 129, torch.float64, count)


@pytest.mark.parametrize(("batch", "n"), [(100_000, 2), (1, 20_000_000)])
def test_many_samples_and_many_entries(fused, batch, n):
    checks = Kernels(fused, "cuda")
    for check in (checks.residual, checks.error_norm, checks.combine, checks.gram_row, checks.mix):
        check(batch, n, torch.float32)


@pytest.mark.parametrize("n", [5, 5000])
def test_not_a_number(fused, n):
    Kernels(fused, "cuda").not_a_number(n)


@pytest.mark.parametrize("n", [129, 100_003])
def test_the_same_tensors_give_the_same_bits(fused, n):
    checks = Kernels(fused, "cuda")
    fz, z = checks.draw(2, 64, n, dtype=torch.float32)
    history = checks.lines(64, 6, n, torch.float32)
    first, again = ((*fused.residual(fz, z), fused.gram_row(history, z.unsqueeze(1))) for _ in range(2))
    assert all(torch.equal(one, other) for one, other in zip(first, again, strict=True))


@pytest.mark.parametrize("solver", [ic.Anderson(tol=1e-11), ic.Broyden(tol=1e-11), ic.Newton(tol=1e-11)], ids=lambda s: type(s).__name__)
def test_equilibria(fused, solver):
    Solves(fused, "cuda").equilibrium(solver)


@pytest.mark.parametrize("gradient", [ic.Adjoint(), ic.Checkpointed(), ic.Unrolled()], ids=lambda g: type(g).__name__)
def test_trajectories(fused, gradient):
    Solves(fused, "cuda").trajectory(ic.Tsit5(rtol=1e-6, atol=1e-8), gradient)


def test_half_precision_and_second_derivatives(fused):
    Solves(fused, "cuda").bfloat16(ic.Anderson(tol=1e-2))
    Solves(fused, "cuda").second_derivatives()


def test_the_second_device(fused):
    if torch.cuda.device_count() < 2:
        pytest.skip("one CUDA device")
    with torch.cuda.device(0):
        Kernels(fused, "cuda:1").residual(3, 129, torch.float32)
        Solves(fused, "cuda:1").equilibrium(ic.Anderson(tol=1e-11))
