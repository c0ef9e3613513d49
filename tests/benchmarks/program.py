"""What the benchmark programs share: their options, the run over all problems, and where the
results go."""

from __future__ import annotations

import argparse
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from importlib.util import find_spec
from itertools import chain
from pathlib import Path
from typing import Any

import torch

from benchmarks import curves, jax_peers
from benchmarks.harness import Settings, measure
from benchmarks.markdown import count, error, missed, table
from benchmarks.options import add_shared
from benchmarks.problem import Contender, Problem
from benchmarks.report import machine_line, measurements, name_of
from benchmarks.rows import DOCS, Row, device_name, load, machine, save

NOTES = ("pieces", "per_sample", "warned", "left_out", "compile_seconds", "state_bytes")
"""What the row ``machine`` says of the measurements besides."""
Saved = tuple[list[Row], dict[str, Any]]
"""Rows, and the row ``machine``."""


@dataclass(frozen=True)
class Program:
    """One benchmark.

    Attributes:
        name: of its files, and of its module here.
        description: for ``--help``.
        problems: called with True for the quick ones.
        contenders: on a problem, quick or not.
        page: the Markdown page, from the rows, the row ``machine`` and the text of what was tried.
        devices: where it can run; the first is the default.
        pictures: of `make bench-curves`, those that belong to the page, by name, and what each
            shows.
    """

    name: str
    description: str | None
    problems: Callable[[bool], Sequence[Problem]]
    contenders: Callable[[Problem, bool], Sequence[Contender]]
    page: Callable[[Sequence[Row], Mapping[str, Any], str], str]
    devices: tuple[str, ...] = ("cpu",)
    pictures: Mapping[str, str] = field(default_factory=dict)

    def main(self, arguments: list[str] | None = None) -> None:
        options = self._options(arguments)
        folder = options.output or DOCS
        path = folder / f"{self.name}.json"
        if not options.report:
            rows, about = self._run(options)
            if options.output is None and not options.merge and _partly(options):
                return
            if not rows and path.exists() and load(path)[0]:
                raise SystemExit(
                    f"nothing was measured: no {options.device} device; {path} stays as it is"
                )
            folder.mkdir(parents=True, exist_ok=True)
            if options.merge and path.exists():
                rows, about = merged(load(path), (rows, about))
            save(path, rows, about)
        notes = Path(__file__).with_name(f"{self.name}_tried.md")
        tried = notes.read_text(encoding="utf-8") if notes.exists() else ""
        page = self.page(*load(path), tried) + cases(folder / f"{self.name}_cases.json")
        page += pictures(folder, self.pictures)
        path.with_suffix(".md").write_text(page, encoding="utf-8")
        print(f"wrote {path} and {path.with_suffix('.md').name}")

    def _run(self, options: argparse.Namespace) -> tuple[list[Row], dict[str, Any]]:
        torch.set_num_threads(options.threads)
        settings = Settings(repetitions=options.repetitions, seed=options.seed)
        if options.quick:
            settings = replace(settings, repetitions=2, window=0.0)
        device = device_name(options.device)
        problems = self._problems(options) if device else []
        cases = [(problem, self._contenders(problem, options)) for problem in problems]
        libraries = {"implicitcore", "torch"} | {
            contender.library for _, found in cases for contender in found
        }
        about = machine(sorted(filter(find_spec, libraries))) | {
            "device": device,
            "repetitions": settings.repetitions,
        }
        elsewhere = jax_peers.versions() if libraries.intersection(jax_peers.NAMES) else {}
        about["versions"] |= {name: elsewhere[name] for name in libraries & elsewhere.keys()}
        about |= {note: {} for note in NOTES}
        rows: list[Row] = []
        for problem, contenders in cases:
            with warnings.catch_warnings(
                action="ignore"
            ):  # its row says that a contender did not converge
                measured = measure(problem, contenders, settings)
            rows += measured.rows
            about["pieces"][problem.name] = measured.pieces
            for note in NOTES[1:]:
                about[note] |= getattr(measured, note)
            print(
                problem.name,
                "",
                *measurements(measured.rows, problem.compared),
                sep="\n",
                flush=True,
            )
        jax_peers.close()
        return rows, about

    def _contenders(self, problem: Problem, options: argparse.Namespace) -> list[Contender]:
        found = self.contenders(problem, options.quick)
        return [contender for contender in found if options.contenders in str(contender)]

    def _problems(self, options: argparse.Namespace) -> list[Problem]:
        found = [
            problem.to(torch.device(options.device))
            for problem in self.problems(options.quick)
            if options.only in problem.name
        ]
        return (
            [replace(problem, tolerances=problem.tolerances[:1]) for problem in found]
            if options.quick
            else found
        )

    def _options(self, arguments: list[str] | None) -> argparse.Namespace:
        parser = argparse.ArgumentParser(
            prog=f"python -m benchmarks.{self.name}", description=self.description
        )
        parser.add_argument(
            "--quick",
            action="store_true",
            help="tiny problems and few repetitions: does the program run?",
        )
        parser.add_argument(
            "--only", default="", metavar="TEXT", help="only the problems whose name holds TEXT"
        )
        parser.add_argument(
            "--contenders",
            default="",
            metavar="TEXT",
            help="only the contenders whose library, method and gradient hold TEXT",
        )
        parser.add_argument(
            "--merge",
            action="store_true",
            help="save, and keep what the file has of the problems that are not measured",
        )
        parser.add_argument(
            "--report",
            action="store_true",
            help="write the page anew from the saved rows; measures nothing",
        )
        parser.add_argument(
            "--device",
            choices=self.devices,
            default=self.devices[0],
            help="where it runs (default %(default)s)",
        )
        parser.add_argument("--seed", type=int, default=0, help="of the order in a repetition")
        unless = "with --quick, --only or --contenders nothing is saved, unless it is merged"
        add_shared(parser, repetitions=9, unsaved=f"; {unless}")
        return parser.parse_args(arguments)


