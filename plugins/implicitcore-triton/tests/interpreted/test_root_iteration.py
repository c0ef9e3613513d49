"""Whole iterations of a root solver, in Triton's interpreter: the solves of the torch backend."""

from __future__ import annotations

from functools import partial

import pytest
import torch

import implicitcore as ic
from implicitcore.testing import emulated_graphs
from implicitcore.testing.expect import known
from implicitcore.testing.hard_maps import PROBLEMS, UNSTABLE, Problem, same_stops
from implicitcore_triton import TritonBackend, backend
from implicitcore_triton.iteration import WHOLE

BACKEND = TritonBackend(interpret=True)
GRAPHS = TritonBackend(interpret=True, cuda_graphs=True)
SOLVERS = [
    ic.Picard(tol=1e-3, damping=0.7, max_steps=14),
    ic.Anderson(tol=1e-6, depth=2, max_steps=14),
    ic.Broyden(tol=1e-6, memory=4, max_steps=14),
]
KERNELS = {"Picard": "picard", "Anderson": "anderson", "Broyden": "broyden"}
each_solver = pytest.mark.parametrize("solver", SOLVERS, ids=lambda solver: type(solver).__name__)


@each_solver
@pytest.mark.parametrize("name", ["rates", "some expanding", "nan", "tiny", "runaway"])
def test_the_same_samples_stop_at_the_same_steps(launches, solver, name):
    problem = PROBLEMS[name](torch.float64)
    found, expected = (problem.solve(solver, each) for each in (BACKEND, None))
    assert 0 <= found.evaluations - expected.evaluations <= 4
    same_stops(found, expected, stable=name not in UNSTABLE)
    kernel = KERNELS[type(solver).__name__]
    assert kernel in launches
    if name == "rates":  # one launch an iterate, and the rest is what is checked at the end
        assert launches[: found.evaluations - 1] == [kernel] * (found.evaluations - 1)


@each_solver
def test_a_residual_of_the_dynamics(launches, solver):
    problem = PROBLEMS["rates"](torch.float64)
    found, expected = (problem.solve(solver, each, "find_root") for each in (BACKEND, None))
    assert launches
    same_stops(found, expected, stable=True)


@each_solver
def test_bfloat16_meets_its_tolerance(launches, solver):
    problem = PROBLEMS["contraction"](torch.bfloat16)
    found = problem.solve(type(solver)(tol=3e-2), BACKEND).raise_if_failed()
    assert launches and found.z.dtype == torch.bfloat16
    value = problem.f(found.z, problem.x)
    g, size = (value - found.z).double().norm(dim=1), value.double().norm(dim=1)
    assert bool((g <= 3.1e-2 * size).all())


@each_solver
def test_a_sample_has_the_bits_that_it_has_alone(launches, solver):
    problem = PROBLEMS["rates"](torch.float64)
    together, alone = (each.solve(solver, BACKEND) for each in (problem, problem.sample(4)))
    assert torch.equal(alone.z[0], together.z[4])
    assert alone.steps.item() == together.steps[4].item()


def test_a_trace_has_no_iterate_too_many(launches):
    problem, solver = PROBLEMS["contraction"](torch.float64), ic.Anderson(tol=1e-4)
    found, expected = (
        ic.ImplicitLayer(
            ic.FixedPoint(problem.f), solver=solver, backend=each
        ).solve(problem.x, torch.zeros_like(problem.x), trace=True)
        for each in (BACKEND, None)
    )  # fmt: skip
    assert isinstance(found, ic.Solution) and isinstance(expected, ic.Solution) and launches
    assert known(found.trace).shape == known(expected.trace).shape
    assert torch.allclose(known(found.trace), known(expected.trace), rtol=1e-3, atol=1e-12)


@each_solver
def test_a_solve_by_graphs_is_that_by_the_loop(launches, monkeypatch, solver):
    launch = backend._launch
    monkeypatch.setattr(
        backend,
        "_launch",
        lambda *rest, **sizes: emulated_graphs.launch(partial(launch, *rest, **sizes)),
    )
    graphs = emulated_graphs.emulated(monkeypatch)
    problem, solver = PROBLEMS["rates"](torch.float64), type(solver)(tol=1e-12, max_steps=9)
    bad = Problem(problem.f, torch.where(torch.arange(9)[:, None] == 3, torch.nan, problem.x))
    _, _, found = (each.solve(solver, GRAPHS) for each in (bad, bad, problem))
    expected = problem.solve(solver, BACKEND)  # what a NaN left in the memory is not read
    assert torch.equal(found.z, expected.z) and found.steps.tolist() == expected.steps.tolist()
    assert found.evaluations == expected.evaluations
    assert (graphs.records, graphs.replays > 0) == (3, True)


def test_long_samples_are_the_five_kernels(launches):
    z = torch.zeros(1, WHOLE + 1)
    ic.fixed_point(lambda z, x: 0.1 * z + 1, z, None, solver=ic.Picard(tol=1e-2), backend=BACKEND)
    assert launches and "picard" not in launches
