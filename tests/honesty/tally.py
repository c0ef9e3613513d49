"""What a sweep has counted and found."""

from __future__ import annotations

import warnings
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TypeVar

import implicitcore as ic
from honesty.finding import Finding, Hang, bounded

Result = TypeVar("Result")

PATIENCE = 120
"""Seconds after which a call hangs."""


@dataclass
class Row:
    """One line of the table.

    Attributes:
        calls: solves, or inputs, or configurations.
        samples: in all of them.
        statuses: of the samples.
        refused: calls that ended in an error of the library.
        worst: the largest share of its limit that the residual of a converged sample has, or that
            the error of a trajectory has of what is allowed.
        findings: what was found.
    """

    calls: int = 0
    samples: int = 0
    statuses: Counter[str] = field(default_factory=Counter)
    refused: int = 0
    worst: float = 0.0
    findings: list[Finding] = field(default_factory=list)

    def add(self, other: Row) -> None:
        self.calls += other.calls
        self.samples += other.samples
        self.statuses.update(other.statuses)
        self.refused += other.refused
        self.worst = max(self.worst, other.worst)
        self.findings += other.findings

    def find(self, kind: str, case: str, text: str) -> None:
        self.findings.append(Finding(kind, case, text))


Tally = dict[tuple[str, str], Row]
"""The lines, by sweep and by what was asked."""


def merge(total: Tally, part: Tally) -> None:
    for key, row in part.items():
        total.setdefault(key, Row()).add(row)


def answer(row: Row, case: str, call: Callable[[], Result]) -> Result | None:
    """What a call returns; None where the library refused it, or where it is a finding.

    Warnings are errors, but for those of the library.
    """
    try:
        with warnings.catch_warnings(), bounded(PATIENCE):
            warnings.simplefilter("error")
            warnings.simplefilter("ignore", ic.ImplicitCoreWarning)
            return call()
    except ic.ImplicitCoreError:
        row.refused += 1
    except Hang as error:
        row.find("hang", case, str(error))
    except Exception as error:
        row.find("bare error", case, f"{type(error).__name__}: {error}")
    return None
