"""The benchmark's own arithmetic, and one quick run of it."""

import json
from collections import Counter

import pytest
import torch
from benchmarks import root
from benchmarks.harness import PIECES, Counted
from benchmarks.problem import Problem, Reference
from benchmarks.root_problems import problems
from benchmarks.root_report import compact
from benchmarks.rows import Row
from benchmarks.timing import interleave

import implicitcore as ic

KEYS = "problem library method gradient seconds floor_seconds ratio_to_floor evaluations vjps residual_max gradient_error peak_bytes"


class Half(torch.nn.Module):
    def forward(self, z, x):
        return 0.5 * z + x


def test_quick_run(tmp_path):
    root.main(["--quick", "--threads", "1", "--output", str(tmp_path)])
    *rows, machine = json.loads((tmp_path / "root.json").read_text())
    assert {" ".join(row) for row in rows} == {KEYS}
    assert list(machine) == ["machine"]
    assert len({row["problem"] for row in rows}) == 5
    for row in rows:
        assert row["ratio_to_floor"] == pytest.approx(row["seconds"] / row["floor_seconds"])
        assert row["gradient_error"] < 0.1, row
    assert all(row["residual_max"] <= 1e-3 for row in rows if row["library"] == "implicitcore")
    before = (tmp_path / "root.md").read_text()
    root.main(["--report", "--output", str(tmp_path)])
    assert (tmp_path / "root.md").read_text() == before


@pytest.mark.parametrize("backward", [ic.Picard, ic.Anderson, ic.Broyden, ic.GMRES])
def test_counts_are_those_of_the_library(backward):
    problem = problems(quick=True)[0]
    counted = Counted(problem.f, len(problem.z0))
    solution = ic.fixed_point(counted, problem.z0, problem.x, gradient=ic.Implicit(backward(tol=1e-3)))
    problem.gradients(solution.z)
    assert counted.plain + counted.graphs == solution.evaluations
    assert counted.products == solution.backward.vjps + 1  # and the one that reaches the leaves


def test_a_part_of_the_batch_counts_as_a_part():
    counted = Counted(Half(), 4)
    for part in (4, 2, 1):
        counted(torch.zeros(part, 1), torch.zeros(part, 1))
    assert counted.plain == 1.75


def test_compact_is_held_against_what_the_samples_need():
    row = Row("many, tol 1e-3", "implicitcore", "picard, compact", "implicit picard", 1.0, 1.0, 1.0, 24.0, 9, 1e-4, 1e-4, 0)
    lines = "\n".join(compact([row], {"per_sample": {"many, tol 1e-3, implicitcore, picard, implicit picard": 20.0}}))
    assert "| many, tol 1e-3 | picard | 23 | 20 | 1.15, met |" in lines


def test_floor():
    counted = Counted(Half(), 1)
    counted.plain, counted.graphs, counted.products = 2, 3, 4
    assert counted.floor(dict(zip(PIECES, (1, 10, 100, 1000), strict=True))) == 2 + 30 + 300 + 1000


def test_reference_is_exact():
    x = torch.randn(5, 3).requires_grad_()
    problem = Problem("half", Half(), x, torch.zeros(5, 3), torch.randn(5, 3))
    reference = Reference.of(problem)
    assert reference.residual(2 * x.detach()) == 0
    assert reference.gradient_error([2 * problem.v]) < 1e-12
    assert reference.gradient_error([problem.v]) == pytest.approx(0.5)


def test_interleaving_times_each_work_in_each_repetition():
    calls = Counter()
    works = {name: lambda name=name: calls.update([name]) for name in "abc"}
    seconds = interleave(works, 5, seed=0, window=0)
    assert set(seconds) == set(works)
    assert len(set(calls.values())) == 1
