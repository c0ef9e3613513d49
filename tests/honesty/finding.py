"""A call that must end in a right answer or an error of ours, and what it did instead."""

from __future__ import annotations

import signal
import threading
import traceback
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, NamedTuple

from implicitcore.errors import LONGEST, ImplicitCoreError

SECONDS = 60
"""What takes longer hangs."""


@dataclass(frozen=True)
class Finding:
    """What went wrong.

    Attributes:
        kind: "bare" (an error of others), "lie" (a wrong answer), "hang" or "text" (a message that
            is too long, or controls the terminal).
        case: what was called, with the seed that makes it again.
        text: what happened.
    """

    kind: str
    case: str
    text: str

    def __str__(self) -> str:
        return f"{self.kind}: {self.case}: {self.text}"


def nothing() -> None:
    """What a function of the user's that is fit does when it is called alone."""


class Case(NamedTuple):
    """A call to examine.

    Attributes:
        told: says what is called.
        call: is made.
        lie: what is wrong with what it returned; empty where nothing is.
        own: calls the user's function alone: an error that it has there is its own.
    """

    told: str
    call: Callable[[], Any]
    lie: Callable[[Any], str]
    own: Callable[[], Any] = nothing


class Hang(BaseException):
    """The call took too long."""


@contextmanager
def bounded(seconds: int) -> Iterator[None]:
    """Raise :class:`Hang` after a while, where this thread can be told."""
    if threading.current_thread() is not threading.main_thread() or not hasattr(signal, "SIGALRM"):
        yield
        return

    def ring(*_: object) -> None:
        raise Hang(f"no answer in {seconds} s")

    before = signal.signal(signal.SIGALRM, ring)
    signal.alarm(seconds)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)


def examine(case: Case, seed: str) -> Finding | None:
    """Make a call, and see what is wrong with how it ended; without warnings."""
    told = f"{seed} {case.told}"
    try:
        with bounded(SECONDS), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            wrong = case.lie(case.call())
    except ImplicitCoreError as error:
        return _text(told, str(error))
    except Hang:
        return Finding("hang", told, f"more than {SECONDS} seconds")
    except Exception as error:
        return None if _is_own(error, case.own) else _bare(told, error)
    return Finding("lie", told, wrong) if wrong else None


def _is_own(error: Exception, own: Callable[[], Any]) -> bool:
    """Whether the user's function alone ends in an error of that type, too."""
    try:
        own()
    except Exception as found:
        return type(found) is type(error)
    return False


def _bare(case: str, error: Exception) -> Finding:
    place = traceback.extract_tb(error.__traceback__)[-1]
    where = f"{place.filename.rpartition('/')[2]}:{place.lineno}"
    return Finding("bare", case, f"{type(error).__name__}: {str(error)[:200]} ({where})")


def _text(case: str, message: str) -> Finding | None:
    if len(message) > LONGEST:
        return Finding("text", case, f"a message of {len(message)} letters")
    if not message.replace("\n", "").isprintable():
        return Finding("text", case, f"control characters in {message!r}"[:300])
    return None
