"""A table of figures, and what it looks like on a page, as CSV and as LaTeX."""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from implicitcore_lab.spread import Spread

FORMULA = ("=", "+", "-", "@", "\t", "\r")
"""What a spreadsheet takes for a formula where a text begins with it."""
EXPONENT = re.compile(r"e([+-]\d+)")
LATEX = str.maketrans(
    {
        "\\": r"\textbackslash{}",
        "{": r"\{",
        "}": r"\}",
        "$": r"\$",
        "&": r"\&",
        "#": r"\#",
        "%": r"\%",
        "_": r"\_",
        "^": r"\textasciicircum{}",
        "~": r"\textasciitilde{}",
        "<": r"\textless{}",
        ">": r"\textgreater{}",
        "|": r"\textbar{}",
        '"': r"\textquotedbl{}",
    }
)


Cell = str | int | float | Spread | None


@dataclass(frozen=True)
class Column:
    """One column.

    Attributes:
        key: its name in CSV and in a link to a sorted table.
        heading: what a reader sees.
        form: of a number, as ``format`` has it.
        factor: times which a number is shown; CSV has the number itself.
        spread: whether CSV has a second column, of the deviation.
    """

    key: str
    heading: str
    form: str = ""
    factor: float = 1
    spread: bool = False


@dataclass(frozen=True)
class Table:
    """A table by its rows.

    Attributes:
        name: of its files.
        title: what a reader sees.
        columns: from left to right.
        rows: a cell for each column; None is nothing measured.
    """

    name: str
    title: str
    columns: Sequence[Column]
    rows: Sequence[Sequence[Cell]]

    def used(self) -> Table:
        """The same without the columns in which no row has anything."""
        kept = [
            index
            for index in range(len(self.columns))
            if any(row[index] is not None for row in self.rows)
        ]
        return Table(
            self.name,
            self.title,
            [self.columns[index] for index in kept],
            [[row[index] for index in kept] for row in self.rows],
        )

    def is_number(self, index: int) -> bool:
        """Whether a column holds numbers."""
        return all(not isinstance(row[index], str) for row in self.rows)

    def as_csv(self) -> str:
        """The table as CSV, numbers in full, with a header."""
        stream = io.StringIO()
        writer = csv.writer(stream, lineterminator="\n")
        writer.writerow(name for column in self.columns for name in _csv_names(column))
        for row in self.rows:
            pairs = zip(self.columns, row, strict=True)
            writer.writerow(value for column, cell in pairs for value in _csv_cells(column, cell))
        return stream.getvalue()

    def as_latex(self) -> str:
        """The table as a LaTeX ``tabular``, with the rules of the package booktabs."""
        places = "".join(
            "r" if self.is_number(index) else "l" for index in range(len(self.columns))
        )
        lines = [
            "% needs \\usepackage[T1]{fontenc} and \\usepackage{booktabs}",
            f"\\begin{{tabular}}{{{places}}}",
            "\\toprule",
            _latex_row([latex_text(column.heading) for column in self.columns]),
            "\\midrule",
        ]
        for row in self.rows:
            cells = zip(self.columns, row, strict=True)
            lines.append(_latex_row([_latex_cell(column, cell) for column, cell in cells]))
        return "\n".join([*lines, "\\bottomrule", "\\end{tabular}", ""])


def shown(column: Column, cell: Cell, between: str = " ± ") -> str:
    """A cell as a reader sees it."""
    if cell is None:
        return "–"
    if isinstance(cell, str):
        return cell
    if not isinstance(cell, Spread):
        return _number(column, cell)
    middle = _number(column, cell.mean)
    if cell.deviation is None:
        return middle
    return f"{middle}{between}{_number(column, cell.deviation)}"


def sort_value(cell: Cell) -> str | float | None:
    """What a table is sorted by."""
    return cell.mean if isinstance(cell, Spread) else cell


def latex_text(text: str) -> str:
    """A text in which LaTeX sees letters alone."""
    return " ".join(text.split()).translate(LATEX)


def _number(column: Column, value: float) -> str:
    return format(value * column.factor if column.factor != 1 else value, column.form)


def _latex_cell(column: Column, cell: Cell) -> str:
    if cell is None:
        return "--"
    if isinstance(cell, str):
        return latex_text(cell)
    number = shown(column, cell, r" \pm ").replace(",", "{,}")
    return f"${EXPONENT.sub(_power, number)}$"


def _power(match: re.Match[str]) -> str:
    return f" \\cdot 10^{{{int(match[1])}}}"


def _latex_row(cells: Sequence[str]) -> str:
    return " & ".join(cells) + r" \\"


def _csv_names(column: Column) -> list[str]:
    return [column.key, f"{column.key}_deviation"] if column.spread else [column.key]


def _csv_cells(column: Column, cell: Cell) -> list[Any]:
    if isinstance(cell, Spread):
        return [cell.mean, "" if cell.deviation is None else cell.deviation][: 1 + column.spread]
    value = "" if cell is None else cell
    if isinstance(value, str) and value.startswith(FORMULA):
        value = f"'{value}"
    return [value, ""] if column.spread else [value]
