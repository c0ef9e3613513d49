"""What adaptive steps are beside their evaluations, in Triton's interpreter: as by torch."""

from __future__ import annotations

import pytest
import torch

import implicitcore as ic
from implicitcore.testing.kernel_checks import KernelProblem
from implicitcore.testing.step_kernel_checks import STEP_CHECKS
from implicitcore_triton import TritonBackend
from implicitcore_triton.iteration import WHOLE

BACKEND = TritonBackend(interpret=True)
DTYPES = (torch.float32, torch.float64, torch.bfloat16)
SHAPES = ((3, 129), (40, 2), (2, 1100))
each_check = pytest.mark.parametrize("check", STEP_CHECKS)


@each_check
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_equal_to_torch(launches, check, dtype):
    for batch, n in SHAPES:
        for aligned in (True, False):
            before, truncates = len(launches), dtype == torch.bfloat16
            problem = KernelProblem(BACKEND, "cpu", dtype, batch, n, aligned, truncates)
            STEP_CHECKS[check](problem)
            assert len(launches) > before


@each_check
def test_long_samples_are_torch_s(launches, check):
    STEP_CHECKS[check](KernelProblem(BACKEND, "cpu", torch.float32, 1, WHOLE + 1))
    assert not set(launches) & {"control", "predict", "correct"}


def turning(t, z, x):
    return x * (z.roll(1, 1) - z) + torch.cos(t).to(z.dtype)


def decay(backend, solver, rows=slice(None)):
    rates = torch.linspace(0.5, 4.0, 3, dtype=torch.float64)[rows, None]
    z0 = torch.linspace(-1, 2, 12, dtype=torch.float64).view(3, 4)[rows]
    times = torch.linspace(0, 1, 4, dtype=torch.float64)
    with torch.no_grad():
        return ic.integrate(turning, z0, rates, times=times, solver=solver, backend=backend)


SOLVERS = {
    "Adams": (ic.Adams(rtol=1e-4, atol=1e-6), ["predict", "correct", "control"]),
    "Bosh3": (ic.Bosh3(rtol=1e-3, atol=1e-5, controller="pid"), ["control"]),
}


@pytest.mark.parametrize("name", SOLVERS)
def test_the_same_steps_as_by_torch(launches, name):
    solver, kernels = SOLVERS[name]
    found = decay(BACKEND, solver).raise_if_failed()
    expected = decay(None, solver)
    assert found.steps.tolist() == expected.steps.tolist()
    assert len(set(expected.steps.tolist())) > 1  # each has steps of its own
    assert torch.allclose(found.z, expected.z, rtol=1e-7, atol=1e-9)
    combined = ["stage_combination"] * (0 if name == "Adams" else 4)
    per_step = [*combined, *kernels]
    assert launches[: 3 * len(per_step)] == 3 * per_step


@pytest.mark.parametrize("name", SOLVERS)
def test_a_sample_has_the_bits_that_it_has_alone(name):
    solver, _ = SOLVERS[name]
    together, alone = decay(BACKEND, solver), decay(BACKEND, solver, slice(1, 2))
    assert torch.equal(alone.z[-1, 0], together.z[-1, 1])  # the end of a step
