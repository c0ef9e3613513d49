"""Warnings of what may happen in every solve: once, then at intervals, at the user's line."""

from __future__ import annotations

import functools
import sys
import threading
import warnings
from collections.abc import Callable, Hashable
from types import FrameType
from typing import Any
from weakref import WeakKeyDictionary

from implicitcore.dynamics.base import Dynamics
from implicitcore.errors import ImplicitCoreWarning

_INTERVAL = 10
"""Given at the first time, the 10th, the 100th and so on."""

_counts: WeakKeyDictionary[Any, dict[Hashable, int]] = WeakKeyDictionary()
_lock = threading.Lock()


def warn_repeatedly(
    owner: Any,
    cause: Hashable,
    message: Callable[[], str],
    category: type[ImplicitCoreWarning],
) -> None:
    """Warn of a cause that an owner may have in each solve: not in each.

    It is given at the first time and each time that the count is a power of ten, with the count;
    and every time where a filter makes it an error, for nothing else would tell then. It points at
    the line that called this library, also through ``nn.Module`` and ``nn.Sequential``.

    Arguments:
        owner: a layer, or what :func:`owner_of` gives; kept by a weak reference.
        cause: one of few: a count is kept for each.
        message: makes the text, where it is needed.
        category: of the warning.
    """
    count = _counted(owner, cause)
    is_due = str(count).rstrip("0") == "1"
    if is_due:
        text = message() if count == 1 else f"{message()} ({_times(count)})"
        warnings.warn(text, category, stacklevel=_level())
    elif _is_error(category):
        warnings.warn(message(), category, stacklevel=_level())


def owner_of(dynamics: Dynamics) -> Any:
    """What stands for dynamics in :func:`warn_repeatedly`: the user's module, or a function's code.

    A function that is made anew in each iteration of a training loop is one.
    """
    found = getattr(dynamics, "cell", getattr(dynamics, "field", dynamics))
    while isinstance(found, functools.partial):
        found = found.func
    found = getattr(found, "__func__", found)
    return getattr(found, "__code__", found)


def forget_counts() -> None:
    """Begin again, as a new process does."""
    with _lock:
        _counts.clear()


def _counted(owner: Any, cause: Hashable) -> int:
    with _lock:
        try:
            counts = _counts.setdefault(owner, {})
        except TypeError:  # an object without a hash or a weak reference
            counts = _counts.setdefault(type(owner), {})
        counts[cause] = counts.get(cause, 0) + 1
        return counts[cause]


def _times(count: int) -> str:
    return f"for the {count}th time; said again at the {count * _INTERVAL}th"


def _is_error(category: type[Warning]) -> bool:
    """Whether the first filter for the category makes it an error."""
    for action, text, kind, module, line in warnings.filters:
        if issubclass(category, kind) and not (text or module or line):
            return action == "error"
    return False


def _level() -> int:
    """The ``stacklevel`` of the user's line, for a call of ``warnings.warn`` by the caller."""
    frame, level = sys._getframe(1), 1
    while frame.f_back is not None and _is_inside(frame):
        frame, level = frame.f_back, level + 1
    return level


def _is_inside(frame: FrameType) -> bool:
    """Whether the frame is of this library, its plugins or torch."""
    root = str(frame.f_globals.get("__name__", "")).partition(".")[0]
    return root in ("torch", "contextlib") or root.startswith("implicitcore")
