"""A report as files: one page that needs nothing else, and its tables as CSV and LaTeX."""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Iterator, Sequence
from importlib import resources
from pathlib import Path
from typing import Any

from jinja2 import Environment, StrictUndefined
from markupsafe import Markup

from implicitcore_lab.errors import RunError
from implicitcore_lab.report.contents import tables
from implicitcore_lab.report.figures import pictures, style
from implicitcore_lab.report.groups import Group, group_runs
from implicitcore_lab.report.reading import Run, read_runs
from implicitcore_lab.report.tables import shown, sort_value
from implicitcore_lab.results import chance
from implicitcore_lab.storage import storing, usable, write_atomic

PAGE = "index.html"
MARK = b'<meta name="generator" content="implicitcore-lab">'
FOLDED_ABOVE = 40
"""Rows of a table that is folded up until a reader asks for it."""


def write_report(paths: Sequence[Path], out: Path) -> Path:
    """Write what some runs reached and cost.

    Arguments:
        paths: directories that ``train`` or ``compare`` wrote, or that hold such directories.
        out: directory for ``index.html``, and for each table NAME.csv and NAME.tex.

    Returns:
        The page.

    Raises:
        RunError: there is no run, a record is damaged, the runs are of several data sets, or the
            directory has other files or cannot be written.
    """
    runs = read_runs(paths)
    groups = group_runs(runs)
    with storing(usable(out)):
        _check_target(out)
        out.mkdir(parents=True, exist_ok=True)
        write_atomic(out / PAGE, _html(runs, groups).encode())
        for table in tables(groups):
            write_atomic(out / f"{table.name}.csv", table.as_csv().encode())
            write_atomic(out / f"{table.name}.tex", table.as_latex().encode())
    return out / PAGE


def _check_target(out: Path) -> None:
    html = out / PAGE
    if html.exists():
        written = MARK in html.read_bytes()[:1000]
    else:
        written = not out.exists() or not any(out.iterdir())
    if not written:
        raise RunError(f"{out} is not empty and holds no report; give another --out")


def _html(runs: Sequence[Run], groups: Sequence[Group]) -> str:
    folder = resources.files("implicitcore_lab.report")
    css, script, template = (
        (folder / name).read_text(encoding="utf-8")
        for name in ("page.css", "page.js", "page.html.j2")
    )
    environment = Environment(
        autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    values: dict[str, Any] = {
        "title": f"{runs[0].dataset}: {', '.join(dict.fromkeys(run.record.layer for run in runs))}",
        "policy": _policy(css, script),
        "style": Markup(css),
        "script": Markup(script),
        "notes": list(_notes(runs, groups)),
        "warnings": list(_warnings(runs, groups)),
        "tables": tables(groups),
        "legend": [(group.label, *style(index)) for index, group in enumerate(groups)],
        "pictures": list(pictures(groups)),
        "folded_above": FOLDED_ABOVE,
        "shown": shown,
        "sort_value": sort_value,
        "data_uri": _data_uri,
    }
    return environment.from_string(template).render(values)


def _policy(css: str, script: str) -> str:
    """Nothing from anywhere: our style and script by their digests, and the pictures."""
    return (
        f"default-src 'none'; style-src {_source(css)}; script-src {_source(script)}; "
        "img-src data:; base-uri 'none'; form-action 'none'"
    )


def _source(text: str) -> str:
    found = base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()
    return f"'sha256-{found}'"


def _data_uri(svg: str) -> str:
    return f"data:image/svg+xml;base64,{base64.b64encode(svg.encode()).decode()}"


def _notes(runs: Sequence[Run], groups: Sequence[Group]) -> Iterator[str]:
    worst = min(runs, key=lambda run: run.record.test_correct).record
    yield chance(worst.test_correct, worst.test_samples)
    yield (
        "evaluations: of the cell in a step, backward with vector-Jacobian products; accuracy "
        "without solve: read out of the start z0; J = df/dz at the equilibria"
    )
    most = max(len(group.runs) for group in groups)
    if most > 1:
        yield f"mean ± sample standard deviation over the seeds, at most {most}"
    if runs[0].data_note:
        yield f"data: {runs[0].data_note}"


def _warnings(runs: Sequence[Run], groups: Sequence[Group]) -> Iterator[str]:
    """What keeps a reader from comparing two rows."""
    if len({run.record.tolerance for run in runs}) > 1:
        yield "The tolerances differ: accuracies can be compared, costs cannot."
    if len({str(run.machine) for run in runs}) > 1:
        yield "The runs were measured on different machines: times cannot be compared."
    if len({group.seeds() for group in groups}) > 1:
        yield "The layers were trained with different seeds."
    for group in groups:
        missed = sum(run.record.unconverged_test for run in group.runs)
        if missed:
            solves = sum(run.record.test_samples for run in group.runs)
            yield f"{group.label}: {missed:,} of {solves:,} test solves did not converge."
