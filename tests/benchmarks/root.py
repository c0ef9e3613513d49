"""Equilibria: forward solve and implicit gradient against the floor, TorchDEQ and loops written by hand (``make bench-root``)."""

from __future__ import annotations

import argparse
import warnings
from dataclasses import replace
from pathlib import Path

import torch

from benchmarks.harness import Settings, measure
from benchmarks.root_contenders import contenders
from benchmarks.root_problems import problems
from benchmarks.root_report import measurements, page
from benchmarks.rows import Row, load, machine, save
from benchmarks.timing import keep_memory

TRIED = Path(__file__).with_name("root_tried.md")
DOCS = Path(__file__).parents[2] / "docs" / "benchmarks"


def main(arguments: list[str] | None = None) -> None:
    options = _options(arguments)
    folder = options.output or DOCS
    path = folder / "root.json"
    if not options.report:
        rows, about = run(options)
        if options.output is None and (options.quick or options.only):
            return
        folder.mkdir(parents=True, exist_ok=True)
        save(path, rows, about)
    path.with_suffix(".md").write_text(page(*load(path), TRIED.read_text(encoding="utf-8")), encoding="utf-8")
    print(f"wrote {path} and {path.with_suffix('.md').name}")


def run(options: argparse.Namespace) -> tuple[list[Row], dict[str, object]]:
    torch.set_num_threads(options.threads)
    found = contenders()
    libraries = sorted({"implicitcore", "torch", *(c.library for c in found if c.library == "torchdeq")})
    settings = Settings(repetitions=options.repetitions, seed=options.seed)
    if options.quick:
        settings = replace(settings, tolerances=(1e-3,), repetitions=2, window=0.0)
    about = machine(libraries) | {"repetitions": settings.repetitions, "pieces": {}, "per_sample": {}}
    rows: list[Row] = []
    for problem in problems(options.quick):
        if options.only in problem.name:
            with warnings.catch_warnings(action="ignore"):  # its row says that a contender did not converge
                measured = measure(problem, found, settings)
            rows += measured.rows
            about["pieces"][problem.name] = measured.pieces
            about["per_sample"] |= measured.per_sample
            print(problem.name, "", *measurements(measured.rows), sep="\n", flush=True)
    return rows, about


def _options(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.root", description=__doc__)
    parser.add_argument("--quick", action="store_true", help="tiny problems and few repetitions: does the program run?")
    parser.add_argument("--only", default="", metavar="TEXT", help="only the problems whose name holds TEXT")
    parser.add_argument("--report", action="store_true", help="write the page anew from the saved rows; measures nothing")
    parser.add_argument("--repetitions", type=int, default=9, help="interleaved repetitions (default %(default)s)")
    parser.add_argument("--threads", type=int, default=2, help="threads of torch (default %(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="of the order in a repetition")
    parser.add_argument("--output", type=Path, help="folder to save in (default docs/benchmarks; with --quick or --only nothing is saved)")
    return parser.parse_args(arguments)


if __name__ == "__main__":
    keep_memory("benchmarks.root")
    main()
