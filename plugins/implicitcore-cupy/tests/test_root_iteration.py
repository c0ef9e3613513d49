"""Whole iterations of a root solver by the kernels: the solves of the torch backend, promise by
promise, and what an iteration launches."""

from __future__ import annotations

import pytest
import torch
from cpu_launcher import REVERSE, SHUFFLED, CpuLauncher, launches, on_cpu

import implicitcore as ic
from implicitcore.extend import PicardRule, StopRule
from implicitcore.testing import checks_for, parametrize_with_checks
from implicitcore.testing.expect import known
from implicitcore.testing.hard_maps import PROBLEMS, SOLVERS, UNSTABLE, Problem, same_stops
from implicitcore_cupy.geometry import WHOLE
from implicitcore_cupy.iteration import CupyIteration

DTYPES = {torch.float64: 1e-9, torch.float32: 1e-4, torch.bfloat16: 3e-2}
LATE = CupyIteration.LOOK_EVERY  # evaluations more, at most, than the last sample needed
KINDS = [ic.Picard, ic.Anderson, ic.Broyden]
each_kind = pytest.mark.parametrize("kind", KINDS)


@pytest.fixture(autouse=True)
def iterations(monkeypatch):
    """How many solves were the kernels', which makes every comparison one with them."""
    made, begin = [], CupyIteration.__init__

    def begun(self, *arguments):
        made.append(arguments[1])
        begin(self, *arguments)

    monkeypatch.setattr(CupyIteration, "__init__", begun)
    return made


def launcher_of(backend) -> CpuLauncher:
    found = backend.launcher
    assert isinstance(found, CpuLauncher)
    return found


def long(batch=3, n=WHOLE + 8, dtype=torch.float64) -> Problem:
    """Samples of several spans, of which the second has no root."""
    rates = torch.linspace(0.2, 0.8, batch, dtype=torch.float64)[:, None]
    x = torch.linspace(-2, 2, n, dtype=torch.float64) * rates + 0.1 * rates
    x[1] = -3.0

    def f(z, x):
        return torch.where(x < -2.5, z + 1, torch.sin(0.3 * z + x) + x.abs() * z.roll(1, 1) / 4)

    return Problem(f, x.to(dtype))


class OnCpu(type(on_cpu())):
    """At the top of a module, where pickle finds it."""


@pytest.mark.slow
@parametrize_with_checks([OnCpu()])
def test_the_contract(part, check):
    check(part)


QUICK = [
    (name, solver)
    for name in ("rates", "some expanding", "nan")
    for solver in (SOLVERS[5], SOLVERS[6], SOLVERS[11])
]
EACH = [(name, solver) for name in PROBLEMS for solver in SOLVERS]


@pytest.mark.parametrize(
    ("name", "solver"),
    [*QUICK, *(pytest.param(*pair, marks=pytest.mark.slow) for pair in EACH if pair not in QUICK)],
    ids=str,
)
def test_the_same_samples_stop_at_the_same_steps(iterations, name, solver):
    problem, backend = PROBLEMS[name](torch.float64), on_cpu()
    found, expected = (problem.solve(solver, each) for each in (backend, None))
    assert iterations
    assert 0 <= found.evaluations - expected.evaluations <= LATE
    same_stops(found, expected, stable=name not in UNSTABLE)


@pytest.mark.parametrize("solver", SOLVERS[1::3], ids=str)
@pytest.mark.parametrize("name", ["rates", "some expanding", "nan"])
def test_a_residual_of_the_dynamics(iterations, name, solver):
    problem, backend = PROBLEMS[name](torch.float64), on_cpu(SHUFFLED)
    found, expected = (problem.solve(solver, each, "find_root") for each in (backend, None))
    assert iterations
    same_stops(found, expected, stable=name not in UNSTABLE)


@pytest.mark.slow
@pytest.mark.parametrize("order", [REVERSE, SHUFFLED])
@pytest.mark.parametrize(
    "solver",
    [
        ic.Picard(tol=1e-3, damping=0.7, max_steps=24),
        ic.Anderson(tol=1e-6, depth=2, max_steps=24),
        ic.Broyden(tol=1e-6, memory=4, max_steps=24),
    ],
    ids=str,
)
def test_a_sample_of_several_spans(iterations, solver, order):
    problem = long()
    found, expected = (problem.solve(solver, each) for each in (on_cpu(order), None))
    assert iterations
    assert expected.converged.tolist() == [True, False, True]
    assert len(set(expected.steps.tolist())) > 1
    same_stops(found, expected, stable=False)


@each_kind
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_every_dtype_meets_its_tolerance(iterations, kind, dtype):
    tol = DTYPES[dtype]
    problem = PROBLEMS["contraction"](dtype)
    found = problem.solve(kind(tol=tol), on_cpu()).raise_if_failed()
    assert iterations and found.z.dtype == dtype
    assert found.residual.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
    g = (problem.f(found.z, problem.x) - found.z).double().norm(dim=1)
    size = problem.f(found.z, problem.x).double().norm(dim=1)
    assert bool((g <= 1.01 * tol * size + torch.finfo(dtype).eps * size).all())
    exact = PROBLEMS["contraction"](torch.float64).solve(ic.Anderson(tol=1e-12), None).z
    assert (found.z.double() - exact).norm() <= (40 * tol + 1e-12) * exact.norm()


