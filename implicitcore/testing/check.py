"""A check: one promise of a kind of part, as a function that fails where the promise is broken."""

from __future__ import annotations

import inspect
import unittest
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from implicitcore.errors import ImplicitCoreWarning, InputError
from implicitcore.testing.subject import Inputs, kind_of, label, subject
from implicitcore.wording import describe_error, with_article


class ContractError(AssertionError):
    """A part broke a promise of its kind; the message says what was done, what was received and what was expected."""


class NotApplicable(unittest.SkipTest):
    """A check says nothing about this part, for the reason given; pytest and unittest count it as skipped."""


@dataclass(frozen=True)
class Check:
    """One promise of a kind of part. Call it with a part.

    Attributes:
        name: stable: plugins name it where they expect it to fail.
        kind: of the parts that it is for.
        function: does the work, on what :func:`~implicitcore.testing.subject.subject` makes of the part.
        inputs: where the inputs of a layer or of dynamics come from, where the kit's own do not fit.
    """

    name: str
    kind: str
    function: Callable[[Any], None]
    inputs: Inputs | None = None

    @property
    def summary(self) -> str:
        """The promise, in one line."""
        return (inspect.getdoc(self.function) or "").partition("\n")[0]

    def __call__(self, part: Any) -> None:
        """Check the part.

        Raises:
            ContractError: the part breaks the promise, or raised an error of its own.
            NotApplicable: the check says nothing about this part.
            InputError: the part is of another kind.
        """
        if kind_of(part) != self.kind:
            raise InputError(f"{self.name} checks {with_article(self.kind)}, received {label(part)}, {with_article(kind_of(part))}")
        with torch.random.fork_rng(devices=[]), warnings.catch_warnings():
            torch.manual_seed(0)
            # A tolerance that was not met is a status, which the checks read.
            warnings.simplefilter("ignore", ImplicitCoreWarning)
            try:
                self.function(subject(part, self.inputs))
            except (ContractError, NotApplicable):
                raise
            except Exception as error:
                raise ContractError(f"{self.name}: {label(part)} raised {describe_error(error)}") from error


CHECKS: dict[str, list[Check]] = {}
"""The checks of each kind, in the order of their definition; the package ``checks`` defines them."""


def contract(*kinds: str) -> Callable[[Callable[[Any], None]], Callable[[Any], None]]:
    """Make a function the check of its name, for these kinds."""

    def register(function: Callable[[Any], None]) -> Callable[[Any], None]:
        for kind in kinds:
            CHECKS.setdefault(kind, []).append(Check(function.__name__, kind, function))
        return function

    return register


def expect(holds: bool, did: str, received: Any, expected: Any) -> None:
    """Raise :class:`ContractError` where ``holds`` is false."""
    if not holds:
        raise ContractError(f"{did}: received {received}, expected {expected}")


def expect_equal(found: Tensor, expected: Tensor, did: str) -> None:
    """The very same values."""
    same = found.shape == expected.shape and torch.equal(found.nan_to_num(7.0), expected.nan_to_num(7.0))
    expect(same, did, _summary(found, expected), "equal values")


def expect_close(found: Tensor, expected: Tensor, did: str, bound: float) -> None:
    """Equal up to an error of ``bound``, relative to the largest entry (to 1, where that is less)."""
    if found.shape != expected.shape:
        expect(False, did, f"shape {list(found.shape)}", f"shape {list(expected.shape)}")
    error = (found.to(expected.dtype) - expected).abs().max().item() if expected.numel() else 0.0
    scale = max(1.0, expected.abs().max().item()) if expected.numel() else 1.0
    expect(error <= bound * scale, did, f"an error of {error / scale:.2g} ({_summary(found, expected)})", f"at most {bound:.2g}")


def _summary(found: Tensor, expected: Tensor) -> str:
    """The first entry that differs most."""
    if found.shape != expected.shape:
        return f"shape {list(found.shape)} for {list(expected.shape)}"
    if not found.numel():
        return "no entries"
    place = int((found.to(expected.dtype) - expected).abs().nan_to_num(torch.inf).argmax())
    return f"{found.flatten()[place].item():.6g} for {expected.flatten()[place].item():.6g}"
