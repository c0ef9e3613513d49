"""``make honesty``: all sweeps, over several processes, and one table."""

from __future__ import annotations

import argparse
import importlib.util
import multiprocessing
import sys
import time
from collections import Counter
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table

from honesty import gradients, roots, trajectories
from honesty.report import cells, header, markdown, written
from honesty.tally import Row, Tally, merge

BATCH = 20
"""Samples of a batch on average: so many problems are one seed."""
SLICE = 250
"""Fuzzed inputs of one task."""
WIDTH = 140


@dataclass(frozen=True)
class Task:
    """A part of the run that a process does alone; ``sweep`` is one of :data:`SWEEPS`."""

    sweep: str
    seed: int
    count: int = 1

    def run(self) -> Tally:
        if self.sweep in ("inputs", "configs"):
            return fuzzed(self.sweep, self.seed, self.count)
        total: Tally = {}
        for seed in range(self.seed, self.seed + self.count):
            merge(total, SWEEPS[self.sweep](seed))
        return total


SWEEPS = {"roots": roots.sweep, "gradients": gradients.sweep, "trajectories": trajectories.sweep}


def fuzzed(kind: str, seed: int, count: int) -> Tally:
    """Random inputs of the functions, or random configurations."""
    fuzz = importlib.import_module("honesty.fuzz")
    row = Row(calls=count)
    row.findings += getattr(fuzz, kind)(count, seed)
    return {("fuzzed", kind): row}


def tasks(options: argparse.Namespace) -> list[Task]:
    """The whole run, the longest sweep first."""
    seeds, first = max(options.problems // BATCH, 1), options.seed * 1_000_003
    plan = [
        *(("roots", first + start, min(5, seeds - start)) for start in range(0, seeds, 5)),
        *(("gradients", first + start, 20) for start in range(0, seeds // 2, 20)),
        *(("trajectories", first + start, 1) for start in range(seeds // 40)),
    ]
    if importlib.util.find_spec("honesty.fuzz"):
        for kind in ("inputs", "configs"):
            starts = range(0, options.fuzzed, SLICE)
            plan += [(kind, first + start, min(SLICE, options.fuzzed - start)) for start in starts]
    wanted = [Task(*each) for each in plan if options.only in each[0]]
    return [task for task in wanted if task.count > 0]


def prepare() -> None:
    """Of each process: its tensors are small, and threads would wait for each other."""
    import torch

    torch.set_num_threads(1)


@contextmanager
def results(found: list[Task], processes: int) -> Iterator[Iterable[Tally]]:
    """What the tasks give, in the order in which they end."""
    if processes < 2:
        yield map(Task.run, found)
        return
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["honesty.program"])
    with context.Pool(processes, initializer=prepare) as pool:
        yield pool.imap_unordered(Task.run, found)


def run(found: list[Task], processes: int, console: Console) -> Tally:
    """All tasks, with a bar on a terminal and a line for each tenth elsewhere."""
    total: Tally = {}
    bar = Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TextColumn("findings {task.fields[findings]}"),
        console=console,
        disable=not console.is_terminal,
    )
    with bar, results(found, processes) as parts:
        shown = bar.add_task("honesty", total=len(found), findings=0)
        for number, part in enumerate(parts, 1):
            merge(total, part)
            count = sum(len(row.findings) for row in total.values())
            bar.update(shown, advance=1, findings=count)
            if not console.is_terminal and number % max(len(found) // 10, 1) == 0:
                console.print(f"{number} of {len(found)} parts, {count} findings")
    return total


def show(total: Tally, console: Console) -> int:
    """Print the tables; the number of findings."""
    table = Table(*header(), title="Honesty")
    for line in cells(total):
        table.add_row(*line)
    console.print(table)
    findings = [finding for row in total.values() for finding in row.findings]
    seen: Counter[str] = Counter()
    for finding in findings:
        seen[finding.kind] += 1
        if seen[finding.kind] <= 5:
            console.print(str(finding), markup=False, soft_wrap=True)
    for kind, count in seen.items():
        console.print(f"{count} x {kind}", markup=False)
    return len(findings)


def main(arguments: list[str] | None = None) -> int:
    options = parse(arguments)
    console = Console(highlight=False)
    if not console.is_terminal:
        console = Console(highlight=False, width=WIDTH, no_color=True)
    prepare()
    begin = time.monotonic()
    total = run(tasks(options), options.processes, console)
    count = show(total, console)
    minutes = (time.monotonic() - begin) / 60
    console.print(f"{count} findings in {minutes:.1f} minutes, seed {options.seed}")
    if options.page:
        text = options.page.read_text(encoding="utf-8")
        about = f"{options.problems} problems, seed {options.seed}, {minutes:.0f} minutes."
        options.page.write_text(written(text, markdown(total, about)), encoding="utf-8")
    return 1 if count else 0


def parse(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m honesty", description=__doc__)
    number = partial(parser.add_argument, type=int)
    number("--problems", default=24_000, help="random problems (default %(default)s)")
    number("--fuzzed", default=10_000, help="inputs, and configurations (default %(default)s)")
    number("--seed", default=0, help="of all that is drawn (default %(default)s)")
    number("--processes", default=2, help="at once (default %(default)s)")
    parser.add_argument("--only", default="", metavar="TEXT", help="sweeps whose name holds TEXT")
    parser.add_argument(
        "--page", type=Path, help="write the table into this page, between its marks"
    )
    return parser.parse_args(arguments)


if __name__ == "__main__":
    sys.exit(main())
