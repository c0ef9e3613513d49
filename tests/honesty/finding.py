"""What a sweep may find."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Finding:
    """A promise that was not kept.

    Attributes:
        kind: which one, in a few words: ``"lie"``, ``"bare error"``, ``"hang"``.
        text: what happened, with all that repeats it.
    """

    kind: str
    text: str
