"""The parts that are checked: their kinds, and their names in test ids and messages."""

from __future__ import annotations

import functools
from collections.abc import Iterator
from typing import Any

from implicitcore.errors import InputError, show
from implicitcore.options.kinds import CLASS_KINDS, NAMED_KINDS, PIECE_KINDS
from implicitcore.options.options import options_of

MADE_FROM_CELLS = ("layer", "dynamics")
"""The kinds whose parts are given as classes: each check makes its own instances."""

MADE = (*MADE_FROM_CELLS, *PIECE_KINDS)
"""The kinds whose parts are modules: those of layers are given as classes or as objects."""


def kind_of(part: Any) -> str:
    """The kind of a part.

    Raises:
        InputError: it is no part, or a class where an object is needed, or the reverse.
    """
    owner = _owner(part)
    kind = getattr(owner, "kind", None)
    if kind not in NAMED_KINDS:
        raise InputError(
            f"expected a part ({', '.join(NAMED_KINDS)}), received {show(owner)}: derive "
            "it from the base class of its kind"
        )
    if kind in MADE_FROM_CELLS:
        if not isinstance(owner, type):
            name = type(owner).__name__
            raise InputError(
                f"expected a class, or functools.partial({name}, ...), for each check "
                f"makes {kind}s of its own; received {show(owner)}"
            )
    elif isinstance(owner, type) and kind not in MADE:
        raise InputError(
            f"expected an object, as {owner.__name__}(), received the class {owner.__name__}"
        )
    return kind


def label(part: Any) -> str:
    """The name of the part's class."""
    owner = _owner(part)
    return owner.__name__ if isinstance(owner, type) else type(owner).__name__


def full_label(part: Any) -> str:
    """The name of the part's class with the options that it was given."""
    if isinstance(part, functools.partial):
        given = [
            *map(_short, part.args),
            *(f"{name}={_short(value)}" for name, value in part.keywords.items()),
        ]
    else:
        given = [f"{name}={_short(value)}" for name, value in _set_options(part)]
    return f"{label(part)}({', '.join(given)})" if given else label(part)


def _owner(part: Any) -> Any:
    return part.func if isinstance(part, functools.partial) else part


def _set_options(part: Any) -> Iterator[tuple[str, Any]]:
    """The options of an object that are not their defaults."""
    if isinstance(part, type):
        return
    for option in options_of(type(part)).values():
        value = getattr(part, option.name, option.default)
        if value != option.default:
            yield option.name, value


def _short(value: Any) -> str:
    if isinstance(value, tuple):
        return f"({', '.join(map(_short, value))})"
    if isinstance(value, str | int | float):
        return repr(value)
    return full_label(value) if getattr(value, "kind", None) in CLASS_KINDS else show(value)
