"""The benchmarks' own arithmetic, and one quick run of each."""

import dataclasses
import json
import sys
import warnings
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from benchmarks import (
    checks,
    counting,
    curves,
    dispatch,
    gpu,
    gpu_launches,
    gpu_report,
    jax_peers,
    ode,
    ode_against,
    ode_cases,
    ode_contenders,
    ode_curves,
    ode_problems,
    ode_report,
    plain_rate,
    precision,
    program,
    root,
    root_cases,
    root_curves,
    root_report,
)
from benchmarks.counting import Counted
from benchmarks.harness import Settings, measure
from benchmarks.jax_worker.__main__ import Worker
from benchmarks.markdown import short
from benchmarks.problem import Contender, Outcome, Problem, Step
from benchmarks.root_problems import problems
from benchmarks.root_report import compact
from benchmarks.rows import Row, save
from benchmarks.timing import interleave

import implicitcore as ic

KEYS = (
    "problem library method gradient seconds floor_seconds ratio_to_floor evaluations vjps "
    "residual_max gradient_error peak_bytes"
)


class Half(torch.nn.Module):
    def forward(self, z, x):
        return 0.5 * z + x


def settings(**options):
    return Settings(repetitions=1, window=0.0, **options)


def check_quick_run(program, path, count, limit, *options):
    """One run, and the page written anew from it."""
    program.main(["--quick", "--threads", "1", "--output", str(path.parent), *options])
    *rows, machine = json.loads(path.read_text())
    assert {" ".join(row) for row in rows} == {KEYS}
    assert list(machine) == ["machine"]
    assert not machine["machine"]["left_out"]
    assert len({row["problem"] for row in rows}) == count
    for row in rows:
        assert row["ratio_to_floor"] == pytest.approx(row["seconds"] / row["floor_seconds"])
        assert row["gradient_error"] < 0.1, row
    assert all(
        row["residual_max"] <= limit
        for row in rows
        if row["library"] == "implicitcore" and "exact" not in row["method"]
    )
    before = path.with_suffix(".md").read_text()
    program.main(["--report", "--output", str(path.parent)])
    assert path.with_suffix(".md").read_text() == before
    return before


@pytest.mark.slow
def test_quick_root_run(tmp_path):
    page = check_quick_run(root, tmp_path / "root.json", 8, 1e-3)
    assert page.count("| vjps | residual |") == 8
    for layer in ("DEQ", "ContinuousDEQ", "SkipDEQ", "SkipRegDEQ"):
        assert f" | {layer} | " in page


@pytest.mark.slow
def test_quick_dispatch_run(tmp_path):
    path = tmp_path / "dispatch.json"
    dispatch.main(["--quick", "--output", str(tmp_path)])
    *rows, _ = json.loads(path.read_text())
    assert {" ".join(row) for row in rows} == {KEYS}
    assert len(rows) == 3 * 2 * 4
    by_hand = {
        (row["problem"], row["method"]): row for row in rows if row["gradient"] == "solver by hand"
    }
    for row in rows:
        other = by_hand[row["problem"], row["method"]]
        assert row["ratio_to_floor"] == pytest.approx(row["seconds"] / other["seconds"])
        if row["gradient"] != "loop by hand":
            assert (row["evaluations"], row["vjps"]) == (other["evaluations"], other["vjps"])
        assert row["residual_max"] <= 1e-3
        assert (row["gradient_error"] is None) == (row["vjps"] == 0)
        assert (row["gradient_error"] or 0.0) < 2e-3
    before = path.with_suffix(".md").read_text()
    dispatch.main(["--report", "--output", str(tmp_path)])
    assert path.with_suffix(".md").read_text() == before


@pytest.mark.slow
def test_quick_run_of_the_checks(capsys):
    before = [getattr(owner, name) for owner, name, _ in checks.CHECKS]
    checks.main(["--quick"])
    assert [getattr(owner, name) for owner, name, _ in checks.CHECKS] == before
    assert capsys.readouterr().out.count("forward and backward") == 4


def test_quick_run_of_the_plain_rates(capsys):
    plain_rate.main(["--quick"])
    rows = [line.split(" | ") for line in capsys.readouterr().out.splitlines()[2:] if line]
    assert len(rows) == len(plain_rate.RATES)
    assert all(0.9 < float(row[2]) < 1.2 for row in rows)


def test_without_the_checks_a_solve_is_the_same():
    [problem, *_] = problems(quick=True)
    with_checks, without = checks.works(problem, 1e-4, checks.BOTH).values()
    found = []
    checks.step, original = lambda *about: found.append(original(*about)), checks.step
    try:
        with_checks()
        without()
    finally:
        checks.step = original
    assert torch.equal(*found)


