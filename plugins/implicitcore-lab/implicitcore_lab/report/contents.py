"""The tables of a report."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

from implicitcore_lab.records import Epoch, Record
from implicitcore_lab.report.groups import Group, differing, text
from implicitcore_lab.report.tables import Cell, Column, Table
from implicitcore_lab.spread import Spread

Figure = Callable[[Record], float | None]


class Measured(NamedTuple):
    """A figure of a run.

    Attributes:
        column: where it stands.
        figure: of one run.
        over: what the seeds have together.
    """

    column: Column
    figure: Figure
    over: Callable[[list[float | None]], Cell] = Spread.of


def _last(name: str) -> Figure:
    """A figure of the last epoch."""
    return lambda record: getattr(record.epochs[-1], name)


def _mean(name: str) -> Figure:
    """The mean of a figure over the steps of all epochs."""

    def found(record: Record) -> float | None:
        steps = sum(epoch.steps for epoch in record.epochs)
        if not steps:
            return None
        return sum(getattr(epoch, name) * epoch.steps for epoch in record.epochs) / steps

    return found


def _worst(values: list[float | None]) -> Cell:
    found = [value for value in values if value is not None]
    return max(found) if found else None


def _sum(values: list[float | None]) -> Cell:
    return sum(value or 0 for value in values)


def _measured(key: str, heading: str, form: str, figure: Figure, factor: float = 1) -> Measured:
    return Measured(Column(key, heading, form, factor, spread=True), figure)


MEASURED = (
    _measured("test_accuracy", "test accuracy (%)", ".2f", lambda run: run.test_accuracy, 100),
    _measured(
        "explicit_accuracy", "accuracy without solve (%)", ".2f", _last("explicit_accuracy"), 100
    ),
    _measured(
        "validation_accuracy", "validation accuracy (%)", ".2f", _last("validation_accuracy"), 100
    ),
    _measured("loss", "training loss", ".4f", _last("loss")),
    _measured("test_loss", "test loss", ".4f", _last("test_loss")),
    _measured("seconds_per_step", "ms per step", ".2f", lambda run: run.seconds_per_step, 1e3),
    _measured("forward_ms", "forward ms", ".2f", _mean("forward_ms")),
    _measured("backward_ms", "backward ms", ".2f", _mean("backward_ms")),
    _measured("evaluations", "evaluations forward", ".1f", lambda run: run.evaluations),
    _measured(
        "evaluations_backward", "evaluations backward", ".1f", lambda run: run.evaluations_backward
    ),
    _measured("peak_bytes", "peak memory of a step (MB)", ".2f", lambda run: run.peak_bytes, 1e-6),
    Measured(Column("parameters", "parameters", ",d"), lambda run: run.parameters, _worst),
    Measured(
        Column("worst_residual", "worst residual", ".1e"), lambda run: run.worst_residual, _worst
    ),
    _measured("spectral_radius", "spectral radius of J", ".3f", _last("spectral_radius")),
    _measured("start_distance", "|z* - z0| / |z*|", ".3f", _last("start_distance")),
    Measured(
        Column("unconverged_train", "unconverged, training", ",d"),
        lambda run: run.unconverged_train,
        _sum,
    ),
    Measured(
        Column("unconverged_test", "unconverged, test", ",d"),
        lambda run: run.unconverged_test,
        _sum,
    ),
)
EPOCH_COLUMNS = (
    Column("seconds", "seconds", ".2f"),
    Column("loss", "training loss", ".4f"),
    Column("train_accuracy", "training accuracy (%)", ".2f", 100),
    Column("test_accuracy", "test accuracy (%)", ".2f", 100),
    Column("test_loss", "test loss", ".4f"),
    Column("explicit_accuracy", "accuracy without solve (%)", ".2f", 100),
    Column("validation_accuracy", "validation accuracy (%)", ".2f", 100),
    Column("validation_loss", "validation loss", ".4f"),
    Column("evaluations", "evaluations forward", ".1f"),
    Column("backward", "evaluations backward", ".1f"),
    Column("forward_ms", "forward ms", ".2f"),
    Column("backward_ms", "backward ms", ".2f"),
    Column("unconverged", "unconverged", ",d"),
    Column("spectral_radius", "spectral radius of J", ".3f"),
    Column("start_distance", "|z* - z0| / |z*|", ".3f"),
    Column("peak_bytes", "peak memory (MB)", ".1f", 1e-6),
    Column("learning_rate", "learning rate", ".2e"),
)


def tables(groups: Sequence[Group]) -> list[Table]:
    """Everything that a report says in numbers: results, runs, epochs, settings, environment."""
    found = (_results(groups), _runs(groups), _epochs(groups), _settings(groups), _machines(groups))
    return [table.used() for table in found]


def _results(groups: Sequence[Group]) -> Table:
    columns = [
        Column("layer", "layer"),
        Column("seeds", "seeds", "d"),
        Column("tolerance", "tolerance", ".0e"),
        *(measured.column for measured in MEASURED),
    ]
    rows: list[list[Cell]] = []
    for group in groups:
        records = [run.record for run in group.runs]
        figures = (measured.over(list(map(measured.figure, records))) for measured in MEASURED)
        rows.append([group.label, len(records), records[0].tolerance, *figures])
    return Table("results", "Results", columns, rows)


def _runs(groups: Sequence[Group]) -> Table:
    columns = [
        Column("layer", "layer"),
        Column("seed", "seed", "d"),
        Column("test_correct", "correct", ",d"),
        Column("test_samples", "test images", ",d"),
        Column("epochs", "epochs", "d"),
        *(_without_spread(measured.column) for measured in MEASURED),
        Column("directory", "directory"),
    ]
    rows: list[list[Cell]] = []
    for group in groups:
        for run in group.runs:
            record = run.record
            figures = (measured.figure(record) for measured in MEASURED)
            counts = (record.seed, record.test_correct, record.test_samples, len(record.epochs))
            rows.append([group.label, *counts, *figures, str(run.place)])
    return Table("runs", "Runs", columns, rows)


def _without_spread(column: Column) -> Column:
    return Column(column.key, column.heading, column.form, column.factor)


def _epochs(groups: Sequence[Group]) -> Table:
    columns = [Column("layer", "layer"), Column("seed", "seed", "d"), Column("epoch", "epoch", "d")]
    rows = [
        [group.label, run.record.seed, epoch.epoch, *_epoch_cells(epoch)]
        for group in groups
        for run in group.runs
        for epoch in run.record.epochs
    ]
    return Table("epochs", "Epochs", [*columns, *EPOCH_COLUMNS], rows)


def _epoch_cells(epoch: Epoch) -> list[Cell]:
    return [getattr(epoch, column.key) for column in EPOCH_COLUMNS]


def _settings(groups: Sequence[Group]) -> Table:
    """What all have in common once, and what they have not for each."""
    options = [group.options for group in groups]
    different = set(differing(options))
    rows: list[Sequence[Cell]] = [("seed", group.label, group.seeds()) for group in groups]
    for name in {name: None for each in options for name in each}:
        having = [group for group in groups if name in group.options]
        if name in different:
            rows += [(name, group.label, text(group.options[name])) for group in having]
        else:
            rows.append((name, "all", text(options[0][name])))
    columns = [Column("setting", "setting"), Column("layer", "layer"), Column("value", "value")]
    return Table("settings", "Settings", columns, rows)


def _machines(groups: Sequence[Group]) -> Table:
    """Facts of the machines, each with the layers that were measured there."""
    found: dict[tuple[str, str], dict[str, None]] = {}
    for group in groups:
        for run in group.runs:
            for name, value in run.machine.items():
                found.setdefault((name, _fact(value)), {})[group.label] = None
    rows: list[list[Cell]] = []
    for (name, value), labels in found.items():
        everywhere = len(labels) == len(groups)
        rows.append([name, value, "all" if everywhere else ", ".join(labels)])
    columns = [Column("fact", "fact"), Column("value", "value"), Column("layer", "layer")]
    return Table("environment", "Environment", columns, rows)


def _fact(value: Any) -> str:
    return "none" if value is None else text(value)
