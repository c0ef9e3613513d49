"""Checks as the tests of pytest, which nothing else here needs."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from implicitcore.testing.factory import Inputs
from implicitcore.testing.run import Expected, checks_for, expected_of
from implicitcore.testing.subjects import full_label, label

if TYPE_CHECKING:
    import pytest


def parametrize_with_checks(
    parts: Sequence[Any], *, expected_failed_checks: Expected = None, inputs: Inputs | None = None
) -> pytest.MarkDecorator:
    """A decorator for a test of ``part`` and ``check``.

    Every check of each part is a test, ``MySolver-finds_the_root``.

    Arguments:
        parts: objects for most kinds; for layer and dynamics a class, or a ``functools.partial`` of
            one, that is called with a cell f(z, x), or with nothing where it has none; for start
            and cell either.
        expected_failed_checks: for each check that is expected to fail the reason, by name; for all
            parts, or a function of the part that returns them. One that passes all the same fails
            the test.
        inputs: (batch, dtype) -> x, for layers whose x is not one tensor ``[batch, 6]``; for
            dynamics and cells it returns (z, x).

    Raises:
        InputError: one of the parts is none; a class where an object is needed, or the reverse.
        ConfigError: ``expected_failed_checks`` has a name that no check has.

    Example:
        >>> import implicitcore as ic
        >>> @parametrize_with_checks([ic.Picard(tol=1e-6)])
        ... def test_contract(part, check):
        ...     check(part)
    """
    import pytest

    shared = Counter(map(label, parts))
    rows = []
    for part, reasons in zip(parts, expected_of(parts, expected_failed_checks), strict=True):
        name = label(part) if shared[label(part)] == 1 else full_label(part)
        for check in checks_for(part):
            reason = reasons.get(check.name)
            marks = () if reason is None else (pytest.mark.xfail(reason=reason, strict=True),)
            rows.append(
                pytest.param(
                    part, replace(check, inputs=inputs), id=f"{name}-{check.name}", marks=marks
                )
            )
    return pytest.mark.parametrize(("part", "check"), rows)
