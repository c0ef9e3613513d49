"""What a search found: the front, the recommended configuration, and the files that say so."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import yaml

from implicitcore import ConfigError, ImplicitLayer, describe
from implicitcore_lab.storage import storing, write_atomic
from implicitcore_lab.tuning.trials import Measured, Row

TRIALS, BEST, PICTURE = "trials.json", "best.yaml", "front.png"
PARTS = ("solver", "gradient", "backend")
NOISE = 1.02
"""A smaller gain in time is none."""


@dataclass(frozen=True)
class Tuned:
    """The result of :func:`implicitcore_lab.tune`.

    Attributes:
        rows: every trial; a refused one has its reason.
        front: those that no other beats in both time and gradient error, the fastest first.
        best: the fastest within ``max_gradient_error``, measured once more beside the default.
        speedup: time of the default over that of the best in that measurement.
        max_gradient_error: what was allowed.
        config: of the best: ``implicitcore.build(config, cell)`` makes it.
        reference: how the right gradient was computed.
    """

    rows: tuple[Row, ...]
    front: tuple[Row, ...]
    best: Row
    speedup: float
    max_gradient_error: float
    config: dict[str, Any]
    reference: str

    @property
    def default(self) -> Row:
        """Trial 0: the configuration that was given."""
        return next(row for row in self.rows if row.is_default)

    def summary(self) -> str:
        """One sentence: what was gained, or that nothing was."""
        allowed = f"a gradient error of at most {self.max_gradient_error:.2g}"
        default, best = self.default.measured, self.best.measured
        if self.best.is_default:
            if default is None:
                reason = self.default.reason
                return f"the default fails ({reason}), and nothing tried reaches {allowed}"
            place = "on the front" if self.default in self.front else "the fastest measured"
            return f"the default is {place}: nothing tried is faster at {allowed}"
        assert best is not None  # noqa: S101 - only what was measured is chosen
        error = f"gradient error {best.gradient_error:.2g}"
        if default is None:
            return f"trial {self.best.number}: {error}; the default fails ({self.default.reason})"
        gain = "at equal or smaller gradient error"
        if best.gradient_error > default.gradient_error:
            gain = f"within {allowed}"
        return (
            f"trial {self.best.number} is {self.speedup:.2f} times as fast as the default {gain} "
            f"({best.gradient_error:.2g}, the default's {default.gradient_error:.2g})"
        )

    def as_data(self) -> dict[str, Any]:
        """All of it, as JSON has it."""
        return {
            "schema": 1,
            "summary": self.summary(),
            "speedup": self.speedup,
            "best": self.best.number,
            "max_gradient_error": self.max_gradient_error,
            "front": [row.number for row in self.front],
            "config": self.config,
            "reference": self.reference,
            "trials": [asdict(row) | {"default": row.is_default} for row in self.rows],
        }

    def save(self, folder: Path) -> None:
        """Write ``trials.json``, ``best.yaml`` and ``front.png``.

        Raises:
            RunError: the folder cannot be written.
        """
        from implicitcore_lab.tuning.picture import draw

        with storing(folder):
            folder.mkdir(parents=True, exist_ok=True)
            text = json.dumps(self.as_data(), indent=2)
            write_atomic(folder / TRIALS, text.encode())
            write_atomic(folder / BEST, yaml.safe_dump(self.config, sort_keys=False).encode())
            draw(folder / PICTURE, self)


def front_of(rows: Sequence[Row]) -> tuple[Row, ...]:
    """The rows that no other beats in both time and gradient error, the fastest first."""
    found: list[Row] = []
    measured = [(row.measured, row) for row in rows if row.measured]
    least = float("inf")
    for it, row in sorted(measured, key=_time_then_error):
        if it.gradient_error < least:
            found.append(row)
            least = it.gradient_error
    return tuple(found)


def _time_then_error(pair: tuple[Measured, Row]) -> tuple[float, float, int]:
    it, row = pair
    return it.time_ratio, it.gradient_error, row.number


def config_of(layer: ImplicitLayer) -> dict[str, Any]:
    """The configuration of a layer; of one that is not registered that of its registered parts."""
    try:
        return layer.config
    except ConfigError:
        found = {name: _config_of_part(getattr(layer, name)) for name in PARTS}
        return {name: it for name, it in found.items() if it}


def _config_of_part(part: Any) -> dict[str, Any] | None:
    try:
        return describe(part)
    except ConfigError:
        return None
