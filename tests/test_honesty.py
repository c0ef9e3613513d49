"""The honesty sweep in a reduced form, and that it finds what lies."""

import random
from collections import Counter
from dataclasses import dataclass, replace

import pytest
import torch
from honesty import gradients, roots, trajectories
from honesty.finding import Finding, Hang, bounded
from honesty.measure import measure
from honesty.problems import FAMILIES, Problem, problem
from honesty.program import main
from honesty.report import BEGIN, END
from honesty.solvers import ode_solver, parts
from honesty.tally import Row, Tally, merge

import implicitcore as ic
from implicitcore.extend import Options

SLOW = ("homotopy", "scipy-")
DTYPES = list(roots.TOLERANCES)


def findings(tally: Tally) -> list[Finding]:
    return [finding for row in tally.values() for finding in row.findings]


def texts(tally: Tally) -> str:
    return "\n".join(map(str, findings(tally)))


@pytest.mark.slow
@pytest.mark.parametrize("name", list(parts("root_solver")))
def test_no_root_solver_says_what_is_not_so(name):
    seeds = range(2) if name.startswith(SLOW) else range(6)
    total: Tally = {}
    for seed in seeds:
        merge(total, roots.sweep(seed, (name,)))
    assert not findings(total), texts(total)
    assert sum(row.samples for row in total.values()) > 10
    assert sum(row.refused for row in total.values()) < sum(row.calls for row in total.values())


def test_no_gradient_of_a_converged_sample_is_lost():
    total: Tally = {}
    for seed in range(8):
        merge(total, gradients.sweep(seed))
    assert not findings(total), texts(total)
    assert {name for _, name in total} == {*parts("gradient")} - {*gradients.TRAJECTORIES_ONLY}


def test_no_gradient_is_lost_beside_samples_with_nan():
    total = gradients.sweep(17)  # a mixture of easy, hard and NaN samples
    assert not findings(total), texts(total)


@pytest.mark.parametrize("name", ["tsit5", "adams", "rk4", "scipy-rk45", "torchdiffeq-dopri5"])
def test_no_trajectory_that_converged_is_wildly_wrong(name):
    total: Tally = {}
    for seed in range(1, 6):
        merge(total, trajectories.sweep(seed, (name,)))
    assert not findings(total), texts(total)


@dataclass(frozen=True, kw_only=True)
class Lying(Options, ic.RootSolver):
    """Changes the solution of an honest solver, as a stop test of its own would have judged it."""

    tol: float = 1e-4
    atol: float = 0.0
    max_steps: int = 30
    lie: str

    def solve(self, system, z0):
        found = ic.Picard(tol=self.tol, atol=self.atol, max_steps=self.max_steps).solve(system, z0)
        if self.lie == "error":
            raise KeyError("somewhere deep inside")
        if self.lie == "input":
            z0.add_(1)
        changes = {name: getattr(found, name) for name in ("z", "residual", "status", "steps")}
        changes |= told(self.lie, found)
        judged = found.judged
        assert judged is not None
        judged = judged._replace(z=changes["z"], residual=changes["residual"])
        return replace(found, **changes, judged=judged._replace(status=changes["status"]))


def told(lie: str, found: ic.Solution) -> dict[str, torch.Tensor]:
    """What the solver says in place of what it found."""
    stalled = int(ic.Status.STALLED)
    every = {
        "status": {"status": torch.zeros_like(found.status)},
        "modest": {"status": torch.full_like(found.status, stalled)},
        "residual": {"residual": found.residual * 0.5},
        "z": {"z": found.z + 1},
        "nan": {"z": torch.full_like(found.z, torch.nan)},
        "steps": {"steps": found.steps + 30},
    }
    return every.get(lie, {})


LIES = {
    "status": "converged above its tolerance",
    "modest": "converged and called otherwise",
    "residual": "another residual than is so",
    "z": "converged above its tolerance",
    "nan": "converged at a z that is not finite",
    "steps": "more steps than max_steps",
    "error": "bare error",
    "input": "changed input",
}


