"""Phrases that the error messages share."""

from __future__ import annotations

import reprlib
from collections.abc import Iterable
from typing import Any


def did_you_mean(word: object, known: Iterable[str], *, cutoff: float = 0.6) -> str:
    """The near matches as the end of a sentence.

    Arguments:
        word: what was given.
        known: what could have been given.
        cutoff: how near a match must be, from 0 to 1.

    Returns:
        ``"; did you mean 'anderson'?"``, or an empty string where nothing is near.

    >>> did_you_mean("andersen", ["anderson", "broyden"])
    "; did you mean 'anderson'?"
    """
    from difflib import get_close_matches  # only ever needed for an error

    spelling = {name.casefold(): name for name in known}
    near = get_close_matches(str(word).casefold(), spelling, n=3, cutoff=cutoff)
    return f"; did you mean {' or '.join(repr(spelling[name]) for name in near)}?" if near else ""


def with_article(noun: str) -> str:
    """The noun with its article: an ode_solver, a layer."""
    return f"{'an' if noun[:1] in 'aeioAEIO' else 'a'} {noun}"


def describe_error(error: BaseException) -> str:
    """The type and the text of an error in one line: ``ImportError: No module named 'x'``."""
    text = " ".join(str(error).split())
    return f"{type(error).__name__}: {text}" if text else type(error).__name__


def show(value: Any) -> str:
    """A value as messages show it: short."""
    if value is None or isinstance(value, str | int | float | list | tuple | dict):
        return reprlib.repr(value)
    return f"{with_article(type(value).__name__)} object"
