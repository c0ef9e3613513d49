"""Values that are constants of a graph."""

from __future__ import annotations

from collections.abc import Iterable
from enum import Enum
from functools import lru_cache
from numbers import Number
from typing import Any

import torch

_PLAIN = (bool, Number, str, Enum, torch.dtype, torch.device, type(None))


@lru_cache(maxsize=1024)
def is_plain(kind: type) -> bool:
    """Whether a type is one of numbers, those of NumPy included, of strings, or the like.

    Such a value never changes: another one is put in its place.
    """
    return issubclass(kind, _PLAIN) or (kind.__module__ == "numpy" and kind.__name__ == "bool")


def told_apart(values: Iterable[Any]) -> tuple[Any, ...]:
    """What two lists of constants share only if a graph of the one is one of the other.

    By ``==`` alone 1, 1.0 and True were one, and so were 0.0 and -0.0.
    """
    return tuple((type(value), repr(value)) for value in values)
