"""The table on the screen and the results as data."""

from __future__ import annotations

import json
import os
import platform
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from importlib.metadata import version
from math import sqrt
from pathlib import Path
from statistics import mean, stdev
from typing import Any

import torch
from rich import box
from rich.console import Console
from rich.table import Table

from implicitcore_lab.experiment import Outcome
from implicitcore_lab.records import Record
from implicitcore_lab.settings import Settings
from implicitcore_lab.state import SCHEMA
from implicitcore_lab.storage import write_atomic
from implicitcore_lab.tolerance import tolerance_of

COLUMNS = (
    "train ms\nper step",
    "evals\nforward",
    "evals\nbackward",
    "peak\nmemory",
    "parameters",
    "worst\nresidual",
)
LEGEND = (
    "evals: of the cell in a step, backward with vector-Jacobian products",
    "peak memory: of one step; residual: |f(z) - z| / |z| on the test set",
)


def show(console: Console, groups: Sequence[Sequence[Outcome]], title: str, data_note: str) -> None:
    """Print one row per layer, and below what its reader must know.

    Arguments:
        console: where to print.
        groups: what was trained, for each layer one outcome for each seed.
        title: of the table.
        data_note: what must be said about the data.
    """
    table = Table(
        "layer", title=title, box=box.SIMPLE_HEAD, padding=0, collapse_padding=True, pad_edge=False
    )
    outcomes = [outcome for group in groups for outcome in group]
    for column in (f"test\naccuracy\nof {outcomes[0].test.samples:,}", *COLUMNS):
        table.add_column(column, justify="right")
    for group in groups:
        table.add_row(group[0].layer, *_cells(group))
    console.print(table)
    seeds = max(len(group) for group in groups)
    legend = (*LEGEND, f"mean +- standard deviation of {seeds} seeds") if seeds > 1 else LEGEND
    for line in (_chance(outcomes), _tolerances(outcomes), *legend, *_notes(outcomes, data_note)):
        console.print(line, style="dim")


def record(outcome: Outcome) -> Record:
    """An outcome as data: the table's columns, the configuration and the curves."""
    return Record(
        layer=outcome.layer,
        seed=outcome.seed,
        test_accuracy=outcome.test.accuracy,
        test_correct=outcome.test.correct,
        test_samples=outcome.test.samples,
        tolerance=tolerance_of(outcome.config),
        seconds_per_step=outcome.history.seconds_per_step,
        evaluations=outcome.history.mean("evaluations"),
        evaluations_backward=outcome.history.mean("backward"),
        peak_bytes=outcome.peak_bytes,
        parameters=outcome.parameters,
        worst_residual=outcome.test.worst_residual,
        unconverged_train=outcome.history.unconverged,
        unconverged_test=outcome.test.unconverged,
        config=outcome.config,
        epochs=outcome.history.epochs,
        residuals=outcome.residuals,
    )


def write_results(
    path: Path, groups: Sequence[Sequence[Outcome]], settings: Settings, data_note: str
) -> None:
    """Write everything measured as JSON.

    Arguments:
        path: the file.
        groups: what was trained, for each layer one outcome for each seed.
        settings: what the layers had in common.
        data_note: what must be said about the data.
    """
    common = {name: value for name, value in settings.as_data().items() if name != "layer"}
    content = {
        "schema": SCHEMA,
        "machine": machine(),
        "settings": common,
        "data_note": data_note,
        "layers": [_layer(group) for group in groups],
    }
    write_atomic(path, (json.dumps(content, indent=2) + "\n").encode())


def result(outcome: Outcome, data_note: str) -> dict[str, Any]:
    """The record of one run."""
    return {"machine": machine(), "data_note": data_note, **asdict(record(outcome))}


def _layer(group: Sequence[Outcome]) -> dict[str, Any]:
    """The row of the first seed, with those of all where there are several."""
    rows = [asdict(record(outcome)) for outcome in group]
    return rows[0] | ({"seeds": rows} if len(rows) > 1 else {})


def machine() -> dict[str, Any]:
    """What the figures were measured on."""
    return {
        "platform": platform.platform(),
        "python": platform.python_version(),
        "cores": os.cpu_count(),
        "torch": torch.__version__,
        "implicitcore": version("implicitcore"),
        "implicitcore-lab": version("implicitcore-lab"),
        "cuda": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
    }


def chance(correct: int, count: int) -> str:
    """What so many test images can tell: a 95 % interval, by Agresti and Coull.

    Arguments:
        correct: how many were classified correctly.
        count: how many there are.
    """
    share = (correct + 2) / (count + 4)
    width = 1.96 * sqrt(share * (1 - share) / (count + 4))
    return (
        f"accuracy: of {count:,} test images, one is {1 / count:.2%}; 95% confidence interval: "
        f"+-{width:.1%}"
    )


def _chance(outcomes: Sequence[Outcome]) -> str:
    correct = min(outcome.test.correct for outcome in outcomes)
    return chance(correct, outcomes[0].test.samples)


def _tolerances(outcomes: Sequence[Outcome]) -> str:
    """Which tolerance each layer solved to, as its configuration has it."""
    texts = {outcome.layer: _tolerance(outcome) for outcome in outcomes}
    if len(set(texts.values())) == 1:
        which = f"{_tolerance(outcomes[0])} for every layer"
    else:
        which = ", ".join(f"{layer} {text}" for layer, text in texts.items())
    return f"tolerance: {which}, of a residual or of a trajectory's steps"


def _tolerance(outcome: Outcome) -> str:
    found = tolerance_of(outcome.config)
    return "none" if found is None else f"{found:.0e}"


def _notes(outcomes: Sequence[Outcome], data_note: str) -> Iterator[str]:
    """Data that are not the original ones, and solves that missed their tolerance."""
    if data_note:
        yield f"data: {data_note}"
    for outcome in outcomes:
        missed = outcome.history.unconverged
        if missed or outcome.test.unconverged:
            yield (
                f"{outcome.layer}: {missed:,} of {outcome.history.samples:,} training "
                f"solves and {outcome.test.unconverged:,} of "
                f"{outcome.test.samples:,} test solves did not converge"
            )


def _cells(group: Sequence[Outcome]) -> tuple[str, ...]:
    residuals = [each.test.worst_residual for each in group]
    worst = [residual for residual in residuals if residual is not None]
    return (
        _spread([each.test.accuracy for each in group], ".2%"),
        _spread([each.history.seconds_per_step * 1e3 for each in group], ".1f"),
        _spread([each.history.mean("evaluations") for each in group], ".1f"),
        _spread([each.history.mean("backward") for each in group], ".1f"),
        f"{max(each.peak_bytes for each in group) / 1e6:.2f} MB",
        f"{group[0].parameters:,}",
        f"{max(worst):.1e}" if worst else "-",
    )


def _spread(values: Sequence[float], form: str) -> str:
    """The mean, and the standard deviation where there are several values."""
    middle = format(mean(values), form)
    return f"{middle} +- {format(stdev(values), form)}" if len(values) > 1 else middle