@pytest.mark.slow
def test_quick_gpu_run(tmp_path):
    page = check_quick_run(gpu, tmp_path / "gpu.json", 8, 1e-3, "--device", "cpu")
    assert page.count("| vjps | residual |") == 8
    assert "Device: cpu. Measured on " in page
    assert "no GPU machine" not in page


def test_launches_are_counted_as_operators_on_a_cpu(tmp_path):
    gpu_launches.main(["--device", "cpu", "--only", "torch", "--output", str(tmp_path)])
    *rows, machine = json.loads((tmp_path / "gpu_launches.json").read_text())
    assert machine["machine"]["device"] == "cpu"
    found = {row["method"]: row for row in rows}
    assert list(found) == list(gpu_launches.METHODS)
    picard = found["Picard"]  # the cell, what test_fixed_cost counts too, and z + g of a relaxation
    assert picard["names"]["aten::addmm"] == picard["of_f"]["launches"] == 1
    assert picard["all"]["launches"] == sum(picard["names"].values()) == 7
    assert found["Tsit5, a step"]["evaluations"] == found["Tsit5, a step"]["of_f"]["launches"] == 6
    assert found["GMRES, a product"]["all"]["waits"] == 1
    page = (tmp_path / "gpu_launches.md").read_text()
    assert "| Picard | torch | 7.00 | 1.00 |" in page
    emulated = gpu_launches.emulated((gpu_launches.DOCS / "launches.md").read_text())
    assert all(method in emulated for method in gpu_launches.METHODS)


def test_what_the_profiler_sees_of_a_device_is_told_apart():
    names = Counter(
        {
            (False, "cudaLaunchKernel"): 5,
            (False, "cudaLaunchKernelExC"): 1,
            (False, "cuLaunchKernel"): 2,
            (False, "cudaGraphLaunch"): 1,
            (False, "cudaMemcpyAsync"): 3,
            (False, "cudaStreamSynchronize"): 2,
            (False, "cudaEventSynchronize"): 1,
            (False, "cudaEventRecord"): 9,
            (False, "aten::add"): 7,
            (True, "void at::native::vectorized_elementwise_kernel"): 11,
            (True, "picard"): 4,
            (True, "Memcpy DtoH (Device -> Pinned)"): 2,
            (True, "Memset (Device)"): 1,
        }
    )
    assert gpu_launches.counted(names, "cuda") == gpu_launches.Seen(9, 15, 3, 3)


def test_without_a_device_nothing_is_counted(monkeypatch, tmp_path):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(SystemExit, match="nothing was counted: no cuda device"):
        gpu_launches.main(["--output", str(tmp_path)])
    assert not list(tmp_path.iterdir())


