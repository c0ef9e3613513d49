"""Running checks without a test runner."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import implicitcore.testing.checks  # noqa: F401 - defines the checks
from implicitcore.errors import ConfigError, InputError, did_you_mean
from implicitcore.options.kinds import NAMED_KINDS, PACKAGES
from implicitcore.testing.check import CHECKS, Check, subject_of
from implicitcore.testing.expect import ContractError, NotApplicable
from implicitcore.testing.factory import Inputs
from implicitcore.testing.subjects import kind_of

Expected = Mapping[str, str] | Callable[[Any], Mapping[str, str]] | None
"""The reasons for which checks are expected to fail, by their names.

Or a function of the part that returns them.
"""


@dataclass(frozen=True)
class CheckResult:
    """What a check found.

    Attributes:
        name: of the check.
        status: ``passed``, ``failed``, ``skipped`` (the check says nothing about this part) or
            ``expected`` (it was expected to fail).
        message: why; empty where it passed.
    """

    name: str
    status: Literal["passed", "failed", "skipped", "expected"]
    message: str = ""


def checks_for(part_or_kind: Any) -> tuple[Check, ...]:
    """The checks of a kind of part.

    Arguments:
        part_or_kind: ``"root_solver"`` or another kind, or a part.

    Raises:
        InputError: it is no part; the package that has the checks of its kind is not installed.

    >>> checks_for("root_solver")[0].name
    'finds_the_root'
    """
    is_kind = isinstance(part_or_kind, str) and part_or_kind in NAMED_KINDS
    if not is_kind:
        subject_of(part_or_kind)  # refused here rather than once by every check
    kind = part_or_kind if is_kind else kind_of(part_or_kind)
    if kind in PACKAGES:
        _define_checks(kind)
    return tuple(CHECKS[kind])


def _define_checks(kind: str) -> None:
    """Import the checks that the package of a kind adds."""
    package = PACKAGES[kind]
    try:
        importlib.import_module(f"{package}.testing")
    except ModuleNotFoundError as error:
        home = package.replace("_", "-")
        raise InputError(f"the checks of a {kind} are in {home}: pip install {home}") from error


def run_checks(
    part: Any, *, expected_failed_checks: Expected = None, inputs: Inputs | None = None
) -> list[CheckResult]:
    """Run every check of the part's kind.

    Arguments:
        part: see :func:`~implicitcore.testing.parametrize.parametrize_with_checks`.
        expected_failed_checks: the same.
        inputs: the same.

    Returns:
        One result for each check. One that was expected to fail, and passed, has failed.

    Raises:
        InputError: it is no part.
        ConfigError: ``expected_failed_checks`` has a name that no check has.

    Example:
        >>> import implicitcore as ic
        >>> results = run_checks(ic.Anderson())
        >>> {result.status for result in results} <= {"passed", "skipped"}
        True
    """
    reasons = expected_of([part], expected_failed_checks)[0]
    return [
        _run(replace(check, inputs=inputs), part, reasons.get(check.name))
        for check in checks_for(part)
    ]


def check_names(part: Any) -> list[str]:
    """The names of the checks of a part."""
    return [check.name for check in checks_for(part)]


def expected_of(parts: Sequence[Any], expected: Expected) -> list[dict[str, str]]:
    """For each part the reasons for which its checks are expected to fail.

    Raises:
        ConfigError: no check has the name.
    """
    given = [dict(expected(part) if callable(expected) else expected or {}) for part in parts]
    names = [set(check_names(part)) for part in parts]
    # What is given for all parts names the checks of any of them.
    known = names if callable(expected) else [set().union(*names)] * len(names)
    problems = [
        f"expected_failed_checks: no check is named {name!r}{did_you_mean(name, sorted(each))}"
        for reasons, each in zip(given, known, strict=True)
        for name in reasons
        if name not in each
    ]
    if problems:
        raise ConfigError(list(dict.fromkeys(problems)))
    return given


def _run(check: Check, part: Any, reason: str | None) -> CheckResult:
    try:
        check(part)
    except NotApplicable as skipped:
        return CheckResult(check.name, "skipped", str(skipped))
    except ContractError as error:
        if reason is None:
            return CheckResult(check.name, "failed", str(error))
        return CheckResult(check.name, "expected", f"{reason} ({error})")
    if reason is not None:
        return CheckResult(check.name, "failed", f"it was expected to fail ({reason}), and passed")
    return CheckResult(check.name, "passed")
