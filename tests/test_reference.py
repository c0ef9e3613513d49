"""The page of all parts is what the registry says."""

from __future__ import annotations

import pytest
from support.sites import ROOT, SOLVER, Site, distributions, registers, run_python

from implicitcore.cli.reference_page import _text, reference_page
from implicitcore.registry.registry import REGISTRY

PAGE = ROOT / "docs" / "parts.md"


def ours():
    return [part for part in REGISTRY.parts() if part.provider in distributions()]


def test_the_committed_page_is_current():
    assert PAGE.read_text(encoding="utf-8") == reference_page(ours()), (
        "docs/parts.md is stale: run `make reference` and commit it"
    )


def test_every_part_has_its_section():
    lines = PAGE.read_text(encoding="utf-8").splitlines()
    sections = [line.removeprefix("### ") for line in lines if line.startswith("### ")]
    assert sorted(sections) == sorted(part.name for part in ours())
    assert "| `depth` | `int` | `>= 1` | `5` | earlier directions kept |" in lines
    assert (
        "| `cell` | `Callable[[Any, Any], Any]` |  | required | f, a module or function of "
        "(z, x) that returns a state shaped like z |" in lines
    )
    for row in (
        "| `solver` | `root_solver or None` |  | `None` | ",
        "| `on_failure` | `'raise' \\| 'warn' \\| 'mask' \\| 'ignore'` |  | `'warn'` | ",
    ):
        assert any(line.startswith(row) for line in lines)
    assert (
        "{py:class}`~implicitcore.root_solvers.anderson.Anderson`, provided by implicitcore"
        in lines
    )


@pytest.mark.slow
def test_the_parts_of_other_plugins_are_in_their_page_and_not_in_ours(tmp_path):
    site = Site(tmp_path)
    site.add(
        "mine-dist",
        registers("mine", "mine_code:Solver", summary="a solver | of mine"),
        files={"mine_code.py": SOLVER},
    )

    def page(*options: str) -> str:
        done = run_python("-m", "implicitcore", "list", "--markdown", *options, path=(site,))
        assert (done.returncode, done.stderr) == (0, "")
        return done.stdout

    assert "`~mine_code.Solver`, provided by mine-dist" in page("root_solver")
    assert "| `gain` | `float` | `> 0` | `1.0` |  |" in page("--provider", "mine-dist")
    table = run_python("-m", "implicitcore", "list", "--provider", "mine-dist", path=(site,)).stdout
    assert [line.split()[:3] for line in table.splitlines()[1:]] == [
        ["root_solver", "mine", "mine-dist"]
    ]
    both = page("root_solver", "--provider", "implicitcore", "--provider", "mine-dist")
    assert both.index("### gmres") < both.index("### mine") < both.index("### newton")
    assert page(
        *(word for name in sorted(distributions()) for word in ("--provider", name))
    ) == PAGE.read_text(encoding="utf-8")


def test_a_meaning_is_plain_text_but_for_its_code():
    assert _text("a * b_c of `|x_y|` and |z|") == r"a \* b\_c of `\|x_y\|` and \|z\|"


def test_a_part_that_cannot_be_imported_is_an_error(tmp_path):
    site = Site(tmp_path)
    site.add("mine-dist", registers("mine", "no_such_module:X"))
    done = run_python("-m", "implicitcore", "list", "--markdown", path=(site,))
    assert (done.returncode, done.stdout) == (1, "")
    assert "root_solver 'mine' of mine-dist 1.0 cannot be imported" in done.stderr
