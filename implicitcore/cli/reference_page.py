"""The reference page: every part with its options, in Markdown for the documentation's builder."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from itertools import groupby

from implicitcore.cli.info import brief
from implicitcore.options.docstrings import option_summaries
from implicitcore.options.kinds import NAMED_KINDS
from implicitcore.options.option import Option
from implicitcore.options.options import options_of
from implicitcore.registry.part import Part

_HEAD = """\
<!-- Written by `implicitcore list --markdown` (`make reference`): do not edit. -->

# Parts

What can be named in a configuration, by kind. `implicitcore info KIND NAME` says the same of one
part, an installed plugin's too."""

_TITLES = {
    "layer": "Layers",
    "dynamics": "Dynamics",
    "root_solver": "Root solvers",
    "ode_solver": "ODE solvers",
    "gradient": "Gradient strategies",
    "backend": "Backends",
    "start": "Starts",
    "cell": "Cells",
    "dataset": "Data sets",
    "model": "Models",
    "table": "Tables of papers",
    "command": "Commands",
}


def reference_page(parts: Iterable[Part]) -> str:
    """The page of those parts, in their order.

    A section for each kind, and in it one for each part.

    Raises:
        PluginError: the code of a part cannot be imported.
    """
    lines = [_HEAD]
    for kind, members in groupby(parts, lambda part: part.kind):
        lines += ["", f"## {_TITLES[kind]}"]
        for part in members:
            lines += ["", *_section(part)]
    return "\n".join(lines) + "\n"


def _section(part: Part) -> Iterator[str]:
    yield from (f"### {part.name}", "", part.summary, "")
    if part.kind not in NAMED_KINDS:
        yield f"Provided by {part.provider}; its options: `implicitcore {part.name} --help`."
        return
    cls = part.load()
    yield f"{{py:class}}`~{cls.__module__}.{cls.__qualname__}`, provided by {part.provider}"
    options, texts = options_of(cls).values(), option_summaries(cls)
    if options:
        rows = (_row(option, texts.get(option.name, "")) for option in options)
        yield from (
            "",
            "| option | type | bounds | default | meaning |",
            "| --- | --- | --- | --- | --- |",
            *rows,
        )


def _row(option: Option, text: str) -> str:
    default = "required" if option.required else _code(brief(option.default))
    return (
        f"| {_code(option.name)} | {_code(option.type_text)} | {_code(option.bounds_text)} | "
        f"{default} | {_text(text)} |"
    )


def _text(text: str) -> str:
    """A sentence in which only code is marked.

    ``a * b`` emphasises nothing, and no bar ends the cell of the table.
    """
    pieces = text.replace("|", "\\|").split("`")
    pieces[::2] = [re.sub(r"([*_<>\[\]$])", r"\\\1", piece) for piece in pieces[::2]]
    return "`".join(pieces)


def _code(text: str) -> str:
    """Code, whose bars do not end the cell of a table."""
    return f"`{text}`".replace("|", "\\|") if text else ""
