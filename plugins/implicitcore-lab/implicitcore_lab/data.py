"""The data sets: standardised float32 images with their labels, ready to train on."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from implicitcore_lab import cifar
from implicitcore_lab.errors import DataError
from implicitcore_lab.files import PublicFile, cache_dir, check_md5, fetch
from implicitcore_lab.idx import read_idx
from implicitcore_lab.pixels import CLASSES, Parts, Pixels

DIGITS_TEST_FRACTION = 0.2
DIGITS_SPLIT_SEED = 0
VALIDATION_SEED = 0
TINY = 1e-12  # a constant channel has no deviation to divide by
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


@dataclass(frozen=True)
class Split:
    """Images and labels of one part of a data set.

    Attributes:
        images: float32 ``[n, channels, height, width]``, standardised with the training part's mean
            and deviation.
        labels: int64 ``[n]``.
    """

    images: Tensor
    labels: Tensor

    def __len__(self) -> int:
        return len(self.labels)

    def first(self, count: int) -> Split:
        """The first samples."""
        return Split(self.images[:count], self.labels[:count])

    def rows(self, rows: Tensor) -> Split:
        """Some of the samples."""
        return Split(self.images[rows], self.labels[rows])

    def to(self, device: torch.device) -> Split:
        """The same split on ``device``."""
        return Split(self.images.to(device), self.labels.to(device))


@dataclass(frozen=True)
class Dataset:
    """A data set in memory.

    Attributes:
        name: its registered name.
        train: what is learnt from.
        test: what accuracy is measured on.
        classes: how many labels there are.
        note: what a report about it must say, or nothing.
        validation: what is held out of the training part, or None.
    """

    name: str
    train: Split
    test: Split
    classes: int = CLASSES
    note: str = ""
    validation: Split | None = None

    @property
    def shape(self) -> tuple[int, ...]:
        """Channels, height and width of an image."""
        return tuple(self.train.images.shape[1:])

    def to(self, device: torch.device) -> Dataset:
        """The same data on ``device``."""
        held_out = self.validation.to(device) if self.validation else None
        return replace(
            self, train=self.train.to(device), test=self.test.to(device), validation=held_out
        )

    def holding_out(self, fraction: float) -> Dataset:
        """The same data with a part of the training samples held out, the same ones in every run.

        Raises:
            DataError: so small a fraction of the samples is none, or so large a one is all.
        """
        if not fraction:
            return self
        count = round(fraction * len(self.train))
        if not 0 < count < len(self.train):
            raise DataError(
                f"validation: a fraction of {fraction:g} of {len(self.train)} training samples is "
                f"{count}, expected at least one, and one left to train on"
            )
        order = torch.randperm(
            len(self.train), generator=torch.Generator().manual_seed(VALIDATION_SEED)
        ).to(self.train.labels.device)
        return replace(
            self,
            train=self.train.rows(order[count:].sort().values),
            validation=self.train.rows(order[:count].sort().values),
        )


def load(name: str, data_dir: Path | None = None) -> Dataset:
    """Load a data set, from a folder of the user's or from its public home.

    Arguments:
        name: digits, mnist, fashion-mnist or cifar10.
        data_dir: folder with the files (for cifar10 also the file itself); without it they are
            downloaded once into the cache.

    Returns:
        The data set, standardised per channel.

    Raises:
        DataError: a file is missing, damaged or not the official one.
    """
    train, test, note = READERS[name](name, data_dir)
    mean, deviation = _moments(train.images)
    return Dataset(
        name, _standardise(train, mean, deviation), _standardise(test, mean, deviation), note=note
    )


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


def _moments(images: np.ndarray) -> tuple[Tensor, Tensor]:
    """Mean and standard deviation of each channel, exact.

    A byte has 256 values, so a histogram holds all there is.
    """
    values = np.arange(256)
    counts = np.stack(
        [
            np.bincount(images[:, channel].ravel(), minlength=256)
            for channel in range(images.shape[1])
        ]
    )
    mean = counts @ values / counts.sum(1)
    variance = counts @ values**2 / counts.sum(1) - mean**2
    as_channels = (1, -1, 1, 1)
    return torch.tensor(mean).float().view(as_channels), torch.tensor(
        np.sqrt(np.maximum(variance, TINY))
    ).float().view(as_channels)


def _standardise(pixels: Pixels, mean: Tensor, deviation: Tensor) -> Split:
    images = torch.tensor(pixels.images, dtype=torch.float32).sub_(mean).div_(deviation)
    return Split(images, torch.from_numpy(pixels.labels))


READERS: dict[str, Callable[[str, Path | None], Parts]] = {
    "digits": _digits,
    "mnist": _mnist,
    "fashion-mnist": _mnist,
    "cifar10": _cifar10,
}
