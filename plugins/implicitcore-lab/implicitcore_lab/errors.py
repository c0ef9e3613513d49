"""Errors of the lab, branches of the core's tree."""

from __future__ import annotations

from pathlib import Path

from implicitcore import ImplicitCoreError, InputError


class DataError(InputError):
    """A data file that is missing, damaged or not what it should be.

    Names the file, what came and what was expected.
    """


class TrainingError(ImplicitCoreError, RuntimeError):
    """Training cannot go on; names the step."""


class RunError(InputError):
    """A run directory that cannot be written to or read back."""


class Interrupted(ImplicitCoreError):
    """A training was told to stop and has written a checkpoint.

    Attributes:
        step: how many steps have been taken.
        signal: the number of the signal, where one came to this process.
    """

    def __init__(self, step: int, signal: int | None = None, where: str = "") -> None:
        super().__init__(
            f"stopped after step {step:,}, with a checkpoint{where}; go on with --resume"
        )
        self.step = step
        self.signal = signal

    def by(self, signal: int | None, path: Path) -> Interrupted:
        """The same, with what the command knows of it."""
        return Interrupted(self.step, signal, f" of {path}")


def first_line(error: BaseException) -> str:
    """What an error of another library says, in one line."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0]