def test_a_page_without_a_gpu_says_so_and_replaces_no_figures(tmp_path, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    gpu.main(["--output", str(tmp_path)])
    page = (tmp_path / "gpu.md").read_text()
    assert "**Nothing is measured yet: no GPU machine was at hand.**" in page
    save(
        tmp_path / "gpu.json",
        [row("MLP", "implicitcore", "anderson, torch", "implicit anderson")],
        {},
    )
    with pytest.raises(SystemExit, match="nothing was measured: no cuda device; .* stays as it is"):
        gpu.main(["--output", str(tmp_path)])


def test_the_gpu_page_compares_with_the_torch_backend():
    rows = [
        row("MLP", "implicitcore", "anderson, torch", "implicit anderson", seconds=2.0),
        row(
            "MLP",
            "implicitcore",
            "anderson, torch, compiled cell",
            "implicit anderson",
            seconds=1.0,
        ),
        row("MLP", "torchdeq", "anderson, torch", "implicit anderson", seconds=8.0),
    ]
    lines = list(gpu_report._against_torch(rows))
    assert (
        "| problem | method | ms | implicitcore, torch, compiled cell | torchdeq, torch |" in lines
    )
    assert "| MLP, tol 1e-5 | anderson | 2000.00 | 2.00 x | 0.25 x |" in lines


@pytest.mark.slow
def test_quick_ode_run(tmp_path):
    page = check_quick_run(ode, tmp_path / "ode.json", 4, 1e-2)
    assert page.count("| vjps | final state error |") == 3
    assert page.count("| vjps | residual |") == 1


@pytest.mark.parametrize("backward", [ic.Picard, ic.Anderson, ic.Broyden, ic.GMRES])
def test_counts_are_those_of_the_library(backward):
    problem = problems(quick=True)[0]
    counted = Counted(problem.f, len(problem.z0))
    solution = ic.fixed_point(
        counted, problem.z0, problem.x, gradient=ic.Implicit(backward(tol=1e-3))
    )
    problem.gradients(solution.z)
    assert counted.plain + counted.graphs == solution.evaluations
    assert counted.products == solution.backward.vjps + 1  # and the one that reaches the leaves


def test_a_part_of_the_batch_counts_as_a_part():
    counted = Counted(Half(), 4)
    for part in (4, 2, 1):
        counted(torch.zeros(part, 1), torch.zeros(part, 1))
    assert counted.plain == 1.75


def test_compact_is_held_against_what_the_samples_need():
    row = Row(
        "many, tol 1e-3",
        "implicitcore",
        "picard, compact",
        "implicit picard",
        1.0,
        1.0,
        1.0,
        24.0,
        9,
        1e-4,
        1e-4,
        0,
    )
    lines = "\n".join(
        compact(
            [row], {"per_sample": {"many, tol 1e-3, implicitcore, picard, implicit picard": 20.0}}
        )
    )
    assert "| many, tol 1e-3 | picard | 23 | 20 | 1.15, met |" in lines


def test_floor():
    counted = Counted(Half(), 1)
    counted.plain, counted.graphs, counted.products, counted.differentiated = 2, 3, 5, 4
    seconds: dict[str, float] = dict(zip(counting.PIECES, (1, 10, 100, 1000, 10000), strict=True))
    equilibrium, trajectory = counting.equilibrium(counted), counting.trajectory(counted)
    assert counting.floor(equilibrium, seconds) == 2 + 30 + 400 + 1000
    assert counting.floor(trajectory, seconds) == 2 + 30 + 40000
    assert (counting.evaluations(equilibrium), counting.products(equilibrium)) == (5, 5)
    assert (counting.evaluations(trajectory), counting.products(trajectory)) == (5, 4)


def test_reference_is_exact():
    x = torch.randn(5, 3).requires_grad_()
    problem = Problem("half", Half(), x, torch.zeros(5, 3), torch.randn(5, 3))
    reference = problem.reference
    assert reference.residual(2 * x.detach()) == 0
    assert reference.gradient_error([2 * problem.v]) < 1e-12
    assert reference.gradient_error([problem.v]) == pytest.approx(0.5)


def test_interleaving_times_each_work_in_each_repetition():
    calls = Counter()
    works = {name: lambda name=name: calls.update([name]) for name in "abc"}
    seconds = interleave(works, 5, seed=0, window=0)
    assert set(seconds) == set(works)
    assert len(set(calls.values())) == 1


@pytest.mark.parametrize("gradient", [ic.Unrolled(), ic.Adjoint()])
def test_an_evaluation_of_a_trajectory_is_differentiated_once(gradient):
    problem = ode_problems.problems(quick=True)[0]
    counted = Counted(problem.f, len(problem.z0))
    times = torch.tensor([0.0, 1.0])
    solution = ic.integrate(
        lambda t, z, x: counted(z, x), problem.z0, times=times, gradient=gradient
    )
    problem.gradients(solution.z[-1])
    assert counted.plain + counted.graphs == solution.evaluations + solution.backward.evaluations
    assert 0 < counted.differentiated <= counted.graphs
    assert counted.products == (solution.backward.vjps or counted.differentiated)


def test_the_reference_of_a_trajectory_is_exact():
    linear = torch.nn.Linear(3, 3, bias=False).double()
    field = Autonomous(linear)
    z0, v = (
        torch.randn(2, 3, dtype=torch.float64).requires_grad_(),
        torch.randn(2, 3, dtype=torch.float64),
    )
    problem = ode_problems.Trajectory("linear", field, (), z0, v)
    weight = linear.weight.detach().clone().requires_grad_()
    z = z0 @ torch.matrix_exp(weight.T)
    assert problem.reference.residual(z.detach()) < 1e-9
    assert problem.reference.gradient_error(torch.autograd.grad(z, [weight, z0], v)) < 1e-8


class Autonomous(torch.nn.Module):
    def __init__(self, f):
        super().__init__()
        self.f = f

    def forward(self, z, x):
        return self.f(z)


@pytest.mark.parametrize("gradient", ["unrolled", "adjoint"])
def test_as_exact_is_no_less_exact(gradient):
    pytest.importorskip("torchdiffeq")
    problem, tol = ode_problems.problems(quick=True)[0], 1e-4
    found = {
        str(contender): contender for contender in ode_contenders.contenders(problem, quick=True)
    }
    errors = {
        name: problem.reference.residual(
            found[f"{name}, {gradient}"].prepare(problem, tol)().z.detach()
        )
        for name in (
            "implicitcore, dopri5",
            "implicitcore, dopri5, as exact",
            "torchdiffeq, dopri5",
        )
    }
    assert errors["implicitcore, dopri5, as exact"] <= errors["torchdiffeq, dopri5"]


def halving(library, prepare, **options):
    return Contender(library, "halves", "by hand", prepare, **options)


def exact_step(problem, tol, waste=0):
    def step():
        for _ in range(waste):
            problem.f(problem.z0, problem.x)
        z = problem.f(2 * problem.x, problem.x)
        return Outcome(z, [2 * problem.v])

    return step


def small_problem():
    return Problem(
        "half",
        Half(),
        torch.randn(5, 3).requires_grad_(),
        torch.zeros(5, 3),
        torch.randn(5, 3),
        tolerances=(1e-3,),
    )


def test_counts_may_come_from_another_form_of_the_step():
    wasteful = halving(
        "other", exact_step, counts=lambda problem, tol: exact_step(problem, tol, waste=3)
    )
    row = measure(small_problem(), [wasteful], settings()).rows[0]
    assert row.evaluations == 4
    assert (row.residual_max, row.gradient_error) == pytest.approx((0, 0), abs=1e-6)


def test_a_failure_of_another_library_is_noted_and_ours_is_raised():
    def refuse(problem, tol):
        raise ValueError("no")

    measured = measure(
        small_problem(), [halving("other", refuse), halving("another", exact_step)], settings()
    )
    assert measured.left_out == {"half, tol 1e-3, other, halves, by hand": "ValueError: no"}
    assert [row.library for row in measured.rows] == ["another"]
    with pytest.raises(ValueError, match="no"):
        measure(small_problem(), [halving("implicitcore", refuse)], settings())


def test_warnings_are_noted_by_row():
    def warn(problem, tol):
        def step():
            warnings.warn("inexact", ic.ConvergenceWarning, stacklevel=2)
            return exact_step(problem, tol)()

        return step

    with warnings.catch_warnings(action="ignore"):
        measured = measure(small_problem(), [halving("implicitcore", warn)], settings())
    assert measured.warned == {"half, tol 1e-3, implicitcore, halves, by hand": ["inexact"]}


def row(problem, library, method, gradient, **values):
    known = {
        "seconds": 1.0,
        "floor_seconds": 1.0,
        "ratio_to_floor": 1.0,
        "evaluations": 10,
        "vjps": 9,
    }
    found = {"residual_max": 1e-4, "gradient_error": 1e-4, "peak_bytes": 0}
    return Row(f"{problem}, tol 1e-5", library, method, gradient, **{**known, **found, **values})


def ode_page(rows, warned):
    about = {
        "versions": {},
        "processor": "one",
        "threads": 1,
        "cores": 1,
        "python": "3",
        "repetitions": 9,
    }
    return ode_report.page(
        rows, {**about, "pieces": {}, "left_out": {}, "warned": warned}, "nothing"
    )


def test_targets_of_trajectories():
    mlp, heterogeneous = ode_problems.MLP, ode_problems.HETEROGENEOUS
    warned = row(
        heterogeneous, "implicitcore", "dopri5", "adjoint", evaluations=30, gradient_error=0.1
    )
    rows = [
        row(mlp, "implicitcore", "dopri5", "unrolled", ratio_to_floor=1.8),
        row(mlp, "torchdiffeq", "dopri5", "unrolled", seconds=2.0),
        warned,
        row(heterogeneous, "implicitcore", "tsit5", "adjoint", evaluations=10, gradient_error=None),
        row(heterogeneous, "torchdiffeq", "dopri5", "adjoint", evaluations=20),
    ]
    page = ode_page(rows, {f"{warned.problem}, implicitcore, dopri5, adjoint": ["drifted"]})
    assert f"| {mlp} | unrolled | 1.5 | 1.80, missed by 20 % | not measured |" in page
    assert f"| {mlp} | unrolled | same tolerance | 2.00 x | 1 x | met |" in page
    assert (
        f"| {heterogeneous} | adjoint | same tolerance | 1.00 x | 1.5 x | missed by 1.5 x |" in page
    )
    assert "| dopri5 | adjoint | 1.0e-1 | met: warned | 30 | 20 | missed by 50 % |" in page
    assert "| tsit5 | adjoint | not finite | missed, no warning | 10 | 20 | met |" in page
    assert "drifted" in page


def test_targets_of_the_steady_state():
    steady = ode_problems.STEADY
    rows = [
        row(
            steady,
            "implicitcore",
            "steady state, adams",
            "implicit gmres",
            evaluations=30,
            gradient_error=2e-3,
        ),
        row(steady, "torchdiffeq", "dopri5 to T = 20", "adjoint", seconds=4.0),
    ]
    page = ode_page(rows, {})
    assert (
        "| adams | 25 | 30, missed by 20 % | 1.0e-4 | 2.0e-3, missed by 100 % | 4.0 x, "
        "missed by 2 x |" in page
    )
    assert "| tsit5 | 60 | not measured |" in page


def test_a_lower_limit():
    assert short(2.0, 1.5) == "met"
    assert short(1.0, 1.5) == "missed by 1.5 x"


@pytest.mark.slow
@pytest.mark.skipif(jax_peers.python() is None, reason="needs make bench-jax")
@pytest.mark.parametrize(
    ("problem", "contender"),
    [
        (problems(quick=True)[4], jax_peers.equilibria()[1:2]),
        (ode_problems.problems(quick=True)[2], jax_peers.trajectories(counting.trajectory)[1:2]),
    ],
    ids=["equilibrium", "trajectory"],
)
def test_contenders_of_jax(problem, contender):
    try:
        measured = measure(problem, contender, settings())
    finally:
        jax_peers.close()
    assert not measured.left_out
    for row in measured.rows:
        assert row.gradient_error < 10 * float(row.problem.rsplit(" ", 1)[1]) ** 0.5
        assert row.evaluations > row.vjps > 5
        assert row.peak_bytes > 0
        assert row.seconds > 0
    assert all(seconds > 0 for seconds in measured.compile_seconds.values())
    assert len(measured.compile_seconds) == len(measured.rows)


def test_without_their_environment_there_are_no_contenders_of_jax(tmp_path, monkeypatch):
    monkeypatch.setattr(jax_peers, "ENVIRONMENT", tmp_path)
    assert not jax_peers.equilibria() + jax_peers.trajectories(counting.trajectory)
    assert jax_peers.versions() == {}
    assert list(jax_peers.said([])) == [jax_peers.ABSENT, ""]


def test_the_process_of_jax_is_asked_for_calls_and_tells_what_failed(tmp_path, monkeypatch):
    package = tmp_path / "benchmarks" / "jax_worker"
    package.mkdir(parents=True)
    package.joinpath("__main__.py").write_text(ECHO)
    monkeypatch.setattr(jax_peers, "__file__", str(package.parent / "jax_peers.py"))
    process = jax_peers.Process(Path(sys.executable))
    try:
        assert process.ask(do="seconds", calls=3) == {"do": "seconds", "calls": 3}
        with pytest.raises(RuntimeError, match="^ValueError: no$"):
            process.ask(error="ValueError: no")
        with pytest.raises(RuntimeError, match="ended with 0"):
            process.ask(end=True)
    finally:
        process.close()


ECHO = """
import json, sys
for line in sys.stdin:
    if "end" in line: break
    print(line, end="", flush=True)
"""


def test_the_worker_finds_the_case_of_a_request():
    class Case:
        def seconds(self, calls):
            return {"seconds": calls / 2}

    worker: Any = Worker()
    worker.cases = [None, Case()]
    assert worker.answer({"do": "seconds", "case": 1, "calls": 3}) == {"seconds": 1.5}


def test_the_tensors_of_a_problem_go_out_and_come_back_in_the_order_of_the_leaves(tmp_path):
    problem, path = problems(quick=True)[4], str(tmp_path / "tensors.npz")
    assert jax_peers._save(path, problem, problem.f) == [0]  # the rates
    with np.load(path) as data:
        sent = dict(data)
    assert set(sent) == {
        "parameter:linear.weight",
        "parameter:linear.bias",
        "x:0",
        "x:1",
        "z0",
        "v",
    }
    np.savez(path, z=sent["z0"], **sent | {"z0": sent["z0"] + 1})
    gradients = jax_peers._outcome(path, problem, problem.f).gradients
    assert all(torch.equal(a, b) for a, b in zip(gradients, problem.leaves, strict=True))


def test_a_step_elsewhere_is_timed_there_and_says_what_it_took():
    step = Step(
        lambda: Outcome(2 * small_problem().x, [torch.ones(5, 3)]),
        compile_seconds=7.0,
        peak_bytes=64,
        seconds=lambda calls: 0.25,
    )
    measured = measure(
        small_problem(),
        [
            halving(
                "other",
                lambda problem, tol: step,
                spent=lambda counted: dict.fromkeys((counting.F, counting.GRAPH), 2.0),
            )
        ],
        settings(),
    )
    [found] = measured.rows
    assert (found.seconds, found.peak_bytes, found.evaluations) == (0.25, 64, 4.0)
    assert measured.compile_seconds == {"half, tol 1e-3, other, halves, by hand": 7.0}


def saved(*rows, threads=2, **notes):
    about = {"processor": "one", "threads": threads, "device": "cpu", "repetitions": 9}
    about |= {"versions": {}} | {note: {} for note in program.NOTES}
    return list(rows), about | notes


def test_merging_replaces_the_problems_that_were_measured_anew():
    kept, old, new = (
        row(name, "a", "b", "c", seconds=s) for name, s in zip("xyy", (1, 2, 3), strict=True)
    )
    pieces = {"pieces": {"x": 1, "y": 2}, "warned": {"y, tol 1e-5, a, b, c": ["old"]}}
    rows, about = program.merged(
        saved(old, kept, **pieces), saved(new, pieces={"y": 3}, left_out={"y, tol 1e-5, d": "no"})
    )
    assert rows == [new, kept]
    assert about["pieces"] == {"x": 1, "y": 3}
    assert about["warned"] == {}
    assert about["left_out"] == {"y, tol 1e-5, d": "no"}
    with pytest.raises(SystemExit, match="not merged: threads was 1, and is 2"):
        program.merged(saved(old, threads=1), saved(new))


def test_compiled_rows_beside_eager_and_jax():
    rows = [
        row("MLP", "implicitcore", "picard", "implicit picard", seconds=2.0),
        row("MLP", "implicitcore", "picard, compiled", "implicit picard", ratio_to_floor=0.8),
        row("MLP", "jax", "picard", "implicit picard", seconds=0.5),
    ]
    lines = "\n".join(root_report._compiled(rows))
    assert "| MLP, tol 1e-5 | picard | 0.80, met | 0.50 | 2.00, missed by 33 % |" in lines
    assert "Rows of jax are one jitted function" in lines


@pytest.mark.slow
@pytest.mark.parametrize("part", [root_curves, ode_curves, precision])
def test_quick_runs_of_the_curves(part, tmp_path):
    name = part.CURVES.name
    part.main(["--quick", "--threads", "1", "--output", str(tmp_path)])
    points, about = curves.load(tmp_path / f"{name}.json")
    assert {point.sweep for point in points} == set(part.CURVES.sweeps)
    assert all(value > 0 for point in points for value in point.values.values())
    assert about["threads"] == 1
    assert (tmp_path / f"{name}.png").stat().st_size < 60_000
    one = next(iter(part.CURVES.sweeps))
    part.main(["--quick", "--threads", "1", "--output", str(tmp_path), "--only", one])
    again, _ = curves.load(tmp_path / f"{name}.json")
    kept = [point for point in points if one not in point.sweep]
    assert [point for point in again if one not in point.sweep] == kept
    assert len(again) == len(points)


def test_a_curve_ends_before_a_call_that_is_too_slow(monkeypatch):
    calls = []

    def slow():
        calls.append(1)
        return 1

    monkeypatch.setattr(curves, "LONGEST", -1.0)
    timing = curves.Timing(quick=False, repetitions=1)
    assert timing.first("n", "slow", slow) is None
    assert len(calls) == 2  # the first may import or compile
    assert timing.first("n", "slow", slow) is None
    assert len(calls) == 2
    monkeypatch.setattr(curves, "LONGEST", 60.0)
    assert timing.first("n", "quick", slow) == 1
    assert timing.first("batch", "slow", slow) == 1
    assert set(timing({"a": slow})) == {"a"}


def test_a_quick_run_of_curves_replaces_no_measurements(capsys):
    with pytest.raises(SystemExit):
        root_curves.main(["--quick"])
    assert "--quick wants --output" in capsys.readouterr().err


def test_every_curve_has_a_style_of_its_own():
    cell, z0 = root_curves.Cell(2, 3), torch.zeros(2, 3)
    names = [list(root_curves.solves(cell))]
    task = ode_curves.Task(2, 3)
    field = ode_curves.Field(ode_problems.perceptron(3, 4, 1.0))
    names.append(list(ode_curves.integrations(task, field, z0)))
    of = [root_curves.style, ode_curves.STYLES.__getitem__]
    for task in precision.tasks().values():
        names.append(list(precision.contenders(task, precision.Counted(task))))
        of.append(precision.style)
    for found, style in zip(names, of, strict=True):
        assert len({style(name) for name in found}) == len(found)


@pytest.mark.parametrize("name", [name for name in precision.tasks() if name != "Robertson"])
def test_works_against_precision_end_in_the_same_state(name):
    task = precision.tasks()[name]
    task = precision.Task(task.v, task.z0[:2], 0.5)
    v, exact = precision.Counted(task), precision.reference(task)
    for curve, solve in precision.contenders(task, v).items():
        v.evaluations = 0.0
        error = ((solve(1e-9) - exact).norm() / exact.norm()).item()
        # torchdiffeq interpolates the last state, dopri8's to a few digits.
        assert error < (1e-3 if curve == "torchdiffeq dopri8" else 1e-7), curve
        assert v.evaluations > 5


@pytest.mark.slow
@pytest.mark.skipif(jax_peers.python() is None, reason="needs make bench-jax")
def test_diffrax_ends_in_the_same_state():
    try:
        for task in precision.tasks().values():
            task = dataclasses.replace(task, z0=task.z0[:2], end=0.5)
            exact = precision.reference(task)
            theirs = {
                name: solve
                for name, solve in precision.contenders(task, precision.Counted(task)).items()
                if isinstance(solve, jax_peers.LastState)
            }
            assert len(theirs) == (1 if task.stiff else 3)
            for name, solve in theirs.items():
                assert ((solve(1e-9) - exact).norm() / exact.norm()).item() < 1e-7, name
                assert solve.at(1e-9, 1e-9).seconds(1) > 0
    finally:
        jax_peers.close()


def test_an_iteration_of_the_curves_is_an_evaluation():
    cell = root_curves.Cell(2, 5)
    for name, solve in root_curves.solves(cell).items():
        cell.evaluations = 0
        with torch.no_grad(), warnings.catch_warnings(action="ignore"):
            solve()
        assert abs(cell.evaluations - root_curves.ITERATIONS) <= 1, name


def test_pictures_stand_on_a_page_where_they_lie_beside_it(tmp_path):
    captions = {"first": "One.", "second": "Two."}
    assert program.pictures(tmp_path, captions) == ""
    (tmp_path / "second.png").touch()
    assert program.pictures(tmp_path, captions) == (
        "\n## Curves\n\nTwo.\n\n![second](second.png)\n"
    )


@pytest.mark.slow
def test_quick_run_of_the_cases(tmp_path):
    ode_cases.main(["--quick", "--threads", "1", "--output", str(tmp_path)])
    points, _ = curves.load(tmp_path / "ode_cases.json")
    assert {point.sweep for point in points} == set(ode_cases.CASES)
    for point in points:
        assert 0 <= point.values["error"] < 0.1, point
        assert point.values.get("evaluations", 11) > 10
        assert ("evaluations" in point.values) == ("diffrax" not in point.curve), point
    text = program.cases(tmp_path / "ode_cases.json")
    assert text.count("| ms | evaluations | error |") == len(ode_cases.CASES)


def test_quick_run_of_the_fixed_cost(tmp_path):
    root_cases.main(["--quick", "--output", str(tmp_path)])
    points, about = curves.load(tmp_path / "root_cases.json")
    assert about["threads"] == 1
    forward, both = (
        {point.curve: point.values for point in points if point.sweep == name}
        for name in root_cases.NAMES.values()
    )
    assert list(forward) == list(both) == ["f", *root_cases.makers(quick=True)]
    for name in (f"{method}, torch" for method in root_cases.METHODS):
        assert forward[name]["evaluations"] == 1
        assert forward[name]["error"] < 1e-6
        assert both[name]["evaluations"] == 5  # one with a graph, two products, the parameters'
        assert both[name]["error"] < 1e-3
        assert both[name]["f"] == pytest.approx(
            both[name]["microseconds"] / both["f"]["microseconds"], rel=1e-3
        )
    text = program.cases(tmp_path / "root_cases.json")
    assert text.count("| us | x f | at most | evaluations | error |") == 2
    assert "at most 90 us where f takes 9:" in text and "| 10.0, " in text


def test_output_times_of_the_cases_cost_no_evaluations_and_errors_are_small():
    timing = curves.Timing(quick=True, repetitions=1)
    few, many = (
        {point.curve: point.values for point in ode_cases.output_times(k, "", timing)}
        for k in (2, 100)
    )
    for name in ("dopri5", "tsit5"):
        assert few[name]["evaluations"] == many[name]["evaluations"]
        assert many[name]["error"] < 0.02


def test_without_cases_there_is_no_section(tmp_path):
    assert program.cases(tmp_path / "ode_cases.json") == ""


def test_equal_steps_of_the_cases_are_those_of_the_loop_by_hand():
    timing = curves.Timing(quick=True, repetitions=1)
    found = {point.curve: point.values for point in ode_cases.equal_steps(1, 2, "", timing)}
    for name in ("euler", "rk4"):
        hand = found[f"loop by hand, {name}"]
        assert found[name]["evaluations"] == hand["evaluations"]
        assert found[name]["error"] == pytest.approx(hand["error"], rel=1e-2, abs=1e-6)


def test_peaks_are_told_in_states():
    rows = [
        row("conv, batch 32", "implicitcore", "picard", "implicit picard", peak_bytes=1000),
        row("conv, batch 32", "torchdeq", "picard", "implicit picard", peak_bytes=2000),
        row("MLP", "implicitcore", "picard", "implicit picard", peak_bytes=1000),
        row("conv, batch 32", "implicitcore", "picard", "implicit gmres", peak_bytes=1000),
    ]
    lines = list(root_report.memory(rows, {"conv, batch 32": 100}))
    assert [line for line in lines if line.startswith("| 1e-5")] == [
        "| 1e-5 | implicitcore | picard | 8 | 10.0, missed by 25 % |",
        "| 1e-5 | torchdeq | picard | 8 | 20.0 |",
    ]
    assert "Not measured." in list(root_report.memory(rows, {}))
    assert measure(small_problem(), [], settings()).state_bytes == {"half": 60}


def test_two_resolutions_contract_and_exchange():
    [problem] = [problem for problem in problems() if "two" in problem.name]
    with torch.no_grad():
        change = torch.randn_like(problem.z0)
        moved = problem.f(problem.z0 + change, problem.x) - problem.f(problem.z0, problem.x)
        assert (moved.norm(dim=1) <= 0.8 * change.norm(dim=1)).all()
        fine = 32 * 16 * 16
        change[:, fine:] = 0
        coarse = problem.f(change, problem.x) - problem.f(problem.z0, problem.x)
        assert (coarse[:, fine:].norm(dim=1) > 1e-2).all()
    assert len(problem.inputs) == 5


def test_the_best_trajectories_and_compiled_ones_beside_eager():
    mlp, steady = ode_problems.MLP, ode_problems.STEADY
    exact = {"gradient_error": 1e-6}
    rows = [
        row(mlp, "implicitcore", "dopri5, as exact", "unrolled", seconds=1.0),
        row(mlp, "implicitcore", "tsit5, as exact, cpp", "unrolled", seconds=0.4),
        row(
            mlp,
            "implicitcore",
            "tsit5, as exact, compiled",
            "unrolled",
            seconds=0.1,
            gradient_error=0.1,
        ),
        row(mlp, "implicitcore", "tsit5", "unrolled", seconds=0.2, **exact),
        row(mlp, "implicitcore", "tsit5, compiled", "unrolled", seconds=0.3, **exact),
        row(mlp, "implicitcore", "tsit5", "checkpointed", seconds=0.4, **exact),
        row(mlp, "implicitcore", "tsit5, compiled", "checkpointed", seconds=0.3, **exact),
        row(mlp, "implicitcore", "dopri5", "checkpointed", seconds=0.1, gradient_error=1e-4),
        row(mlp, "torchdiffeq", "dopri5", "unrolled", seconds=0.6),
        row(mlp, "torchdiffeq", "dopri5", "adjoint", seconds=1.2),
        row(steady, "implicitcore", "steady state, adams, cpp", "implicit gmres", seconds=1.0),
        row(
            steady,
            "implicitcore",
            "steady state, adams, compiled, cpp",
            "implicit gmres",
            seconds=0.5,
        ),
    ]
    page = ode_page(rows, {})
    cpp = "tsit5, as exact, cpp, unrolled"
    assert f"| {mlp} | unrolled | {cpp} | 1.50 x | 2 x | missed by 1.33 x |" in page
    assert f"| {mlp} | adjoint | tsit5, compiled, checkpointed | 4.00 x | 2 x | met |" in page
    beside = dict(line.rsplit(" | ", 1) for line in ode_against.compiled(rows) if "tol" in line)
    assert beside == {
        f"| {mlp}, tol 1e-5 | tsit5 | unrolled | 1.00 | 1.0e-6, 1.0e-6": "1.50, missed by 50 % |",
        f"| {mlp}, tol 1e-5 | tsit5 | checkpointed | 1.00 | 1.0e-6, 1.0e-6": "0.75, met |",
        f"| {steady}, tol 1e-5 | steady state, adams, cpp | implicit gmres | 1.00 "
        "| 1.0e-4, 1.0e-4": "0.50, met |",
    }
    assert "| adams, compiled, cpp | 25 |" in page
