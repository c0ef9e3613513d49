"""Every error and warning that implicitcore raises.

ImplicitCoreError
├── InputError (ValueError)          a tensor, shape, dtype or time grid that cannot be used
├── ConfigError (ValueError)         options or a configuration: one error, all problems, each with its path
├── RegistryError
│   ├── UnknownPartError (LookupError)     no such name (or kind); lists the near matches
│   ├── AmbiguousPartError (LookupError)   two distributions provide the name
│   └── PluginError                        a plugin that cannot be used, and why
├── SolveError (RuntimeError)        a solve ended without an answer; carries the Solution
└── GradientError (RuntimeError)     a gradient that cannot be computed exactly as asked

ImplicitCoreWarning (UserWarning)
├── ConvergenceWarning               a tolerance was not met
└── PluginWarning                    a plugin was left out
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from implicitcore.solution import Solution


class ImplicitCoreError(Exception):
    """Base of every error raised on purpose by implicitcore."""


class InputError(ImplicitCoreError, ValueError):
    """A tensor, shape, dtype or time grid that cannot be used."""


class ConfigError(ImplicitCoreError, ValueError):
    """One or more problems with options or a configuration.

    Arguments:
        problems: one line per problem, each beginning with the path of the option (``root_solver.tol: ...``).
    """

    def __init__(self, problems: Sequence[str]) -> None:
        self.problems = tuple(problems)
        count = "1 problem" if len(self.problems) == 1 else f"{len(self.problems)} problems"
        super().__init__(f"{count}:\n" + "\n".join(f"  {problem}" for problem in self.problems))

    def __reduce__(self) -> tuple[type[ConfigError], tuple[tuple[str, ...]]]:
        return type(self), (self.problems,)


class RegistryError(ImplicitCoreError):
    """The registry cannot give what was asked for."""


class UnknownPartError(RegistryError, LookupError):
    """No part has that name, or no kind has that name."""


class AmbiguousPartError(RegistryError, LookupError):
    """Several distributions provide the name; ``distribution:name`` chooses one."""


class PluginError(RegistryError):
    """A plugin cannot be used; the message says which and why."""


class SolveError(ImplicitCoreError, RuntimeError):
    """A solve ended without an answer for at least one sample.

    Arguments:
        message: what failed.
        solution: the solution with its status per sample.
    """

    def __init__(self, message: str, solution: Solution | None = None) -> None:
        super().__init__(message)
        self.solution = solution


class GradientError(ImplicitCoreError, RuntimeError):
    """The gradient asked for cannot be computed exactly with these parts."""


class ImplicitCoreWarning(UserWarning):
    """Base of every warning given by implicitcore."""


class ConvergenceWarning(ImplicitCoreWarning):
    """A solve or a backward solve ended above its tolerance."""


class PluginWarning(ImplicitCoreWarning):
    """A plugin was left out; the message names it, the cause and how to silence it."""
