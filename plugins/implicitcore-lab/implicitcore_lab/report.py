"""The table on the screen and the results as data."""

from __future__ import annotations

import json
import platform
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from rich import box
from rich.table import Table

from implicitcore_lab.experiment import Outcome
from implicitcore_lab.settings import Settings

COLUMNS = (
    "test\naccuracy",
    "train ms\nper step",
    "evaluations\nforward",
    "evaluations\nbackward",
    "peak memory\nof a step",
    "parameters",
    "worst\nresidual",
)


def table(outcomes: Sequence[Outcome], title: str) -> Table:
    """One row per layer.

    Arguments:
        outcomes: what was trained.
        title: of the table.
    """
    result = Table("layer", title=title, box=box.SIMPLE_HEAD, padding=0, collapse_padding=True, pad_edge=False)
    for column in COLUMNS:
        result.add_column(column, justify="right")
    for outcome in outcomes:
        result.add_row(outcome.layer, *_cells(outcome))
    return result


def notes(outcomes: Sequence[Outcome], data_note: str) -> list[str]:
    """What a reader of the table must know: data that are not the original ones, and solves that missed their tolerance."""
    lines = [f"data: {data_note}"] if data_note else []
    for outcome in outcomes:
        trained = sum(step.samples for step in outcome.history.steps)
        missed = sum(step.unconverged for step in outcome.history.steps)
        if missed or outcome.test.unconverged:
            lines.append(
                f"{outcome.layer}: {missed:,} of {trained:,} training solves and {outcome.test.unconverged:,} of "
                f"{outcome.test.samples:,} test solves did not converge"
            )
    return lines


def row(outcome: Outcome) -> dict[str, Any]:
    """An outcome as data: the table's columns, the configuration and the curves."""
    return {
        "layer": outcome.layer,
        "test_accuracy": outcome.test.accuracy,
        "test_correct": outcome.test.correct,
        "test_samples": outcome.test.samples,
        "seconds_per_step": outcome.history.seconds_per_step,
        "evaluations": outcome.history.mean("evaluations"),
        "evaluations_backward": outcome.history.mean("backward"),
        "peak_bytes": outcome.peak_bytes,
        "parameters": outcome.parameters,
        "worst_residual": outcome.test.worst_residual,
        "unconverged_train": sum(step.unconverged for step in outcome.history.steps),
        "unconverged_test": outcome.test.unconverged,
        "config": outcome.config,
        "epochs": [asdict(epoch) for epoch in outcome.history.epochs],
        "residuals": outcome.residuals,
    }


def write_results(path: Path, outcomes: Sequence[Outcome], settings: Settings, data_note: str) -> None:
    """Write everything measured as JSON.

    Arguments:
        path: the file.
        outcomes: what was trained.
        settings: what the layers had in common.
        data_note: what must be said about the data.
    """
    common = {name: value for name, value in settings.as_data().items() if name != "layer"}
    content = {"machine": machine(), "settings": common, "data_note": data_note, "layers": [row(outcome) for outcome in outcomes]}
    path.write_text(json.dumps(content, indent=2) + "\n")


def machine() -> dict[str, Any]:
    """What the figures were measured on."""
    return {
        "platform": platform.platform(),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "cuda": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
    }


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
