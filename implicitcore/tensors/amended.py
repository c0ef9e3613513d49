"""Copies of dataclasses, at a fifth of the time of ``dataclasses.replace``."""

from __future__ import annotations

from typing import Any, TypeVar

_T = TypeVar("_T")


def amended(value: _T, **changes: Any) -> _T:
    """A copy of a dataclass with other values of some fields, which every solve makes a few of.

    ``__init__`` and ``__post_init__`` do not run: for fields from which nothing else follows.
    """
    copy = object.__new__(type(value))
    copy.__dict__.update(value.__dict__, **changes)
    return copy
