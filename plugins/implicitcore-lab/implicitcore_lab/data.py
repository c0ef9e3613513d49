"""Data in memory, ready to train on, and the base of what reads it."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Any, ClassVar

import numpy as np
import torch
from annotated_types import Gt, Lt
from torch import Tensor

from implicitcore import create
from implicitcore.extend import Options
from implicitcore_lab.errors import DataError
from implicitcore_lab.pixels import CLASSES, Parts, Pixels

Share = Annotated[float, Gt(0), Lt(1)]
"""A part of the samples, neither none nor all."""
VALIDATION_SEED = 0
TINY = 1e-12  # a constant channel has no deviation to divide by


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


class DataSource(Options, ABC):
    """A data set by its name: the base of every part of the kind ``dataset``.

    A frozen dataclass; its fields are its options.

    Attributes:
        defaults: settings that it is trained with where none are given, as ``{"epochs": 3}``; the
            same for every layer.
    """

    kind: ClassVar[str] = "dataset"
    defaults: ClassVar[Mapping[str, Any]] = {}

    @abstractmethod
    def load(self, data_dir: Path | None = None) -> Dataset:
        """Read the data.

        Arguments:
            data_dir: the file or folder that ``--data-dir`` gives, or None.

        Returns:
            The data set in memory, the same one every time.

        Raises:
            DataError: a file is missing, damaged or not what it should be.
        """


def source(spec: str | Mapping[str, Any]) -> DataSource:
    """The data source that a setting names.

    Raises:
        ConfigError: there is none of that name, or its options cannot be used.
    """
    return create("dataset", spec, path="dataset")


def load(spec: str | Mapping[str, Any], data_dir: Path | None = None) -> Dataset:
    """Load a data set, from a folder of the user's or from its public home.

    Arguments:
        spec: a registered data set, or a mapping with its ``name`` and options.
        data_dir: folder with the files (for cifar10 also the file itself); without it they are
            downloaded once into the cache.

    Returns:
        The data set.

    Raises:
        ConfigError: there is none of that name, or its options cannot be used.
        DataError: a file is missing, damaged or not the official one.
    """
    return source(spec).load(data_dir)


def given_path(path: Path | None, data_dir: Path | None, name: str, what: str) -> Path:
    """Where the data of a source lie: at ``--data-dir``, else at its option ``path``.

    Arguments:
        path: the option.
        data_dir: goes over it.
        name: of the data set, for the message.
        what: lies there, for the message.

    Raises:
        DataError: neither is given, or nothing is there.
    """
    found = data_dir or path
    if found is None:
        raise DataError(f"{name}: give --data-dir {what}, or the option path")
    if "\0" in str(found) or not found.exists():
        raise DataError(f"{found}: no such file or folder")
    return found


def standardised(name: str, parts: Parts, classes: int = CLASSES) -> Dataset:
    """A data set of pixels, standardised per channel with the training part's mean and deviation.

    Arguments:
        name: of the data set.
        parts: pixels of the training and the test part, and what a report must say about them.
        classes: how many labels there are.
    """
    train, test, note = parts
    mean, deviation = _moments(train.images)
    return Dataset(
        name,
        _standardise(train, mean, deviation),
        _standardise(test, mean, deviation),
        classes=classes,
        note=note,
    )


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
