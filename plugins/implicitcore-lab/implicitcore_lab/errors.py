"""Errors of the lab, branches of the core's tree."""

from __future__ import annotations

from implicitcore import ImplicitCoreError, InputError


class DataError(InputError):
    """A data file that is missing, damaged or not what it should be.

    Names the file, what came and what was expected.
    """


class TrainingError(ImplicitCoreError, RuntimeError):
    """Training cannot go on; names the step."""


class RunError(InputError):
    """A run directory that cannot be written to or read back."""
