"""Every error and warning that implicitcore raises.

ImplicitCoreError
├── InputError (ValueError)          a tensor, shape, dtype or time grid that cannot be used
├── ConfigError (ValueError)         options or a configuration: all problems, each with its path
├── RegistryError
│   ├── UnknownPartError (LookupError)     no such name (or kind); lists the near matches
│   ├── AmbiguousPartError (LookupError)   two distributions provide the name
│   └── PluginError                        a plugin that cannot be used
├── SolveError (RuntimeError)        a solve failed; holds the Solution (solution.py)
└── GradientError (RuntimeError)     a gradient that these parts cannot compute

ImplicitCoreWarning (UserWarning)
├── ConvergenceWarning               a tolerance was not met
├── InputWarning                     an input that can be used, and may not be what was meant
└── PluginWarning                    a plugin was skipped
"""

from __future__ import annotations

import reprlib
from collections.abc import Iterable, Sequence
from typing import Any

LONGEST, LONGEST_WORD = 5000, 100
"""The most letters of a message, and of a word that has near matches."""


class _Message:
    """What errors and warnings say: short enough to read, and safe for a terminal."""

    def __str__(self) -> str:
        return readable(super().__str__())


class ImplicitCoreError(_Message, Exception):
    """Base of every error raised on purpose by implicitcore."""


class InputError(ImplicitCoreError, ValueError):
    """A tensor, shape, dtype or time grid that cannot be used."""


class ConfigError(ImplicitCoreError, ValueError):
    """One or more problems with options or a configuration.

    Arguments:
        problems: one line per problem, each beginning with the path of the option
            (``root_solver.tol: ...``).
    """

    def __init__(self, problems: Sequence[str]) -> None:
        self.problems = tuple(problems)
        count = "1 problem" if len(self.problems) == 1 else f"{len(self.problems)} problems"
        super().__init__(f"{count}:\n" + "\n".join(f"  {problem}" for problem in self.problems))

    def __reduce__(self) -> tuple[type[ConfigError], tuple[tuple[str, ...]]]:
        return type(self), (self.problems,)


class RegistryError(ImplicitCoreError):
    """Base of the errors of the registry."""


class UnknownPartError(RegistryError, LookupError):
    """No part has that name, or no kind has that name."""


class AmbiguousPartError(RegistryError, LookupError):
    """Several distributions provide the name; ``distribution:name`` chooses one."""


class PluginError(RegistryError):
    """A plugin cannot be used; the message says which and why."""


class GradientError(ImplicitCoreError, RuntimeError):
    """These parts cannot compute the requested gradient, or not exactly."""


class ImplicitCoreWarning(_Message, UserWarning):
    """Base of every warning given by implicitcore."""


class ConvergenceWarning(ImplicitCoreWarning):
    """A solve or a backward solve ended above its tolerance."""


class InputWarning(ImplicitCoreWarning):
    """An input that can be used, and may not be what was meant."""


class PluginWarning(ImplicitCoreWarning):
    """A plugin was skipped; the message names it, the cause and how to silence it."""


def did_you_mean(word: object, known: Iterable[str], *, cutoff: float = 0.6) -> str:
    """The near matches as the end of a sentence.

    Arguments:
        word: what was given.
        known: the valid names.
        cutoff: the least similarity of a match, from 0 to 1.

    Returns:
        ``"; did you mean 'anderson'?"``, or an empty string without a match.

    >>> did_you_mean("andersen", ["anderson", "broyden"])
    "; did you mean 'anderson'?"
    >>> did_you_mean("tolerance", ["tol", "depth"])
    "; did you mean 'tol'?"
    """
    from difflib import get_close_matches  # imported for errors alone

    if not isinstance(word, str) or len(word) > LONGEST_WORD:
        return ""
    spelling = {name.casefold(): name for name in known}
    given = word.casefold()
    longer = [name for name in spelling if len(name) > 2 and given.startswith(name)]
    close = get_close_matches(given, spelling, n=3, cutoff=cutoff)
    near = list(dict.fromkeys([*close, *longer]))[:3]
    return f"; did you mean {' or '.join(repr(spelling[name]) for name in near)}?" if near else ""


def with_article(noun: str) -> str:
    """The noun with its article: an ode_solver, a layer."""
    return f"{'an' if noun[:1] in 'aeioAEIO' else 'a'} {noun}"


def describe_error(error: BaseException) -> str:
    """The type and the text of an error in one line: ``ImportError: No module named 'x'``."""
    try:
        text = " ".join(readable(str(error), 1000).split())
    except Exception:  # an error of somebody else, whose text has one of its own
        text = ""
    return f"{type(error).__name__}: {text}" if text else type(error).__name__


def readable(text: str, longest: int = LONGEST) -> str:
    r"""The text as it may reach a terminal.

    Its control characters are written out, but for the ends of lines, and the middle of a long one
    is left out.

    >>> readable("red: \x1b[31m")
    'red: \\x1b[31m'
    """
    if len(text) > longest:
        left_out = len(text) - longest + 60
        half = (longest - 60) // 2
        text = f"{text[:half]} ... ({left_out} letters are left out) ... {text[-half:]}"
    if text.isprintable():
        return text
    return "".join(
        letter if letter.isprintable() or letter == "\n" else ascii(letter)[1:-1] for letter in text
    )


def show(value: Any) -> str:
    """A short representation of a value, for messages."""
    if value is None or isinstance(value, str | int | float | list | tuple | dict):
        return reprlib.repr(value)
    if isinstance(value, type):
        return f"the class {value.__name__}"
    return f"{with_article(type(value).__name__)} object"
