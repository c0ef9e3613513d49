"""Data of one's own: arrays and folders of images."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import numpy as np
import torch
from annotated_types import Ge, Le
from PIL import Image
from torch import Tensor

from implicitcore_lab.arrays import read_npz
from implicitcore_lab.data import Dataset, DataSource, Share, Split, given_path, standardised
from implicitcore_lab.errors import DataError, first_line
from implicitcore_lab.pixels import Pixels

SPLIT_SEED = 0
SUFFIXES = (".png", ".jpg", ".jpeg")
LARGEST_SIDE = 4096
BITS = 8
DEEP_MODES = ("I", "F")
"""Those of Pillow with more bits, which it would cut off."""


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
        path = given_path(self.path, data_dir, "npz", "the .npz file")
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
        path = given_path(self.path, data_dir, "image-folder", "the folder")
        given = [path / "train", path / "test"]
        if all(part.is_dir() for part in given):
            names, others = map(_folders, given)
            if names != others:
                raise DataError(f"{given[1]}: folders {others}, expected those of train, {names}")
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
                _check_image(image, file)
                whole = image.convert("L" if self.grey else "RGB")
                return np.asarray(whole.resize((self.size, self.size), Image.Resampling.BILINEAR))
        except DataError:
            raise
        except Exception as error:  # of a damaged file Pillow raises whatever it met
            raise DataError(f"{file}: not a whole image ({first_line(error)})") from error


def _check_image(image: Image.Image, file: Path) -> None:
    if max(image.size) > LARGEST_SIDE:
        raise DataError(
            f"{file}: image {list(image.size)}, expected at most {LARGEST_SIDE} pixels a side"
        )
    if image.mode[0] in DEEP_MODES:
        raise DataError(f"{file}: image of mode {image.mode}, expected {BITS} bits a channel")


def _folders(path: Path) -> list[str]:
    if not path.is_dir():
        raise DataError(f"{path}: a file, expected a folder with one folder for each class")
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
