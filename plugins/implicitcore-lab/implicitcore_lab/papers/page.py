"""The page of a table: what the paper says, what was measured, and how; Markdown and HTML."""

from __future__ import annotations

import html
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

from implicitcore_lab.papers.table import Budget, Column, Results, Row, Table, spread

NOT_RUN = "<!-- not run: trains for minutes -->"
STYLE = (
    "body{font:16px/1.5 sans-serif;max-width:75em;margin:2em auto;padding:0 1em}"
    "table{border-collapse:collapse;display:block;overflow-x:auto}"
    "td,th{padding:.2em .6em;border-bottom:1px solid #ccc;text-align:right}"
    "td:first-child,th:first-child{text-align:left}"
    "pre{background:#f4f4f4;padding:.6em;overflow-x:auto}img{max-width:100%}"
)


@dataclass(frozen=True)
class Heading:
    """A heading."""

    text: str
    level: int = 2


@dataclass(frozen=True)
class Paragraph:
    """A paragraph."""

    text: str


@dataclass(frozen=True)
class Items:
    """A list."""

    items: Sequence[str]


@dataclass(frozen=True)
class Grid:
    """A table; the first row is its head."""

    rows: Sequence[Sequence[str]]


@dataclass(frozen=True)
class Command:
    """A command line."""

    text: str


@dataclass(frozen=True)
class Picture:
    """A picture beside the page."""

    file: str
    text: str


Block = Heading | Paragraph | Items | Grid | Command | Picture


@dataclass(frozen=True)
class Circumstances:
    """Under what circumstances a table was measured.

    Attributes:
        name: of the table.
        budget: its name.
        seeds: what was measured with.
        command: that measures it again.
        hardware: what it ran on, a line each.
    """

    name: str
    budget: str
    seeds: Sequence[int]
    command: str
    hardware: Sequence[str]


def blocks_of(
    table: Table, rows: Sequence[Row], results: Results, how: Circumstances
) -> list[Block]:
    """The page of a table.

    Arguments:
        table: what the paper says.
        rows: what was measured.
        results: their figures.
        how: the circumstances.
    """
    budget = table.budget(how.budget)
    blocks: list[Block] = [
        Heading(table.title, 1),
        Paragraph(f"{table.claim} ({table.reference})"),
    ]
    if table.claims:
        blocks += [Heading("Claims"), Grid(list(_claims(table, results)))]
    blocks += [Paragraph(text) for text in table.verdict(results)]
    blocks += [
        Heading("Measured"),
        Grid([["", *(column.title for column in table.columns)], *_measured(table, rows, results)]),
        Paragraph(_legend(table.columns, how.seeds)),
        Picture(f"{how.name}.png", f"The figures of {how.name}"),
    ]
    if any(row.theirs for row in rows):
        blocks += [Heading("The paper's figures"), Grid(list(_theirs(rows)))]
    less = (f"Budget {how.budget}: {budget.note}",) if budget.note else ()
    blocks += [
        Heading("What differs from the paper"),
        Items([*less, *table.differences]),
        Heading("Settings"),
        Items([*table.settings, *_own(how.budget, budget), f"Seeds: {_listed(how.seeds)}."]),
        Heading("Hardware"),
        Items(how.hardware),
        Heading("Measure it again"),
        Command(how.command),
    ]
    return blocks


def _own(name: str, budget: Budget) -> Iterator[str]:
    """What a budget sets, which goes over the settings above it."""
    parts = [f"{key} {value}" for key, value in budget.settings.items()]
    parts += [f"{budget.train:,} training images"] if budget.train else []
    parts += [f"{budget.test:,} test images"] if budget.test else []
    if parts:
        yield f"The budget {name}, over these: {_listed(parts)}."


def _listed(items: Iterable[object]) -> str:
    return ", ".join(map(str, items))


def _claims(table: Table, results: Results) -> Iterator[list[str]]:
    yield ["claim", "theirs", "ours", "ours / theirs"]
    for claim in table.claims:
        ours = claim.ours(results)
        theirs = format(claim.theirs, claim.form)
        if ours is None:
            yield [claim.text, theirs, "not measured", "-"]
        else:
            yield [claim.text, theirs, format(ours, claim.form), f"{ours / claim.theirs:.2f}"]


def _measured(table: Table, rows: Sequence[Row], results: Results) -> Iterator[list[str]]:
    for row in rows:
        found = results[row.name]
        yield [row.title, *(spread(found, column) for column in table.columns)]


def _theirs(rows: Sequence[Row]) -> Iterator[list[str]]:
    names = list(dict.fromkeys(name for row in rows for name in row.theirs))
    yield ["", *names]
    for row in rows:
        if row.theirs:
            yield [row.title, *(row.theirs.get(name, "-") for name in names)]


def _legend(columns: Sequence[Column], seeds: Sequence[int]) -> str:
    meanings = [f"{column.title}: {column.meaning}" for column in columns if column.meaning]
    several = [f"mean ± standard deviation of {len(seeds)} seeds"] if len(seeds) > 1 else []
    text = "; ".join([*meanings, *several])
    return text[:1].upper() + text[1:] + "."


def markdown(blocks: Sequence[Block]) -> str:
    """The blocks as Markdown."""
    return "\n\n".join(map(_markdown, blocks)) + "\n"


def _markdown(block: Block) -> str:
    match block:
        case Heading(text, level):
            return f"{'#' * level} {_plain(text)}"
        case Paragraph(text):
            return _plain(text)
        case Items(items):
            return "\n".join(f"- {_plain(item)}" for item in items)
        case Grid(rows):
            head, *body = [[_cell(cell) for cell in row] for row in rows]
            rule = ["---", *("---:" for _ in head[1:])]
            return "\n".join(f"| {' | '.join(row)} |" for row in (head, rule, *body))
        case Command(text):
            return f"{NOT_RUN}\n```bash\n{text}\n```"
        case Picture(file, text):
            return f"![{text}]({file})"


def _plain(text: str) -> str:
    """Text in which nothing is emphasised and no tag begins."""
    for sign in ("\\", "*", "_", "<", "$", "`"):
        text = text.replace(sign, f"\\{sign}")
    return text


def _cell(text: str) -> str:
    return _plain(text).replace("|", "\\|")


def markup(blocks: Sequence[Block]) -> str:
    """The blocks as one HTML page."""
    title = next(block.text for block in blocks if isinstance(block, Heading))
    body = "\n".join(map(_markup, blocks))
    return (
        f'<!doctype html>\n<html lang="en">\n<head><meta charset="utf-8">'
        f"<title>{html.escape(title)}</title><style>{STYLE}</style></head>\n"
        f"<body>\n{body}\n</body>\n</html>\n"
    )


def _markup(block: Block) -> str:
    match block:
        case Heading(text, level):
            return f"<h{level}>{html.escape(text)}</h{level}>"
        case Paragraph(text):
            return f"<p>{html.escape(text)}</p>"
        case Items(items):
            return f"<ul>{''.join(f'<li>{html.escape(item)}</li>' for item in items)}</ul>"
        case Grid(rows):
            head, *body = rows
            lines = [_line(head, "th"), *(_line(row, "td") for row in body)]
            return f"<table>{''.join(lines)}</table>"
        case Command(text):
            return f"<pre>{html.escape(text)}</pre>"
        case Picture(file, text):
            return f'<img src="{html.escape(file)}" alt="{html.escape(text)}">'


def _line(cells: Sequence[str], tag: str) -> str:
    return f"<tr>{''.join(f'<{tag}>{html.escape(cell)}</{tag}>' for cell in cells)}</tr>"