@pytest.mark.parametrize("lie", LIES)
def test_a_solver_that_lies_is_found(lie):
    def make(name: str, tol: float, atol: float, choose: random.Random) -> ic.RootSolver:
        del name, choose
        return Lying(tol=tol, atol=atol, lie=lie)

    total: Tally = {}
    for seed in range(12):
        merge(total, roots.sweep(seed, ("liar",), make))
    kinds = Counter(finding.kind for finding in findings(total))
    assert LIES[lie] in kinds, kinds


@dataclass(frozen=True, kw_only=True)
class Careless(Options, ic.ODESolver):
    """Takes one step of Euler's and says that it met a tolerance."""

    rtol: float = 1e-3

    def solve(self, system, z0, times, stop=None):
        velocity = system.velocity(times[0].expand(len(z0)), z0)
        line = torch.stack([z0 + (t - times[0]) * velocity for t in times])
        honest = ic.Tsit5().solve(system, z0, times, stop)
        return replace(honest, z=line, status=torch.zeros_like(honest.status))


def test_an_ode_solver_that_lies_is_found():
    row = Row()
    field = next(each for each in trajectories.FIELDS if each.name == "growth")
    z0 = torch.ones(2, 1, dtype=torch.float64)
    asked = trajectories.Asked(field, Careless(), z0, 5 * z0, 2.0)
    trajectories.integrate(asked, (1e-5, 1e-8), row, "")
    assert [finding.kind for finding in row.findings] == ["converged and wildly wrong"]
    honest = replace(asked, solver=ode_solver("tsit5", 1e-5, 1e-8))
    trajectories.integrate(honest, (1e-5, 1e-8), found := Row(), "")
    assert not found.findings
    assert 0 < found.worst < 1


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("family", FAMILIES, ids=lambda family: family.name)
def test_the_rounding_that_is_allowed_is_small(family, dtype):
    if family.real and dtype.is_complex:
        return
    seen = 0
    for seed in range(200):
        subject = problem(seed, dtype, batch=4)
        if subject.family is not family:
            continue
        seen += 1
        found = measure(subject, subject.z0)
        usual = found.start.isfinite() & (found.start > 0)
        share = found.rounding / (found.start + found.scale)
        assert bool((share[usual] <= 1e4 * torch.finfo(dtype).eps).all()), (seed, share)
    assert seen > 3


def test_a_problem_is_the_same_in_every_dtype():
    for seed in range(40):
        wide, narrow = problem(seed, torch.float64), problem(seed, torch.bfloat16)
        assert (wide.family, wide.call) == (narrow.family, narrow.call)
        if wide.family.name != "units":
            assert torch.equal(wide.z0.bfloat16(), narrow.z0)
    assert isinstance(problem(0, torch.float32).wide(), Problem)


def test_a_call_that_does_not_end_is_a_hang():
    with pytest.raises(Hang, match="no answer in 1 s"), bounded(1):
        while True:
            pass


def test_the_program_prints_its_table_and_writes_the_page(tmp_path, capsys):
    page = tmp_path / "page.md"
    page.write_text(f"before\n{BEGIN}\n{END}\nafter\n")
    options = ["--problems", "20", "--processes", "1", "--only", "roots"]
    options += ["--page", str(page)]
    assert main(options) == 0
    assert "0 findings" in capsys.readouterr().out
    text = page.read_text()
    assert text.startswith("before") and text.endswith("after\n")
    assert "| sweep | of |" in text


def test_the_program_fails_where_something_is_found(monkeypatch, capsys):
    found = {("roots", "liar"): Row(calls=1, findings=[Finding("lie", "seed 0", "it says so")])}
    monkeypatch.setattr("honesty.program.Task.run", lambda task: found)
    assert main(["--problems", "20", "--processes", "1", "--only", "roots"]) == 1
    assert "lie: seed 0: it says so" in capsys.readouterr().out