def cases(path: Path) -> str:
    """The section of the cases whose points lie there."""
    if not path.exists():
        return ""
    points, about = curves.load(path)
    lines = ["", "## Cases", "", machine_line(about), ""]
    for name in dict.fromkeys(point.sweep for point in points):
        found = [point for point in points if point.sweep == name]
        unit = "us" if "microseconds" in found[0].values else "ms"
        header = ("", unit, *(["x f", "at most"] if unit == "us" else []), "evaluations", "error")
        lines += [f"{name}:", "", *table(header, (_case(point, unit) for point in found))]
    return "\n".join(lines)


def _case(point: curves.Point, unit: str) -> tuple[str, ...]:
    values = point.values
    evaluations = count(values["evaluations"]) if "evaluations" in values else ""
    told = evaluations, error(values["error"]) if "error" in values else ""
    if unit == "ms":
        return point.curve, f"{values['milliseconds']:.2f}", *told
    beside = ("", "")
    if "f" in values:
        most = values["at most"]
        beside = f"{values['f']:.1f}", f"{most:.1f}, {missed(values['f'], most)}"
    return point.curve, f"{values['microseconds']:.0f}", *beside, *told


def pictures(folder: Path, captions: Mapping[str, str]) -> str:
    """The section of those that lie in the folder."""
    found = {name: text for name, text in captions.items() if (folder / f"{name}.png").exists()}
    sections = [f"{text}\n\n![{name}]({name}.png)\n" for name, text in found.items()]
    return "\n".join(["\n## Curves\n", *sections]) if found else ""


def _partly(options: argparse.Namespace) -> bool:
    """Whether it is not the whole benchmark that runs."""
    return bool(options.quick or options.only or options.contenders)


def merged(saved: Saved, new: Saved) -> Saved:
    """The saved rows, with those of each problem that was measured anew in their place.

    Raises:
        SystemExit: they come from another machine.
    """
    (old_rows, old), (rows, about) = saved, new
    for what in ("processor", "threads", "device", "repetitions"):
        if old.get(what) != about[what]:
            raise SystemExit(f"not merged: {what} was {old.get(what)!r}, and is {about[what]!r}")
    by_problem: dict[str, list[Row]] = {}
    for row in [*old_rows, *rows]:
        by_problem.setdefault(name_of(row), [])
    measured = set(map(name_of, rows))
    for row in [*(row for row in old_rows if name_of(row) not in measured), *rows]:
        by_problem[name_of(row)].append(row)
    notes = {
        note: {
            key: value
            for key, value in old.get(note, {}).items()
            if key.rsplit(", tol ", 1)[0] not in measured
        }
        | about[note]
        for note in NOTES
    }
    versions = {"versions": dict(sorted((old["versions"] | about["versions"]).items()))}
    return [*chain.from_iterable(by_problem.values())], {**about, **versions, **notes}
