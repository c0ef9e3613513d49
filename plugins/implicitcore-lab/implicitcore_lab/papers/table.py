"""What a table of a paper is: rows, columns, the paper's figures and budgets, all of it data."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from pathlib import Path
from statistics import mean, stdev
from typing import Any, ClassVar

from matplotlib.figure import Figure
from rich.console import Console

from implicitcore import ConfigError
from implicitcore.extend import Options, did_you_mean

Figures = Mapping[str, float | None]
"""What was measured of a row with one seed, by the names of the columns."""

Results = Mapping[str, Sequence[Figures]]
"""Of each row, the figures of each seed."""


@dataclass(frozen=True)
class Column:
    """A column.

    Attributes:
        name: of the figure.
        title: above the column.
        form: how a value is written, as ``format`` takes it.
        meaning: what it is, in the page's legend; empty where the title says it.
    """

    name: str
    title: str
    form: str = ".3g"
    meaning: str = ""


@dataclass(frozen=True)
class Row:
    """A row.

    Attributes:
        name: of lower-case letters, digits, ``-`` and ``.``.
        title: in the table.
        settings: of the training, as ``implicitcore train --config`` takes them, or whatever else
            the table's :meth:`Table.measure` reads.
        theirs: the paper's figures as it prints them, by the names of the columns.
    """

    name: str
    title: str
    settings: Mapping[str, Any] = field(default_factory=dict)
    theirs: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Claim:
    """A sentence of the paper with a number, and what it is compared with.

    Ours is the row's figure; with ``over`` that of the other row divided by it.

    Attributes:
        text: the sentence.
        theirs: the number.
        column: of which figure.
        row: of which row.
        over: the other row, of a ratio.
        form: how a number is written.
    """

    text: str
    theirs: float
    column: str
    row: str
    over: str = ""
    form: str = ".2f"

    def ours(self, results: Results) -> float | None:
        """The number measured; None where a row of it was not."""
        value = average(results.get(self.row, ()), self.column)
        if not self.over or value is None:
            return value
        other = average(results.get(self.over, ()), self.column)
        return other / value if other is not None and value else None


@dataclass(frozen=True)
class Budget:
    """How much is spent.

    Attributes:
        settings: what all rows have in common, over the table's own.
        rows: patterns of the names of the rows, as ``skip-*``.
        train: so many training images, the first ones; None takes all.
        test: so many test images, the first ones; None takes all.
        note: what is less than in the paper, for the page.
    """

    settings: Mapping[str, Any] = field(default_factory=dict)
    rows: tuple[str, ...] = ("*",)
    train: int | None = None
    test: int | None = None
    note: str = ""


@dataclass(frozen=True)
class Job:
    """What is to be measured, and where it goes.

    Attributes:
        rows: the rows.
        budget: how much is spent.
        seeds: one measurement of each row for each.
        output: a folder.
        resume: go on from what an earlier job left in it.
        values: settings of the command line, over all others.
        console: where progress is shown.
    """

    rows: Sequence[Row]
    budget: Budget
    seeds: Sequence[int]
    output: Path
    resume: bool
    values: Mapping[str, Any]
    console: Console


class Table(Options, ABC):
    """A table of a paper by its name: the base of every part of the kind ``table``.

    A frozen dataclass; its fields are its options.

    Attributes:
        title: of the page.
        reference: of the paper.
        claim: what the paper says, in a sentence or two.
        columns: what is measured.
        claims: its numbers.
        budgets: by their names.
        settings: of all rows, a line each on the page.
        differences: what is not as in the paper.
    """

    kind: ClassVar[str] = "table"
    title: ClassVar[str]
    reference: ClassVar[str]
    claim: ClassVar[str]
    columns: ClassVar[Sequence[Column]]
    claims: ClassVar[Sequence[Claim]] = ()
    budgets: ClassVar[Mapping[str, Budget]]
    settings: ClassVar[Sequence[str]] = ()
    differences: ClassVar[Sequence[str]] = ()

    @abstractmethod
    def rows(self) -> Sequence[Row]:
        """All rows, in the order of the table."""

    @abstractmethod
    def measure(self, job: Job) -> Results:
        """Measure the rows of a job.

        What is finished is kept in ``job.output``, and found there again with ``job.resume``.

        Raises:
            Interrupted: a signal came.
        """

    @abstractmethod
    def draw(self, figure: Figure, results: Results) -> None:
        """Draw the picture of the page."""

    def verdict(self, results: Results) -> Sequence[str]:
        """What the figures say of the paper's claim, a paragraph each."""
        del results
        return ()

    def circumstances(self, job: Job) -> Sequence[str]:
        """What else the page says of how a measured job was measured, a line each."""
        del job
        return ()

    def budget(self, name: str) -> Budget:
        """The budget of that name.

        Raises:
            ConfigError: there is none.
        """
        if name not in self.budgets:
            near = did_you_mean(name, self.budgets)
            raise ConfigError(
                [f"budget: unknown {name!r}{near} (budgets: {', '.join(self.budgets)})"]
            )
        return self.budgets[name]

    def choose(self, patterns: Sequence[str]) -> list[Row]:
        """The rows that one of the patterns fits.

        Raises:
            ConfigError: lists the patterns that fit none.
        """
        names = [row.name for row in self.rows()]
        problems = [
            f"rows: no row {pattern!r}{did_you_mean(pattern, names)} (rows: {', '.join(names)})"
            for pattern in patterns
            if not any(fnmatchcase(name, pattern) for name in names)
        ]
        if problems:
            raise ConfigError(problems)
        return [row for row in self.rows() if any(fnmatchcase(row.name, each) for each in patterns)]


def values(figures: Sequence[Figures], column: str) -> list[float]:
    """The figures of all seeds that have one."""
    found = [each.get(column) for each in figures]
    return [value for value in found if value is not None]


def average(figures: Sequence[Figures], column: str) -> float | None:
    """Their mean; None where there is none."""
    found = values(figures, column)
    return mean(found) if found else None


def spread(figures: Sequence[Figures], column: Column) -> str:
    """Their mean as the column writes it, and the standard deviation where they differ."""
    found = values(figures, column.name)
    if not found:
        return "-"
    middle = format(mean(found), column.form)
    if len(set(found)) < 2:
        return middle
    return f"{middle} ± {format(stdev(found), column.form)}"
