"""What a sweep has counted and found."""

from __future__ import annotations

import signal
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

from honesty.finding import Finding, Hang

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


@contextmanager
def bounded(seconds: int = PATIENCE) -> Iterator[None]:
    """Ends what takes longer with :class:`Hang`; in the main thread of a process."""

    def ring(*_: object) -> None:
        raise Hang(f"no answer in {seconds} s")

    before = signal.signal(signal.SIGALRM, ring)
    signal.alarm(seconds)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)
