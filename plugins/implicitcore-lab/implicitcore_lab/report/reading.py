"""From directories to the runs that lie in them, checked."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter, ValidationError

from implicitcore_lab.errors import RunError
from implicitcore_lab.records import Record
from implicitcore_lab.runs import CONFIG, PARTIAL, RESULT, RunDirectory
from implicitcore_lab.state import check_schema
from implicitcore_lab.storage import reason, storing, usable

RESULTS = "results.json"
"""What ``compare`` writes."""
DEPTH = 2
"""How far below a directory runs are looked for: DIRECTORY/deq/seed-0."""
SHOWN = 80
RECORD = TypeAdapter(Record)


@dataclass(frozen=True)
class Run:
    """One run as a report has it.

    Attributes:
        place: where it was found.
        settings: how it was trained, but for the layer.
        record: what was measured.
        machine: what it was measured on.
        data_note: what must be said about the data.
    """

    place: Path
    settings: dict[str, Any]
    record: Record
    machine: dict[str, Any]
    data_note: str

    @property
    def dataset(self) -> str:
        """The data set with its options, as one text."""
        found = self.settings.get("dataset")
        return found if isinstance(found, str) else json.dumps(found, sort_keys=True)


def read_runs(paths: Sequence[Path]) -> list[Run]:
    """The runs in some directories, each once.

    Arguments:
        paths: directories that ``train`` or ``compare`` wrote, or that hold such directories.

    Returns:
        The runs, in the order of the paths.

    Raises:
        RunError: there is no run, a record is damaged, or the runs are of several data sets.
    """
    places = {place.resolve(): place for path in paths for place in _places(usable(path))}
    runs = [run for place in places.values() for run in _read(place)]
    for run in runs:
        _check_same_data(runs[0], run)
    return runs


def _places(path: Path) -> list[Path]:
    """The directories with a record, at the path or below it.

    Raises:
        RunError: there is none.
    """
    try:
        found = list(_search(path, DEPTH))
    except OSError as error:
        raise RunError(f"{path} cannot be read: {reason(error)}") from error
    if found:
        return found
    if path.name.endswith(PARTIAL) or RunDirectory(path.resolve()).partial.exists():
        raise RunError(f"{path}: the run has not ended; go on with `implicitcore train --resume`")
    raise RunError(
        f"{path}: no run here; expected a directory written by `implicitcore train` or "
        "`implicitcore compare`"
    )


def _search(path: Path, depth: int) -> Iterator[Path]:
    if (path / RESULT).exists() or (path / RESULTS).exists():
        yield path
    elif depth and path.is_dir() and not path.name.endswith(PARTIAL):
        for child in sorted(path.iterdir()):
            yield from _search(child, depth - 1)


def _read(place: Path) -> list[Run]:
    with storing(place):
        return [_read_run(place)] if (place / RESULT).exists() else _read_comparison(place)


def _read_run(place: Path) -> Run:
    directory = RunDirectory(place)
    directory.check()
    settings = _parse(place / CONFIG)
    return _run(place / RESULT, directory.record(), settings)


def _read_comparison(place: Path) -> list[Run]:
    path = place / RESULTS
    content = _parse(path)
    check_schema(content.get("schema"), path)
    settings, layers = content.get("settings"), content.get("layers")
    if not isinstance(settings, dict) or not isinstance(layers, list) or not layers:
        raise RunError(f"{path}: damaged: expected settings and layers, as compare writes them")
    rows: list[Any] = []
    for layer in layers:
        seeds = layer.get("seeds") if isinstance(layer, dict) else None
        rows += seeds if isinstance(seeds, list) else [layer]
    return [_run(path, content, settings, row) for row in rows]


def _run(path: Path, content: dict[str, Any], settings: dict[str, Any], row: Any = None) -> Run:
    record = _record(content if row is None else row, path)
    machine = content.get("machine")
    kept = {name: value for name, value in settings.items() if name not in ("layer", "seed")}
    return Run(
        place=path.parent,
        settings=kept,
        record=record,
        machine=machine if isinstance(machine, dict) else {},
        data_note=str(content.get("data_note") or ""),
    )


def _record(row: Any, path: Path) -> Record:
    try:
        return RECORD.validate_python(row)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"])) or "the record"
        received = repr(first["input"])[:SHOWN]
        raise RunError(f"{path}: damaged: {where}: {first['msg']} (received {received})") from error


def _parse(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_bytes())
    except OSError as error:
        raise RunError(f"{path} cannot be read: {reason(error)}") from error
    except (ValueError, RecursionError) as error:
        raise RunError(f"{path}: damaged: not JSON ({str(error)[:SHOWN]})") from error
    if not isinstance(content, dict):
        raise RunError(f"{path}: damaged: expected a JSON object")
    return content


def _check_same_data(first: Run, run: Run) -> None:
    """A figure on one data set says nothing beside a figure on another.

    Raises:
        RunError: the two are not on the same data.
    """
    if _data(first) != _data(run):
        raise RunError(
            f"{run.place} is of {' '.join(_data(run))}, and {first.place} of "
            f"{' '.join(_data(first))}: a report compares runs on the same data"
        )


def _data(run: Run) -> tuple[str, ...]:
    note = (f"({run.data_note})",) if run.data_note else ()
    return (run.dataset, f"with {run.record.test_samples:,} test samples", *note)
