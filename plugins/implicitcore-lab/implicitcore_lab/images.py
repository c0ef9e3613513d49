"""The image sets that everybody knows."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from implicitcore_lab import cifar
from implicitcore_lab.data import Dataset, DataSource, standardised
from implicitcore_lab.errors import DataError
from implicitcore_lab.files import PublicFile, cache_dir, check_md5, fetch
from implicitcore_lab.idx import read_idx
from implicitcore_lab.pixels import Parts, Pixels

DIGITS_TEST_FRACTION = 0.2
DIGITS_SPLIT_SEED = 0
IDX_NAMES = (
    "train-images-idx3-ubyte.gz",
    "train-labels-idx1-ubyte.gz",
    "t10k-images-idx3-ubyte.gz",
    "t10k-labels-idx1-ubyte.gz",
)
MNIST_HOMES = (
    "https://ossci-datasets.s3.amazonaws.com/mnist/",
    "https://storage.googleapis.com/cvdf-datasets/mnist/",
)
FASHION_HOMES = (
    "http://fashion-mnist.s3-website.eu-central-1.amazonaws.com/",
    "https://raw.githubusercontent.com/zalandoresearch/fashion-mnist/master/data/fashion/",
)
MNIST_MD5 = (
    "f68b3c2dcbeaaa9fbdd348bbdeb94873",
    "d53e105ee54ea40749a09fcbcd1e9432",
    "9fb629c4189551a2d022fa330f9573f3",
    "ec29112dd5afa0611ce80d1b7f02629c",
)
FASHION_MD5 = (
    "8d4fb7e6c68d591d4c3dfef9ec88bf0d",
    "25c81989df183df01b3e8a0aad5dffbe",
    "bef4ecab320f06d8554ea6380940ec79",
    "bb300cfdad3c16e7a12a480ee83cd310",
)
IDX_FILES = {
    "mnist": tuple(
        PublicFile(name, md5, MNIST_HOMES) for name, md5 in zip(IDX_NAMES, MNIST_MD5, strict=True)
    ),
    "fashion-mnist": tuple(
        PublicFile(name, md5, FASHION_HOMES)
        for name, md5 in zip(IDX_NAMES, FASHION_MD5, strict=True)
    ),
}


@dataclass(frozen=True, kw_only=True)
class Digits(DataSource):
    """The 1,797 handwritten digits of 8 x 8 pixels that come with scikit-learn."""

    defaults: ClassVar[Mapping[str, Any]] = {"hidden": 64, "threads": 1}

    def load(self, data_dir: Path | None = None) -> Dataset:
        """Read the data; a fifth of them, of each digit alike, are the test images."""
        return standardised("digits", _digits("digits", data_dir))


@dataclass(frozen=True, kw_only=True)
class MNIST(DataSource):
    """The 70,000 handwritten digits of 28 x 28 pixels, downloaded once from their public home."""

    defaults: ClassVar[Mapping[str, Any]] = {"epochs": 3, "threads": 1}

    def load(self, data_dir: Path | None = None) -> Dataset:
        """Read the official files."""
        return standardised("mnist", _mnist("mnist", data_dir))


@dataclass(frozen=True, kw_only=True)
class FashionMNIST(DataSource):
    """The 70,000 pictures of clothes of 28 x 28 pixels, downloaded once from their public home."""

    defaults: ClassVar[Mapping[str, Any]] = {"epochs": 5, "threads": 1}

    def load(self, data_dir: Path | None = None) -> Dataset:
        """Read the official files."""
        return standardised("fashion-mnist", _mnist("fashion-mnist", data_dir))


@dataclass(frozen=True, kw_only=True)
class CIFAR10(DataSource):
    """The 60,000 photographs of 32 x 32 pixels, downloaded once from their public home."""

    defaults: ClassVar[Mapping[str, Any]] = {"hidden": 32, "epochs": 10}

    def load(self, data_dir: Path | None = None) -> Dataset:
        """Read whichever form of the files is there."""
        return standardised("cifar10", _cifar10("cifar10", data_dir))


def _digits(name: str, data_dir: Path | None) -> Parts:
    if data_dir is not None:
        raise DataError(f"{data_dir}: {name} comes with scikit-learn and reads no --data-dir")
    from sklearn.datasets import load_digits
    from sklearn.model_selection import train_test_split

    images, labels = load_digits(return_X_y=True)
    images = images.astype(np.uint8).reshape(-1, 1, 8, 8)
    parts = train_test_split(
        images,
        labels,
        test_size=DIGITS_TEST_FRACTION,
        stratify=labels,
        random_state=DIGITS_SPLIT_SEED,
    )
    x_train, x_test, y_train, y_test = map(np.asarray, parts)
    return Pixels.checked(x_train, y_train, name), Pixels.checked(x_test, y_test, name), ""


def _mnist(name: str, data_dir: Path | None) -> Parts:
    paths = [_find(file, data_dir, name) for file in IDX_FILES[name]]
    images = [read_idx(path, 3)[:, None] for path in paths[::2]]
    labels = [read_idx(path, 1) for path in paths[1::2]]
    return (
        Pixels.checked(images[0], labels[0], paths[0]),
        Pixels.checked(images[1], labels[1], paths[2]),
        "",
    )


def _cifar10(name: str, data_dir: Path | None) -> Parts:
    return cifar.read_cifar10(data_dir or fetch(cifar.BINARY, cache_dir() / name))


def _find(file: PublicFile, data_dir: Path | None, name: str) -> Path:
    if data_dir is None:
        return fetch(file, cache_dir() / name)
    path = data_dir / file.name
    if not path.is_file():
        raise DataError(f"{path}: no such file, expected {', '.join(IDX_NAMES)} in {data_dir}")
    check_md5(path, file.md5)
    return path
