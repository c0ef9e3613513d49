"""The options of a part and of the parts inside it."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator
from typing import Any

import torch

from implicitcore.options.kinds import CLASS_KINDS
from implicitcore.testing.expect import NotApplicable

# The least tolerances that float32 can meet.
LEAST = {"tol": 1e-5, "rtol": 1e-5, "atol": 1e-6}


LIMITS = ("max_steps", "max_products")
"""The options that bound the work of a solver."""


def limited(most: int) -> dict[str, int]:
    """Options for :func:`with_options` that bound the work of any solver."""
    return dict.fromkeys(LIMITS, most)


def is_part(value: Any) -> bool:
    """Whether it is an object of one of the kinds."""
    return getattr(value, "kind", None) in CLASS_KINDS and not isinstance(value, type)


def parts_in(part: Any) -> Iterator[Any]:
    """The part and the parts inside it, the outermost first."""
    yield part
    for value in _values(part).values():
        for item in value if isinstance(value, tuple) else (value,):
            if is_part(item):
                yield from parts_in(item)


def stated(part: Any, name: str) -> Any:
    """The value of an option.

    Of the part, else the largest of the parts inside it, else None.
    """
    own = getattr(part, name, None)
    found = [value for inner in parts_in(part) if (value := getattr(inner, name, None)) is not None]
    return own if own is not None else max(found, default=None)


def needed(part: Any, name: str) -> Any:
    """The same, for a check that says nothing about a part that has no such option.

    Raises:
        NotApplicable: it has none.
    """
    value = stated(part, name)
    if value is None:
        raise NotApplicable(f"{type(part).__name__} has no option {name!r}")
    return value


def with_options(part: Any, **options: Any) -> Any:
    """The part with other options, which the parts inside it get too.

    Each is left out where it does not exist.

    Arguments:
        part: a frozen dataclass; anything else is returned as it is.
        **options: values, or functions of the old value.
    """
    changed = {
        name: _changed(value, options.get(name), options) for name, value in _values(part).items()
    }
    return dataclasses.replace(part, **changed) if changed else part


def for_dtype(part: Any, dtype: torch.dtype) -> Any:
    """The part with tolerances that the dtype can meet."""
    if dtype == torch.float64:
        return part
    return with_options(part, **{name: _at_least(least) for name, least in LEAST.items()})


def _at_least(least: float) -> Callable[[float], float]:
    return lambda old: max(old, least) if old else old


def _changed(old: Any, new: Any, options: dict[str, Any]) -> Any:
    if new is not None:
        return new(old) if callable(new) else new
    if isinstance(old, tuple):
        return tuple(with_options(item, **options) if is_part(item) else item for item in old)
    return with_options(old, **options) if is_part(old) else old


def _values(part: Any) -> dict[str, Any]:
    """The options and their values, of a dataclass."""
    if not dataclasses.is_dataclass(part) or isinstance(part, type):
        return {}
    return {
        field.name: getattr(part, field.name) for field in dataclasses.fields(part) if field.init
    }
