"""The table on the screen and the results as data."""

from __future__ import annotations

import json
import platform
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from math import sqrt
from pathlib import Path
from typing import Any

import torch
from rich import box
from rich.console import Console
from rich.table import Table

from implicitcore_lab.experiment import Outcome
from implicitcore_lab.settings import Settings
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


def show(console: Console, outcomes: Sequence[Outcome], title: str, data_note: str) -> None:
    """Print one row per layer, and below what its reader must know.

    Arguments:
        console: where to print.
        outcomes: what was trained.
        title: of the table.
        data_note: what must be said about the data.
    """
    table = Table(
        "layer", title=title, box=box.SIMPLE_HEAD, padding=0, collapse_padding=True, pad_edge=False
    )
    for column in (f"test\naccuracy\nof {outcomes[0].test.samples:,}", *COLUMNS):
        table.add_column(column, justify="right")
    for outcome in outcomes:
        table.add_row(outcome.layer, *_cells(outcome))
    console.print(table)
    for line in (_chance(outcomes), _tolerances(outcomes), *LEGEND, *_notes(outcomes, data_note)):
        console.print(line, style="dim")


def row(outcome: Outcome) -> dict[str, Any]:
    """An outcome as data: the table's columns, the configuration and the curves."""
    return {
        "layer": outcome.layer,
        "test_accuracy": outcome.test.accuracy,
        "test_correct": outcome.test.correct,
        "test_samples": outcome.test.samples,
        "tolerance": tolerance_of(outcome.config),
        "seconds_per_step": outcome.history.seconds_per_step,
        "evaluations": outcome.history.mean("evaluations"),
        "evaluations_backward": outcome.history.mean("backward"),
        "peak_bytes": outcome.peak_bytes,
        "parameters": outcome.parameters,
        "worst_residual": outcome.test.worst_residual,
        "unconverged_train": outcome.history.unconverged,
        "unconverged_test": outcome.test.unconverged,
        "config": outcome.config,
        "epochs": [asdict(epoch) for epoch in outcome.history.epochs],
        "residuals": outcome.residuals,
    }


def write_results(
    path: Path, outcomes: Sequence[Outcome], settings: Settings, data_note: str
) -> None:
    """Write everything measured as JSON.

    Arguments:
        path: the file.
        outcomes: what was trained.
        settings: what the layers had in common.
        data_note: what must be said about the data.
    """
    common = {name: value for name, value in settings.as_data().items() if name != "layer"}
    content = {
        "machine": machine(),
        "settings": common,
        "data_note": data_note,
        "layers": [row(outcome) for outcome in outcomes],
    }
    path.write_text(json.dumps(content, indent=2) + "\n")


def machine() -> dict[str, Any]:
    """What the figures were measured on."""
    return {
        "platform": platform.platform(),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "cuda": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
    }


def _chance(outcomes: Sequence[Outcome]) -> str:
    """What so many test images can tell: a 95 % interval, by Agresti and Coull."""
    count = outcomes[0].test.samples
    share = (min(outcome.test.correct for outcome in outcomes) + 2) / (count + 4)
    width = 1.96 * sqrt(share * (1 - share) / (count + 4))
    return (
        f"accuracy: of {count:,} test images, one is {1 / count:.2%}; 95% confidence interval: "
        f"+-{width:.1%}"
    )


def _tolerances(outcomes: Sequence[Outcome]) -> str:
    """Which tolerance each layer solved to, as its configuration has it."""
    texts = {outcome.layer: _tolerance(outcome) for outcome in outcomes}
    if len(set(texts.values())) == 1:
        which = f"{_tolerance(outcomes[0])} for every layer"
    else:
        which = ", ".join(f"{layer} {text}" for layer, text in texts.items())
    return f"tolerance: {which} (of the residual, or of a step's error along a trajectory)"


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


def _cells(outcome: Outcome) -> tuple[str, ...]:
    residual = outcome.test.worst_residual
    return (
        f"{outcome.test.accuracy:.2%}",
        f"{outcome.history.seconds_per_step * 1e3:.1f}",
        f"{outcome.history.mean('evaluations'):.1f}",
        f"{outcome.history.mean('backward'):.1f}",
        f"{outcome.peak_bytes / 1e6:.2f} MB",
        f"{outcome.parameters:,}",
        "-" if residual is None else f"{residual:.1e}",
    )
