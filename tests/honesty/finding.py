"""What a sweep may find."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Finding:
    """What went wrong.

    Attributes:
        kind: which promise was not kept, in a few words.
        case: what was called, with the seed that makes it again.
        text: what happened.
    """

    kind: str
    case: str
    text: str

    def __str__(self) -> str:
        return f"{self.kind}: {self.case}: {self.text}"
