"""What docstrings say of options: for the command line and the JSON schema."""

from __future__ import annotations

import dataclasses
import inspect
import re
from collections.abc import Iterator

_SECTION = re.compile(r"(Arguments|Attributes|Args):")
_ITEM = re.compile(r"( +)(\*{0,2}\w+)(?: \([^)]*\))?: +(.*)")
_ROLE = re.compile(r":\w+:`~?([^`]*)`")


def option_texts(cls: type) -> dict[str, str]:
    """What the sections ``Arguments`` and ``Attributes`` of a class and its bases say, by option.

    >>> from implicitcore import Anderson
    >>> option_texts(Anderson)["damping"]
    'in (0, 1].'
    """
    found: dict[str, str] = {}
    for owner in cls.__mro__:
        for name, text in _items(inspect.cleandoc(owner.__doc__ or "")):
            found.setdefault(name, text)
    return found


def option_summaries(cls: type) -> dict[str, str]:
    """The first sentence of each, without its full stop."""
    return {name: text.partition(". ")[0].rstrip(".") for name, text in option_texts(cls).items()}


def first_paragraph(documented: object) -> str:
    """The first paragraph of a docstring, of its base class where it has none of its own.

    A signature, which a dataclass writes where it has none, is no docstring.
    """
    text = inspect.getdoc(documented) or ""
    if dataclasses.is_dataclass(documented) and text.startswith(
        f"{getattr(documented, '__name__', '')}("
    ):
        return ""
    return _plain(text.partition("\n\n")[0])


def _items(text: str) -> Iterator[tuple[str, str]]:
    """The items of the sections.

    A name, a colon and a text, which goes on in lines that are further in.
    """
    lines = text.splitlines()
    starts = [place for place, line in enumerate(lines) if _SECTION.fullmatch(line)]
    for start in starts:
        section = list(_indented(lines[start + 1 :]))
        step = min((len(line) - len(line.lstrip()) for line in section), default=0)
        heads = [
            place
            for place, line in enumerate(section)
            if (found := _ITEM.fullmatch(line)) and len(found[1]) == step
        ]
        for head, end in zip(heads, [*heads[1:], len(section)], strict=True):
            found = _ITEM.fullmatch(section[head])
            if found:
                yield (
                    found[2],
                    _plain(" ".join([found[3], *map(str.strip, section[head + 1 : end])])),
                )


def _indented(lines: list[str]) -> Iterator[str]:
    for line in lines:
        if line and not line.startswith(" "):
            return
        if line.strip():
            yield line


def _plain(text: str) -> str:
    """The text without marks for the documentation builder."""
    return _ROLE.sub(r"\1", text).replace("``", "`")
