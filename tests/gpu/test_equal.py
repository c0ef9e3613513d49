"""Each backend on the GPU gives what the torch backend gives there, on every device of the
machine."""

from __future__ import annotations

import pytest
import torch

import implicitcore as ic
from implicitcore.testing.kernel_checks import CHECKS, KernelProblem, check_kernels
from implicitcore.testing.solve_checks import SolveChecks

pytestmark = pytest.mark.gpu


@pytest.mark.parametrize("check", CHECKS)
def test_kernels(fused, check):
    check_kernels(fused, "cuda", (check,))


@pytest.mark.parametrize("check", CHECKS)
@pytest.mark.parametrize(("batch", "n"), [(100_000, 2), (1, 20_000_000)])
def test_many_samples_and_many_entries(fused, check, batch, n):
    CHECKS[check](KernelProblem(fused, "cuda", torch.float32, batch, n))


@pytest.mark.parametrize("n", [129, 100_003])
def test_the_same_tensors_give_the_same_bits(fused, n):
    problem = KernelProblem(fused, "cuda", torch.float32, 64, n)
    fz, z, history, row = problem.state(), problem.state(), problem.rows(6), problem.rows(1)
    first, again = ((*fused.residual(fz, z), fused.inner_products(history, row)) for _ in range(2))
    assert all(torch.equal(one, other) for one, other in zip(first, again, strict=True))


@pytest.mark.parametrize(
    "solver",
    [ic.Anderson(tol=1e-11), ic.Broyden(tol=1e-11), ic.Newton(tol=1e-11)],
    ids=lambda s: type(s).__name__,
)
def test_equilibria(fused, solver):
    SolveChecks(fused, "cuda").equilibrium(solver)


@pytest.mark.parametrize(
    "gradient", [ic.Adjoint(), ic.Checkpointed(), ic.Unrolled()], ids=lambda g: type(g).__name__
)
def test_trajectories(fused, gradient):
    SolveChecks(fused, "cuda").trajectory(ic.Tsit5(rtol=1e-6, atol=1e-8), gradient)


def test_half_precision_and_second_derivatives(fused):
    SolveChecks(fused, "cuda").bfloat16(ic.Anderson(tol=1e-2))
    SolveChecks(fused, "cuda").second_derivatives()


def test_the_second_device(fused):
    if torch.cuda.device_count() < 2:
        pytest.skip("one CUDA device")
    with torch.cuda.device(0):
        check_kernels(fused, "cuda:1", ("residual", "axpy_history"))
        SolveChecks(fused, "cuda:1").equilibrium(ic.Anderson(tol=1e-11))
