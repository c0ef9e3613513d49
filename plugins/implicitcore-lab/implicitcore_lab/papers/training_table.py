"""A table whose rows are trainings."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, ClassVar

from matplotlib.figure import Figure

from implicitcore import ConfigError
from implicitcore_lab.data import Dataset, load
from implicitcore_lab.engine import choose_device
from implicitcore_lab.experiment import check_settings, cpu_threads
from implicitcore_lab.papers.picture import draw_bars
from implicitcore_lab.papers.table import Budget, Figures, Job, Results, Row, Table
from implicitcore_lab.papers.turns import taken_together, train_in_turns
from implicitcore_lab.settings import Settings

RUNS = "runs"


class TrainingTable(Table):
    """A table whose rows are settings of ``implicitcore train``: data alone.

    All rows train on the same data with the same batches, a step of each in turn. Each row with
    each seed is a run of its own, ``runs/seed-N/ROW`` below the output folder.

    Attributes:
        common: the settings that all rows share.
        panels: the columns that the picture shows.
    """

    common: ClassVar[Mapping[str, Any]] = {}
    panels: ClassVar[Sequence[str]] = ("accuracy", "evaluations", "step_ms")

    def row_settings(self, row: Row, job: Job) -> Settings:
        """The settings of a row: the table's, the budget's, its own, and the command line's.

        Raises:
            ConfigError: lists every problem.
        """
        given = {**self.common, **job.budget.settings, **row.settings, **job.values}
        layer = given.pop("layer")
        try:
            (settings,) = check_settings(given, [layer])
        except ConfigError as error:
            raise ConfigError([f"row {row.name}: {text}" for text in error.problems]) from error
        return settings

    def measure(self, job: Job) -> Results:
        """Train every row with every seed, seed after seed."""
        each = {row.name: self.row_settings(row, job) for row in job.rows}
        first = next(iter(each.values()))
        data = cut_data(load(first.dataset, first.data_dir), job.budget).to(choose_device(first))
        results: dict[str, list[Figures]] = {name: [] for name in each}
        with cpu_threads(first):
            for seed in job.seeds:
                seeded = {name: replace(settings, seed=seed) for name, settings in each.items()}
                found = train_in_turns(seeded, data, job.output / RUNS / f"seed-{seed}", job)
                for name, figures in found.items():
                    results[name].append(figures)
        return results

    def circumstances(self, job: Job) -> Sequence[str]:
        """Which rows took turns with which, where a job went on from the runs of another."""
        return taken_together(job.rows, job.seeds, job.output / RUNS)

    def draw(self, figure: Figure, results: Results) -> None:
        """Bars of some columns, a panel each."""
        titles = {row.name: row.title for row in self.rows()}
        chosen = {column.name: column for column in self.columns}
        titled = {titles[name]: found for name, found in results.items()}
        draw_bars(figure, titled, [chosen[name] for name in self.panels])


def cut_data(data: Dataset, budget: Budget) -> Dataset:
    """The first samples, where the budget says how many."""
    train, test = budget.train, budget.test
    return replace(
        data,
        train=data.train.first(train) if train else data.train,
        test=data.test.first(test) if test else data.test,
    )
