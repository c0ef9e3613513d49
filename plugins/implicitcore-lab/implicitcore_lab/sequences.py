"""Data of one's own: texts and time series."""

from __future__ import annotations

import csv
from dataclasses import dataclass
from importlib.util import find_spec
from math import isfinite
from pathlib import Path
from typing import Annotated

import numpy as np
import torch
from annotated_types import Ge, Le
from torch import Tensor

from implicitcore_lab.data import Dataset, DataSource, Share, Split, given_path
from implicitcore_lab.errors import DataError

BYTES = 256


@dataclass(frozen=True, kw_only=True)
class Text(DataSource):
    """The next byte of a text, from the bytes before it: 256 classes.

    A sample is ``[1, window, 8]``, the bits of each byte as -1 and 1. The last part of the text is
    tested on. Without a file the text is the documentation of Python's own topics.

    Arguments:
        path: the file; ``--data-dir`` goes over it.
        window: bytes that are seen.
        samples: windows that are taken, evenly spaced.
        test_share: of them that are tested on.
    """

    path: Path | None = None
    window: Annotated[int, Ge(1), Le(4096)] = 16
    samples: Annotated[int, Ge(10), Le(10_000_000)] = 20_000
    test_share: Share = 0.2

    def load(self, data_dir: Path | None = None) -> Dataset:
        """Read the text."""
        path = data_dir or self.path or _python_topics()
        content = np.frombuffer(_bytes(path), np.uint8)
        last = len(content) - self.window
        if last < 10:
            raise DataError(
                f"{path}: {len(content)} bytes, expected at least {self.window + 10} for "
                f"windows of {self.window}"
            )
        starts = np.linspace(0, last - 1, min(self.samples, last)).astype(np.int64)
        windows = np.lib.stride_tricks.sliding_window_view(content, self.window)[starts]
        bits = np.unpackbits(windows[..., None], axis=-1).astype(np.float32) * 2 - 1
        labels = torch.from_numpy(content[starts + self.window].astype(np.int64))
        return _in_order("text", torch.from_numpy(bits)[:, None], labels, BYTES, self.test_share)


@dataclass(frozen=True, kw_only=True)
class TimeSeries(DataSource):
    """Which part of its range the next value of a series falls in, from the values before it.

    A sample is ``[1, window, columns]``, standardised; a class is one of equally frequent ranges of
    the first column. The last part of the series is tested on.

    Arguments:
        path: the CSV file, a row for each time, numbers alone but for a head; ``--data-dir`` goes
            over it.
        window: rows that are seen.
        classes: ranges.
        test_share: of the samples that are tested on.
    """

    path: Path | None = None
    window: Annotated[int, Ge(1), Le(4096)] = 16
    classes: Annotated[int, Ge(2), Le(100)] = 4
    test_share: Share = 0.2

    def load(self, data_dir: Path | None = None) -> Dataset:
        """Read the series."""
        path = given_path(self.path, data_dir, "time-series", "the CSV file")
        rows = torch.tensor(_numbers(path), dtype=torch.float64)
        count = len(rows) - self.window
        if count < 10:
            raise DataError(
                f"{path}: {len(rows)} rows, expected at least {self.window + 10} for "
                f"windows of {self.window}"
            )
        seen = rows[: round(count * (1 - self.test_share)) + self.window]
        scaled = (rows - seen.mean(0)) / seen.std(0).clamp(min=1e-12)
        places = torch.linspace(0, 1, self.classes + 1, dtype=torch.float64)[1:-1]
        edges = seen[:, 0].quantile(places)
        if not (edges.diff() > 0).all() or not seen[:, 0].min() < edges[0] <= seen[:, 0].max():
            raise DataError(
                f"{path}: the first column has too few different values for {self.classes} "
                "equally frequent ranges"
            )
        labels = torch.bucketize(rows[self.window :, 0].contiguous(), edges)
        windows = scaled.unfold(0, self.window, 1)[:count].transpose(1, 2)
        return _in_order(
            "time-series", windows[:, None].float(), labels, self.classes, self.test_share
        )


def _bytes(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except (OSError, ValueError) as error:
        raise DataError(f"{path} cannot be read: {error}") from error


def _python_topics() -> Path:
    found = find_spec("pydoc_data.topics")
    if found is None or not found.origin:
        raise DataError("text: this Python comes without its topics; give --data-dir a file")
    return Path(found.origin)


def _in_order(name: str, x: Tensor, y: Tensor, classes: int, share: float) -> Dataset:
    """The first samples to train on, the last to test on: a series is not shuffled."""
    first = len(x) - max(round(share * len(x)), 1)
    return Dataset(name, Split(x[:first], y[:first]), Split(x[first:], y[first:]), classes)


def _numbers(path: Path) -> list[list[float]]:
    """The rows of a CSV file, without its head."""
    try:
        with path.open(newline="", encoding="utf-8") as stream:
            lines = [line for line in csv.reader(stream) if line]
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise DataError(f"{path}: not a CSV file ({error})") from error
    rows = [_row(line) for line in lines]
    if rows and rows[0] is None:
        rows, lines = rows[1:], lines[1:]
    width = len(lines[0]) if lines else 0
    for number, (row, line) in enumerate(zip(rows, lines, strict=True), 1):
        if row is None or len(line) != width:
            raise DataError(f"{path}: row {number} is {line}, expected {width} finite numbers")
    return [row for row in rows if row is not None]


def _row(words: list[str]) -> list[float] | None:
    try:
        values = [float(word) for word in words]
    except ValueError:
        return None
    return values if all(map(isfinite, values)) else None
