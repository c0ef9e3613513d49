"""What adaptive steps are beside their evaluations, by the kernels: as by torch, and in how many
launches."""

from __future__ import annotations

import pytest
import torch
from cpu_launcher import DTYPES, FORWARD, REVERSE, SHUFFLED, launches, on_cpu

import implicitcore as ic
from implicitcore.extend import AdamsAttempt, AdamsPast
from implicitcore.testing.kernel_checks import KernelProblem
from implicitcore.testing.step_kernel_checks import STEP_CHECKS
from implicitcore_cupy.geometry import WHOLE

each_dtype = pytest.mark.parametrize("dtype", DTYPES, ids=DTYPES.values())
each_check = pytest.mark.parametrize("check", STEP_CHECKS.values(), ids=STEP_CHECKS)
SHAPES = ((1, 1), (3, 129), (33, 128), (150, 2), (9, 40))
ORDERS = (FORWARD, REVERSE, SHUFFLED)


@each_check
@each_dtype
def test_equal_to_torch(check, dtype):
    for batch, n in SHAPES:
        for aligned in (True, False):
            backend = on_cpu(SHUFFLED)
            check(KernelProblem(backend, "cpu", dtype, batch, n, aligned))
            assert launches(backend)


@each_check
@each_dtype
@pytest.mark.parametrize("order", ORDERS)
def test_samples_of_several_spans(check, dtype, order):
    check(KernelProblem(on_cpu(order), "cpu", dtype, 3, WHOLE + 5, aligned=order == REVERSE))


def counted(solver, n, steps, backend):
    """Launches of so many steps, of which all samples take the last, far from the end."""
    with torch.no_grad():
        ic.integrate(
            lambda t, z, x: -0.1 * z,
            torch.ones(2, n, dtype=torch.float64),
            times=torch.tensor([0.0, 1e9]),
            solver=solver(max_steps=steps),
            backend=backend,
            on_failure="mask",
        )
    return launches(backend)


@pytest.mark.parametrize(
    ("solver", "whole", "spans"), [(ic.Adams, 3, 5), (ic.Bosh3, 5, 6)], ids=lambda part: str(part)
)
def test_what_a_step_launches(solver, whole, spans):
    """The table of docs/benchmarks/launches.md; Bosh3 has four combinations of stages."""
    for n, expected in ((17, whole), (WHOLE + 8, spans)):
        few, many = (counted(solver, n, steps, on_cpu()) for steps in (3, 7))
        assert many - few == 4 * expected


def turning(t, z, x):
    return x * (z.roll(1, 1) - z) + torch.cos(t).to(z.dtype)


def decay(backend, solver, rows=slice(None), dtype=torch.float64):
    """States that decay and turn, at rates of their own, at several times."""
    rates = torch.linspace(0.5, 8.0, 5, dtype=torch.float64)[rows, None].to(dtype)
    z0 = torch.linspace(-1, 2, 30, dtype=torch.float64).view(5, 6)[rows].to(dtype)
    times = torch.linspace(0, 2, 9, dtype=torch.float64)
    with torch.no_grad():
        return ic.integrate(
            turning, z0, rates, times=times, solver=solver, backend=backend, on_failure="ignore"
        )


SOLVERS = [
    ic.Adams(rtol=1e-5, atol=1e-7),
    ic.Adams(rtol=1e-4, atol=1e-6, max_order=2, controller="pid"),
    ic.Tsit5(rtol=1e-5, atol=1e-7, controller="pid", max_step=0.3),
    ic.Bosh3(rtol=1e-4, atol=1e-6, controller="i", min_step=1e-6),
]


@pytest.mark.parametrize("solver", SOLVERS, ids=lambda solver: type(solver).__name__)
def test_the_same_steps_as_by_torch(solver):
    backend = on_cpu(REVERSE)
    found, expected = (decay(each, solver).raise_if_failed() for each in (backend, None))
    assert launches(backend)
    assert found.steps.tolist() == expected.steps.tolist()
    assert len(set(expected.steps.tolist())) > 1  # each has steps of its own
    assert torch.allclose(found.z, expected.z, rtol=1e-7, atol=1e-9)


def test_a_sample_has_the_bits_that_it_has_alone():
    for solver in SOLVERS[:3]:
        together = decay(on_cpu(), solver)
        for row in (0, 3):
            alone = decay(on_cpu(), solver, slice(row, row + 1))
            assert torch.equal(alone.z[-1, 0], together.z[-1, row])  # the end of a step


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_a_lower_precision_has_as_many_steps(dtype):
    found, expected = (
        decay(each, ic.Adams(rtol=1e-2, atol=1e-3), dtype=dtype) for each in (on_cpu(), None)
    )
    assert found.z.dtype == dtype
    assert (found.steps - expected.steps).abs().max() <= 2
    assert torch.allclose(found.z.double(), expected.z.double(), rtol=5e-2, atol=2e-2)


def test_a_sample_that_leaves_the_domain_fails_alone():
    """The end of its step is not finite, and the others take theirs."""

    def field(t, z, x):
        return x * z.square()

    x = torch.tensor([[-1.0], [1.0], [-0.5]], dtype=torch.float64)
    for solver in (ic.Adams(max_steps=400), ic.Tsit5(max_steps=400)):
        solutions = [
            ic.integrate(
                field,
                torch.ones(3, 4, dtype=torch.float64),
                x,
                times=torch.tensor([0.0, 3.0], dtype=torch.float64),
                solver=solver,
                backend=backend,
                on_failure="mask",
            )
            for backend in (on_cpu(), None)
        ]
        found, expected = solutions
        assert found.status.tolist() == expected.status.tolist()
        assert found.converged.tolist() == [True, False, True]
        exact = 1 / (1 - 3 * x[[0, 2]])
        assert torch.allclose(found.z[-1][[0, 2]], exact.expand(2, 4), rtol=1e-2)


@torch.no_grad()
def test_a_velocity_of_another_shape_is_refused():
    problem = KernelProblem(on_cpu(), "cpu", torch.float64, 2, 5)
    past = AdamsPast(problem.rows(4), torch.ones(2, 4).double(), torch.ones(2, dtype=torch.int64))
    given = problem.state(), torch.ones(2).double(), past, (1e-3, 1e-6)
    step = problem.backend.adams_step(AdamsAttempt(3, *given))
    assert step is not None
    with pytest.raises(ic.InputError, match=r"float64 of shape \(2, 4\), expected .*\(2, 5\)"):
        step.correct(torch.zeros(2, 4, dtype=torch.float64))


@torch.no_grad()
def test_more_differences_than_there_are_registers_for():
    problem = KernelProblem(on_cpu(), "cpu", torch.float64, 2, 5)
    past = AdamsPast(problem.rows(13), torch.ones(2, 13).double(), torch.ones(2).long())
    given = problem.state(), torch.ones(2).double(), past, (1e-3, 1e-6)
    assert problem.backend.adams_step(AdamsAttempt(13, *given)) is None