@each_kind
def test_a_sample_has_the_bits_that_it_has_alone(iterations, kind):
    problem, solver = PROBLEMS["rates"](torch.float64), kind(tol=1e-9, max_steps=200)
    together = problem.solve(solver, on_cpu())
    assert len(set(together.steps.tolist())) > 2
    for row in range(len(problem.x)):
        alone = problem.sample(row).solve(solver, on_cpu())
        assert torch.equal(alone.z[0], together.z[row])
        assert alone.steps.item() == together.steps[row].item()


@each_kind
def test_a_nan_stays_in_its_sample(iterations, kind):
    problem, clean = PROBLEMS["nan"](torch.float64), PROBLEMS["contraction"](torch.float64)
    found, whole = (each.solve(kind(tol=1e-9), on_cpu()) for each in (problem, clean))
    others = found.status != ic.Status.NON_FINITE
    assert int((~others).sum()) == 1
    assert torch.equal(found.z[others], whole.z[others])


@each_kind
def test_a_trace_has_no_iterate_too_many(iterations, kind):
    problem = PROBLEMS["contraction"](torch.float64)
    found, expected = (
        ic.ImplicitLayer(
            ic.FixedPoint(problem.f), solver=kind(tol=1e-8), backend=backend
        ).solve(problem.x, torch.zeros_like(problem.x), trace=True)
        for backend in (on_cpu(), None)
    )  # fmt: skip
    assert isinstance(found, ic.Solution) and isinstance(expected, ic.Solution) and iterations
    residuals, others = known(found.trace), known(expected.trace)
    assert residuals.shape == others.shape
    assert torch.allclose(residuals, others, rtol=1e-3, atol=1e-12)


def test_a_cell_that_keeps_its_states_sees_each_as_it_was(iterations):
    kept, copies = [], []

    def f(z, x):
        kept.append(z)
        copies.append(z.clone())
        return torch.tanh(0.8 * z + x)

    x = torch.randn(3, 5, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        ic.fixed_point(f, torch.zeros(3, 5), x, solver=ic.Anderson(tol=1e-6), backend=on_cpu())
    assert iterations and len(kept) > 4
    assert all(torch.equal(z, copy) for z, copy in zip(kept, copies, strict=True))


def test_a_cell_that_mixes_samples_is_an_error(iterations):
    rates = torch.linspace(0.1, 0.9, 6, dtype=torch.float64)[:, None]
    x = torch.ones(6, 4, dtype=torch.float64)
    mixing = lambda z, x: rates * z + 0.1 * z.mean(0, keepdim=True) + x  # noqa: E731
    solver, backend = ic.Picard(tol=1e-3), on_cpu()
    with pytest.raises(ic.InputError, match="mixes|beside the others|coupled"), torch.no_grad():
        ic.fixed_point(mixing, torch.zeros_like(x), x, solver=solver, backend=backend)
    assert iterations


@pytest.mark.slow
@each_kind
@pytest.mark.parametrize("check", checks_for("root_solver"), ids=lambda check: check.name)
def test_the_solvers_keep_their_contract(monkeypatch, kind, check):
    """With the kernels wherever no backend is asked for."""
    monkeypatch.setattr("implicitcore.system.system.TORCH", on_cpu())
    check(kind())


@pytest.mark.parametrize(
    ("kind", "whole", "spans"),
    [(ic.Picard, 1, 4), (ic.Anderson, 1, 5), (ic.Broyden, 1, 4)],
)
def test_what_an_iteration_launches(kind, whole, spans):
    """The table of docs/benchmarks/launches.md."""
    for n, expected in ((17, whole), (WHOLE + 8, spans)):
        found = []
        for steps in (3, 7):
            backend, problem = on_cpu(), long(2, n, torch.float32).sample(1)
            problem.solve(kind(tol=0, max_steps=steps), backend)
            found.append((launches(backend), launcher_of(backend).looks))
        (few, looks), (many, more) = found
        assert many - few == 4 * expected
        assert more - looks == 4 / CupyIteration.LOOK_EVERY


@each_kind
def test_a_start_at_the_root_is_one_evaluation(kind):
    backend, problem = on_cpu(), PROBLEMS["at the root"](torch.float64)
    assert problem.solve(kind(tol=1e-6), backend).evaluations == 1
    assert (launches(backend), launcher_of(backend).looks) == (1, 1)


def test_an_iterate_of_another_shape_is_refused():
    z = torch.zeros(9, 18)
    numbers = {"tol": 1e-3, "floor": 0.0, "scale": "update", "rounding": 0.0, "min_steps": 1}
    rule = StopRule(**numbers, origin=None, divergence=1e8, trust=0.1, growth=2.0)  # pyright: ignore[reportArgumentType]
    iteration = on_cpu().root_iteration(PicardRule(1.0), rule, z)
    assert iteration is not None
    with pytest.raises(ic.InputError, match=r"shapes \[\(9, 18\), \(9, 17\)\], expected \(9, 18\)"):
        iteration.advance(z, z[:, 1:], None, last=False)
