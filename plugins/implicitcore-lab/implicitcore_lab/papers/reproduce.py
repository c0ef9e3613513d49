"""The job behind ``implicitcore reproduce``."""

from __future__ import annotations

import json
import os
import platform
import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from implicitcore import create
from implicitcore_lab.display import make_console
from implicitcore_lab.errors import RunError
from implicitcore_lab.papers.page import Circumstances, blocks_of, markdown, markup
from implicitcore_lab.papers.picture import draw_table
from implicitcore_lab.papers.table import Job, Results, Table, spread
from implicitcore_lab.storage import storing, usable, write_atomic


def reproduce(
    name: str,
    budget: str,
    seeds: Sequence[int],
    target: tuple[Path | None, bool],
    values: Mapping[str, Any],
    rows: Sequence[str] = (),
) -> None:
    """Measure a table and write its page: Markdown, HTML, PNG and JSON.

    Arguments:
        name: of the table.
        budget: of its budgets.
        seeds: each row is measured once with each.
        target: the output folder, or None for ``papers/NAME-BUDGET``; and whether to go on from
            what an earlier job left in it.
        values: settings of the command line, over the table's.
        rows: patterns of the rows; empty is the budget's.

    Raises:
        ConfigError: there is no such table, budget or row, or a setting cannot be used.
        DataError: the data cannot be read.
        RunError: the folder cannot be written, or holds something and is not to go on from.
        Interrupted: a signal came; what is measured is kept.
    """
    table: Table = create("table", name, path="table")
    spent, output = table.budget(budget), usable(target[0] or Path("papers") / f"{name}-{budget}")
    chosen = table.choose(rows or spent.rows)
    with storing(output):
        if not target[1] and output.exists() and any(output.iterdir()):
            raise RunError(f"{output} is not empty; give another --output, or --resume")
        output.mkdir(parents=True, exist_ok=True)
    console = make_console()
    load = os.getloadavg()[0]
    job = Job(chosen, spent, seeds, output, target[1], values, console)
    results = table.measure(job)
    for row in chosen:
        found = results[row.name]
        first = (f"{each.title} {spread(found, each)}" for each in table.columns[:3])
        console.print(f"{row.title}: {', '.join(first)}")
    how = Circumstances(
        name=name,
        budget=budget,
        seeds=seeds,
        command=_command(name, budget, seeds, rows, values.get("device")),
        hardware=[*_hardware(load, job), *table.circumstances(job)],
    )
    with storing(output):
        draw_table(output / f"{name}.png", table, results)
        blocks = blocks_of(table, chosen, results, how)
        write_atomic(output / f"{name}.md", markdown(blocks).encode())
        write_atomic(output / f"{name}.html", markup(blocks).encode())
        write_atomic(output / f"{name}.json", _data(results, how))
    console.print(f"written: {output / name}.md, .html, .png, .json")


def _command(
    name: str, budget: str, seeds: Sequence[int], rows: Sequence[str], device: str | None
) -> str:
    words = ["implicitcore", "reproduce", name, "--budget", budget]
    words += ["--seeds", ",".join(map(str, seeds))]
    words += ["--rows", ",".join(rows)] if rows else []
    return shlex.join([*words, "--device", device] if device else words)


def _hardware(load: float, job: Job) -> list[str]:
    """What it ran on; and whether other programs wanted the same cores."""
    cores, after = os.cpu_count() or 1, os.getloadavg()[0]
    device = torch.cuda.get_device_name() if torch.cuda.is_available() else "no GPU"
    if job.values.get("device") == "cpu":
        device = "no GPU used"
    part = " the last part, which went on from an earlier one" if job.resume else ""
    lines = [
        f"{_processor()}, {cores} cores, {device}; one process.",
        f"Python {platform.python_version()}, torch {torch.__version__}, {platform.system()}.",
        f"Load average {load:.1f} before and {after:.1f} after{part}, on {cores} cores.",
    ]
    if max(load, after) > 1.5:
        lines.append(
            "The machine was shared with other programs meanwhile. Times are medians of the CPU "
            "time of the process, and the rows of a run took turns, so that they compare; "
            "a quiet machine would be faster."
        )
    return lines


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.machine()
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.machine()


def _data(results: Results, how: Circumstances) -> bytes:
    content = {
        "table": how.name,
        "budget": how.budget,
        "seeds": list(how.seeds),
        "hardware": list(how.hardware),
        "rows": {name: [dict(figures) for figures in found] for name, found in results.items()},
    }
    return (json.dumps(content, indent=2) + "\n").encode()
