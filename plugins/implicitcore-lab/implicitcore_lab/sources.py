"""Data of one's own: arrays, folders of images, texts and time series."""

from __future__ import annotations

import csv
from dataclasses import dataclass
from importlib.util import find_spec
from math import isfinite
from pathlib import Path
from typing import Annotated

import numpy as np
import torch
from annotated_types import Ge, Gt, Le, Lt
from PIL import Image, UnidentifiedImageError
from torch import Tensor

from implicitcore_lab.arrays import read_npz
from implicitcore_lab.data import Dataset, DataSource, Split, standardised
from implicitcore_lab.errors import DataError
from implicitcore_lab.pixels import Pixels

Share = Annotated[float, Gt(0), Lt(1)]
SPLIT_SEED = 0
SUFFIXES = (".png", ".jpg", ".jpeg")
LARGEST_SIDE = 4096
BITS = 8
BYTES = 256


@dataclass(frozen=True, kw_only=True)
class Npz(DataSource):
    """Arrays in an ``.npz`` file: ``x_train``, ``y_train``, ``x_test`` and ``y_test``.

    x is floating-point or uint8, ``[n, ...]``, and is standardised as a whole; y holds integers
    from 0, ``[n]``.

    Arguments:
        path: the file; ``--data-dir`` goes over it.
    """

    path: Path | None = None

    def load(self, data_dir: Path | None = None) -> Dataset:
        """Read the file."""
        path = _given(self.path, data_dir, "npz", "the .npz file")
        arrays = read_npz(path)
        wanted = {"x_train", "y_train", "x_test", "y_test"}
        if not wanted <= set(arrays):
            raise DataError(f"{path}: arrays {sorted(arrays)}, expected {sorted(wanted)}")
        classes = _classes([arrays["y_train"], arrays["y_test"]], path)
        parts = [
            _tensors(arrays[f"x_{part}"], arrays[f"y_{part}"], f"{path}:{part}")
            for part in ("train", "test")
        ]
        if parts[0][0].shape[1:] != parts[1][0].shape[1:]:
            raise DataError(
                f"{path}: x_test {list(parts[1][0].shape)}, expected the sample shape of x_train, "
                f"{list(parts[0][0].shape[1:])}"
            )
        return _scaled("npz", parts, classes)


@dataclass(frozen=True, kw_only=True)
class ImageFolder(DataSource):
    """PNG and JPEG files, a folder for each class: ``train/CAT/1.png``, ``test/CAT/2.png``.

    Without ``train`` and ``test`` the folders of the classes are split, the same way every time.

    Arguments:
        path: the folder; ``--data-dir`` goes over it.
        size: height and width that each image is scaled to.
        grey: one channel, not three.
        test_share: of the images that are tested on, where the folder does not say.
    """

    path: Path | None = None
    size: Annotated[int, Ge(4), Le(1024)] = 32
    grey: bool = False
    test_share: Share = 0.2

    def load(self, data_dir: Path | None = None) -> Dataset:
        """Read the images."""
        path = _given(self.path, data_dir, "image-folder", "the folder")
        given = [path / "train", path / "test"]
        if all(part.is_dir() for part in given):
            names = _folders(given[0])
            train, test = (self._read(part, names) for part in given)
        else:
            names = _folders(path)
            whole = self._read(path, names)
            train, test = _split_pixels(whole, self.test_share, path)
        return standardised("image-folder", (train, test, ""), classes=len(names))

    def _read(self, folder: Path, names: list[str]) -> Pixels:
        images, labels = [], []
        for label, name in enumerate(names):
            for file in sorted((folder / name).iterdir()):
                if file.suffix.lower() in SUFFIXES:
                    images.append(self._image(file))
                    labels.append(label)
        if not images:
            raise DataError(f"{folder}: no images, expected {', '.join(SUFFIXES)} in {names}")
        stacked = np.stack(images).reshape(len(images), self.size, self.size, -1)
        pixels = np.ascontiguousarray(stacked.transpose(0, 3, 1, 2))
        return Pixels.checked(pixels, np.array(labels), folder, classes=len(names))

    def _image(self, file: Path) -> np.ndarray:
        try:
            with Image.open(file) as image:  # reads the header alone
                if max(image.size) > LARGEST_SIDE:
                    raise DataError(
                        f"{file}: image {list(image.size)}, expected at most {LARGEST_SIDE} pixels "
                        "a side"
                    )
                whole = image.convert("L" if self.grey else "RGB")
                return np.asarray(whole.resize((self.size, self.size), Image.Resampling.BILINEAR))
        except (UnidentifiedImageError, Image.DecompressionBombError, OSError) as error:
            if isinstance(error, DataError):
                raise
            raise DataError(f"{file}: not an image ({error})") from error


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
        path = _given(self.path, data_dir, "time-series", "the CSV file")
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
        labels = torch.bucketize(rows[self.window :, 0].contiguous(), edges)
        windows = scaled.unfold(0, self.window, 1)[:count].transpose(1, 2)
        return _in_order(
            "time-series", windows[:, None].float(), labels, self.classes, self.test_share
        )


def _given(path: Path | None, data_dir: Path | None, name: str, what: str) -> Path:
    found = data_dir or path
    if found is None:
        raise DataError(f"{name}: give --data-dir {what}, or the option path")
    if "\0" in str(found) or not found.exists():
        raise DataError(f"{found}: no such file or folder")
    return found


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


def _folders(path: Path) -> list[str]:
    names = sorted(entry.name for entry in path.iterdir() if entry.is_dir())
    if len(names) < 2:
        raise DataError(f"{path}: folders {names}, expected one for each of two classes or more")
    return names


def _split_pixels(pixels: Pixels, share: float, path: Path) -> tuple[Pixels, Pixels]:
    count = round(share * len(pixels.labels))
    if not 0 < count < len(pixels.labels):
        raise DataError(f"{path}: {len(pixels.labels)} images are too few to split")
    order = np.random.default_rng(SPLIT_SEED).permutation(len(pixels.labels))
    test, train = np.sort(order[:count]), np.sort(order[count:])
    return (
        Pixels(pixels.images[train], pixels.labels[train]),
        Pixels(pixels.images[test], pixels.labels[test]),
    )


def _classes(labels: list[np.ndarray], path: Path) -> int:
    for each in labels:
        if each.dtype.kind not in "iu" or each.ndim != 1 or not each.size or each.min() < 0:
            raise DataError(
                f"{path}: labels {each.dtype} {list(each.shape)}, expected integers from 0, one "
                "for each sample"
            )
    return int(max(each.max() for each in labels)) + 1


def _tensors(x: np.ndarray, y: np.ndarray, source: str) -> tuple[Tensor, Tensor]:
    if x.dtype.kind not in "fu" or x.ndim < 2 or len(x) != len(y):
        raise DataError(
            f"{source}: x {x.dtype} {list(x.shape)} with y {list(y.shape)}, expected floating "
            "point or uint8 [n, ...], and one label for each"
        )
    images = torch.from_numpy(x.astype(np.float32))
    if not images.isfinite().all():
        raise DataError(f"{source}: x holds values that are not finite")
    return images, torch.from_numpy(y.astype(np.int64))


def _scaled(name: str, parts: list[tuple[Tensor, Tensor]], classes: int) -> Dataset:
    mean, deviation = parts[0][0].mean(), parts[0][0].std().clamp(min=1e-12)
    train, test = (Split((x - mean) / deviation, y) for x, y in parts)
    return Dataset(name, train, test, classes=classes)


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
