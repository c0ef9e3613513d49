from collections.abc import Callable

import pytest
from click.testing import Result
from support.sites import Site, registers

from implicitcore.cli.check import nested
from implicitcore.testing import checks_for

Run = Callable[..., Result]

WRONG = """
from dataclasses import dataclass
from implicitcore import RootSolver, Anderson
from implicitcore.extend import Options

@dataclass(frozen=True, kw_only=True)
class Wrong(Options, RootSolver):
    off: float = 0.0

    def solve(self, system, z0):
        solution = Anderson(tol=1e-9).solve(system, z0)
        object.__setattr__(solution, "z", solution.z + self.off)
        return solution
"""


def rows(result: Result) -> dict[str, list[str]]:
    return {
        line.split()[0]: line.split(maxsplit=2)[1:]
        for line in result.stdout.splitlines()[1:]
        if line
    }


@pytest.mark.parametrize(
    ("kind", "name", "settings"),
    [
        ("root_solver", "anderson", ["tol=1e-6", "depth=3"]),
        ("gradient", "implicit", ["solver.name=gmres", "solver.tol=1e-6"]),
        ("backend", "torch", []),
        ("dynamics", "fixed_point", []),
        ("start", "one_step", []),
        ("start", "learned", ["channels=4", "init=normal"]),
        ("cell", "monotone", ["features=4"]),
        ("cell", "paper-mlp", ["features=8"]),
        ("table", "bridge", []),
    ],
)
def test_a_sound_part_passes_every_check_of_its_kind(
    run: Run, kind: str, name: str, settings: list[str]
):
    result = run("check", kind, name, *(word for setting in settings for word in ("-o", setting)))
    assert result.exit_code == 0, result.output
    found = rows(result)
    assert [check.name for check in checks_for(kind)] == list(found)[: len(checks_for(kind))]
    assert {found[check.name][0] for check in checks_for(kind)} <= {"passed", "skipped"}
    assert result.stdout.splitlines()[-1].split(", ")[0].endswith(" passed")


def test_a_wrong_part_fails_with_a_message_and_status_1(site: Site, run: Run):
    site.add("mine", registers("wrong", "wrong_code:Wrong"), files={"wrong_code.py": WRONG})
    result = run("check", "root_solver", "wrong", "-o", "off=0.01")
    assert result.exit_code == 1
    failed = {name: found for name, found in rows(result).items() if found[0] == "failed"}
    assert failed
    assert all(len(found) == 2 for found in failed.values())
    assert f"{len(failed)} failed" in result.stdout.splitlines()[-1]


@pytest.mark.parametrize(
    ("arguments", "status", "message"),
    [
        (
            ("root_solver", "andersen"),
            1,
            "Error: unknown root_solver 'andersen'; did you mean 'anderson'",
        ),
        (
            ("root_solver", "anderson", "-o", "toll=1"),
            2,
            "toll: unknown option of anderson; did you mean 'tol'",
        ),
        (
            ("root_solver", "anderson", "-o", "tol=-1"),
            2,
            "tol: expected a number greater than or equal to 0, received '-1'",
        ),
        (("root_solver", "anderson", "-o", "tol"), 2, "expected key=value, received 'tol'"),
        (("root_solver", "anderson", "-o", "=1"), 2, "expected key=value, received '=1'"),
        (("root_solver", "chain", "-o", "solvers=[1"), 2, "the value of solvers is no JSON: "),
        (
            ("root_solver", "anderson", "-x", "finds_a_root=x"),
            2,
            "no check is named 'finds_a_root'; did you mean 'finds_the_root'",
        ),
        (
            ("gradient", "implicit", "-o", "solver.tol=1"),
            2,
            "solver: needs a 'name', the name of a registered root_solver",
        ),
        (
            ("dynamics", "fixed_point", "-o", "cell=os:system"),
            2,
            "cell: given to fixed_point from Python, not by a configuration",
        ),
    ],
)
def test_what_cannot_be_checked_is_said_to_be_so(
    run: Run, arguments: tuple[str, ...], status: int, message: str
):
    result = run("check", *arguments)
    assert result.exit_code == status
    assert message in result.stderr


def test_a_check_that_is_expected_to_fail_must(run: Run):
    inexact = [
        word
        for name in ("gives_the_gradient_of_the_parameters", "gives_the_gradient_of_the_input")
        for word in ("--expect", f"{name}=one step of the series")
    ]
    assert run("check", "gradient", "phantom").exit_code == 1
    result = run("check", "gradient", "phantom", *inexact)
    assert result.exit_code == 0, result.output
    assert rows(result)["gives_the_gradient_of_the_input"][1].startswith("one step of the series (")
    assert "2 expected" in result.stdout
    result = run("check", "gradient", "phantom", *inexact, "-x", "descent_direction=no")
    assert result.exit_code == 1
    assert rows(result)["descent_direction"] == [
        "failed",
        "it was expected to fail (no), and passed",
    ]


def test_options_of_parts_within_parts():
    assert nested((("solver.name", "gmres"), ("solver.tol", "1"), ("steps", [1]))) == {
        "solver": {"name": "gmres", "tol": "1"},
        "steps": [1],
    }
    assert nested((("a.b.c", "1"), ("a.b.d", "2"))) == {"a": {"b": {"c": "1", "d": "2"}}}


def test_a_value_may_be_a_list_of_parts(run: Run):
    setting = 'solvers=["anderson", {"name": "newton", "tol": 1e-6}]'
    assert run("check", "root_solver", "chain", "-o", setting).exit_code == 0
