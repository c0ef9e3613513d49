"""The rows of a benchmark, and their JSON file."""

from __future__ import annotations

import json
import os
import platform
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

import torch

DOCS = Path(__file__).parents[2] / "docs" / "benchmarks"


@dataclass(frozen=True)
class Row:
    """One line of the JSON file. Evaluations and products are in whole batches.

    ``residual_max`` is relative and the worst sample's: the residual of an equilibrium, the error
    of the last state of a trajectory.
    """

    problem: str
    library: str
    method: str
    gradient: str
    seconds: float
    floor_seconds: float
    ratio_to_floor: float
    evaluations: float
    vjps: float
    residual_max: float | None
    gradient_error: float | None
    peak_bytes: int


def machine(libraries: Sequence[str]) -> dict[str, Any]:
    """What the times depend on."""
    info = Path("/proc/cpuinfo")
    models = (
        [
            line.split(":", 1)[1].strip()
            for line in info.read_text().splitlines()
            if "model name" in line
        ]
        if info.exists()
        else []
    )
    return {
        "processor": models[0] if models else platform.processor() or platform.machine(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "python": platform.python_version(),
        "versions": {library: metadata.version(library) for library in libraries},
    }


def device_name(device: str) -> str | None:
    """What the tensors lie on; None where there is no such device."""
    if device == "cpu":
        return device
    return torch.cuda.get_device_name(device) if torch.cuda.is_available() else None


def save(path: Path, rows: Sequence[Row], about: Mapping[str, Any]) -> None:
    """One JSON list: the rows, each on a line of its own, and the row ``machine``."""
    lines = [
        json.dumps(entry, allow_nan=False)
        for entry in [*(asdict(row) for row in rows), {"machine": dict(about)}]
    ]
    path.write_text("[\n" + ",\n".join(lines) + "\n]\n", encoding="utf-8")


def load(path: Path) -> tuple[list[Row], dict[str, Any]]:
    """What :func:`save` wrote."""
    *rows, last = json.loads(path.read_text(encoding="utf-8"))
    return [Row(**row) for row in rows], last["machine"]
