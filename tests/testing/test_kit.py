"""How the contract kit is used: parts in, checks and results out."""

from __future__ import annotations

import subprocess
import sys
from collections import Counter
from dataclasses import FrozenInstanceError, dataclass
from functools import partial

import pytest
import torch
from support.checks_page import PAGE, with_listing
from test_readme import blocks

import implicitcore as ic
from implicitcore.extend import Options
from implicitcore.options.kinds import NAMED_KINDS
from implicitcore.testing import (
    ContractError,
    NotApplicable,
    checks_for,
    parametrize_with_checks,
    run_checks,
)


@dataclass(frozen=True, kw_only=True)
class Half(Options, ic.RootSolver):
    """Wrong: half of the way."""

    def solve(self, system, z0):
        solution = ic.Anderson().solve(system, z0)
        return ic.Solution(**{**vars(solution), "z": 0.5 * solution.z})


def cases(*args, **options):
    """The parameter sets of the decorator."""
    return parametrize_with_checks(*args, **options).args[1]


def check_named(kind, name):
    return next(check for check in checks_for(kind) if check.name == name)


@pytest.mark.parametrize("kind", NAMED_KINDS)
def test_every_kind_has_checks_with_names_of_their_own_and_a_summary(kind):
    checks = checks_for(kind)
    assert len({check.name for check in checks}) == len(checks) >= 10
    assert all(check.kind == kind for check in checks)
    assert all(check.summary.endswith(".") and len(check.summary) <= 100 for check in checks)


def test_one_promise_has_one_name_and_one_sentence():
    named = {(check.name, check.summary) for kind in NAMED_KINDS for check in checks_for(kind)}
    names, sentences = zip(*named, strict=True)
    assert len(set(names)) == len(names), Counter(names).most_common(1)
    assert len(set(sentences)) == len(sentences), Counter(sentences).most_common(1)


def test_the_checks_of_a_part_are_those_of_its_kind():
    assert checks_for(ic.Picard()) == checks_for("root_solver")
    assert (
        checks_for(ic.FixedPoint)
        == checks_for(partial(ic.VectorField, autonomous=True))
        == checks_for("dynamics")
    )


def test_a_check_is_frozen_and_is_called_with_a_part():
    check = check_named("root_solver", "finds_the_root")
    check(ic.Picard())
    with pytest.raises(FrozenInstanceError):
        check.name = "another"  # pyright: ignore[reportAttributeAccessIssue]


def test_a_failure_says_what_was_done_received_and_expected():
    with pytest.raises(
        ContractError, match=r"compared the root of .*: received an error of .*, expected at most"
    ) as failure:
        check_named("root_solver", "finds_the_root")(Half())
    assert isinstance(failure.value, AssertionError)


def test_what_a_part_raises_is_the_cause_of_the_failure():
    @dataclass(frozen=True)
    class Raises(Options, ic.RootSolver):
        def solve(self, system, z0):
            raise KeyError("depth")

    with pytest.raises(
        ContractError, match="finds_the_root: Raises raised KeyError: 'depth'"
    ) as failure:
        check_named("root_solver", "finds_the_root")(Raises())
    assert isinstance(failure.value.__cause__, KeyError)


def test_checks_leave_the_random_state_and_the_grad_mode_alone():
    torch.manual_seed(3)
    expected = torch.randn(3)
    torch.manual_seed(3)
    run_checks(ic.VectorField)
    assert torch.equal(torch.randn(3), expected)
    assert torch.is_grad_enabled()


def test_ids_name_the_class_and_where_it_is_shared_the_options():
    assert cases([ic.Picard(), ic.FixedPoint])[0].id == "Picard-finds_the_root"
    nested = ic.Chain((ic.Picard(), ic.Newton(tol=1e-6)))
    names = {
        case.id.removesuffix("-finds_the_root")
        for case in cases([nested, ic.Chain(), ic.GMRES(restart=3)])
    }
    assert {"Chain", "Chain(solvers=(Picard, Newton(tol=1e-06)))", "GMRES"} <= names


@pytest.mark.parametrize(
    ("part", "message"),
    [
        (ic.Picard, r"expected an object, as Picard\(\), received the class Picard"),
        (
            ic.FixedPoint(torch.nn.Identity()),
            r"expected a class, or functools.partial\(FixedPoint, ...\)",
        ),
        (object(), "expected a part .*root_solver.* received an object object"),
        ("anderson", "expected a part .* received 'anderson'"),
        (
            partial(ic.ImplicitLayer),
            "ImplicitLayer needs solver beside a cell: pass "
            "functools.partial.ImplicitLayer, solver=....",
        ),
    ],
    ids=["class", "object", "nothing", "name", "incomplete"],
)
def test_what_is_no_part_is_one_clear_error(part, message):
    for use in (run_checks, checks_for, lambda part: parametrize_with_checks([ic.Picard(), part])):
        with pytest.raises(ic.InputError, match=message):
            use(part)


def test_a_check_refuses_a_part_of_another_kind():
    with pytest.raises(
        ic.InputError, match="finds_the_root checks a root_solver, received Tsit5, an ode_solver"
    ):
        check_named("root_solver", "finds_the_root")(ic.Tsit5())


def test_an_unknown_check_is_an_error_with_the_near_match():
    for use in (run_checks, lambda part, **options: parametrize_with_checks([part], **options)):
        for expected in ({"finds_the_rot": "no"}, lambda part: {"finds_the_rot": "no"}):
            with pytest.raises(
                ic.ConfigError,
                match="no check is named 'finds_the_rot'; did you mean 'finds_the_root'",
            ):
                use(ic.Picard(), expected_failed_checks=expected)


def test_a_mapping_for_all_parts_may_name_the_checks_of_any_of_them():
    expected = {"has_its_order": "why"}
    marks = {
        case.id: case.marks
        for case in cases([ic.Picard(), ic.Euler()], expected_failed_checks=expected)
    }
    assert not any(marks[name] for name in marks if name != "Euler-has_its_order")
    (mark,) = marks["Euler-has_its_order"]
    assert mark.name == "xfail" and mark.kwargs == {"reason": "why", "strict": True}
    with pytest.raises(ic.ConfigError, match="has_its_order"):
        cases([ic.Picard(), ic.Euler()], expected_failed_checks=lambda part: expected)


def test_results_without_pytest():
    expected = {"finds_the_root": "half the way", "is_a_frozen_dataclass": "no reason"}
    results = {
        result.name: result for result in run_checks(Half(), expected_failed_checks=expected)
    }
    assert [results[name].status for name in results] and set(results) == {
        check.name for check in checks_for("root_solver")
    }
    assert results["finds_the_root"].status == "expected"
    assert "half the way (compared the root" in results["finds_the_root"].message
    assert results["is_a_frozen_dataclass"].status == "failed"
    assert (
        results["is_a_frozen_dataclass"].message
        == "it was expected to fail (no reason), and passed"
    )
    assert results["finds_the_root_in_float32"].status == "failed"
    assert results["meets_its_tolerance"].status == "skipped"
    assert results["meets_its_tolerance"].message == "Half has no option 'tol'"
    assert results["pickle_round_trip"] == type(results["pickle_round_trip"])(
        "pickle_round_trip", "passed"
    )


def test_a_check_that_says_nothing_about_a_part_is_not_applicable():
    with pytest.raises(NotApplicable, match="has no option 'dt'"):
        check_named("ode_solver", "has_its_order")(ic.Tsit5())


class Tuples(ic.Dynamics):
    """With weights of its own, and an input of two tensors."""

    def __init__(self, width):
        super().__init__()
        self.linear = torch.nn.Linear(width, width)

    def velocity(self, t, z, x):
        return {"a": self.linear(z["a"]) + x[0], "b": x[1] - z["b"]}


def test_inputs_of_another_form():
    def inputs(batch, dtype):
        return {
            "a": torch.randn(batch, 4, dtype=dtype),
            "b": torch.randn(batch, 2, 3, dtype=dtype),
        }, (
            torch.randn(batch, 4, dtype=dtype),
            torch.randn(batch, 2, 3, dtype=dtype),
        )

    assert {result.status for result in run_checks(partial(Tuples, 4), inputs=inputs)} == {"passed"}


class Tokens(ic.ImplicitLayer):
    """An equilibrium for a list of tokens, ``[batch, length]``."""

    def __init__(self, tokens):
        super().__init__(_Sentence(tokens), solver=ic.Anderson(tol=1e-6))

    def solve(self, x, z0=None, *, keys=None, times=None, trace=False):
        table = self.get_parameter("dynamics.table.weight")
        z0 = table.new_zeros(len(x), 5) if z0 is None else z0
        return super().solve(x, z0, trace=trace)


class _Sentence(ic.Dynamics):
    def __init__(self, tokens):
        super().__init__()
        self.table, self.linear = torch.nn.Embedding(tokens, 5), torch.nn.Linear(5, 5)

    def velocity(self, t, z, x):
        return torch.tanh(0.4 * self.linear(z) + self.table(x).sum(1)) - z


def test_a_layer_whose_input_is_integers():
    results = run_checks(
        partial(Tokens, 7), inputs=lambda batch, dtype: torch.randint(7, (batch, 3))
    )
    assert {result.status for result in results} == {"passed", "skipped"}
    skipped = {result.name: result.message for result in results if result.status == "skipped"}
    assert set(skipped) == {"reports_nan", "config_round_trip", "follows_its_options"}
    assert skipped["reports_nan"] == "its input has no floating-point tensor"


def test_the_kit_needs_no_pytest():
    code = """
import sys
sys.modules["pytest"] = None
import implicitcore as ic
from implicitcore.testing import run_checks
assert {result.status for result in run_checks(ic.Picard())} <= {"passed", "skipped"}
"""
    subprocess.run([sys.executable, "-c", code], check=True, timeout=100)


def test_the_page_lists_the_checks_as_they_are():
    page = PAGE.read_text(encoding="utf-8")
    assert with_listing(page) == page, "stale: PYTHONPATH=tests python -m support.checks_page"


def test_the_tests_on_the_page_pass_under_pytest(tmp_path):
    source = "\n".join(block.source for block in blocks(PAGE) if block.language == "python")
    (tmp_path / "test_page.py").write_text(source, encoding="utf-8")
    command = [
        sys.executable,
        "-m",
        "pytest",
        "-q",
        "-p",
        "no:cacheprovider",
        "-W",
        "error",
        "--rootdir",
        str(tmp_path),
        str(tmp_path),
    ]
    done = subprocess.run(
        command, capture_output=True, text=True, timeout=200, check=False, cwd=tmp_path
    )
    assert done.returncode == 0, done.stdout
    assert " passed" in done.stdout and " skipped" in done.stdout and "2 xfailed" in done.stdout
