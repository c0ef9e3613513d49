"""Images and labels as the files hold them, checked once for every format."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from implicitcore_lab.errors import DataError

CLASSES = 10


@dataclass(frozen=True)
class Pixels:
    """Raw images with their labels.

    Attributes:
        images: uint8 ``[n, channels, height, width]``.
        labels: int64 ``[n]``, each in 0 .. 9.
    """

    images: np.ndarray
    labels: np.ndarray

    @classmethod
    def checked(
        cls,
        images: np.ndarray,
        labels: np.ndarray,
        source: Path | str,
        classes: int = CLASSES,
    ) -> Pixels:
        """Pixels whose parts fit each other.

        Arguments:
            images: ``[n, channels, height, width]``.
            labels: ``[n]``.
            source: the file to name in an error.
            classes: how many labels there are.

        Raises:
            DataError: another dtype or dimension, different counts, no images, or a label outside 0
                .. 9.
        """
        if images.dtype != np.uint8 or images.ndim != 4:
            raise DataError(
                f"{source}: images {images.dtype} {list(images.shape)}, expected uint8 in "
                "4 dimensions"
            )
        if labels.shape != images.shape[:1] or not len(labels):
            raise DataError(
                f"{source}: labels {list(labels.shape)} for images {list(images.shape)}, "
                "expected one label per image"
            )
        if labels.dtype.kind not in "iu":
            raise DataError(f"{source}: labels {labels.dtype}, expected integers")
        if labels.min() < 0 or labels.max() >= classes:
            raise DataError(
                f"{source}: labels {labels.min()} .. {labels.max()}, expected 0 .. {classes - 1}"
            )
        return cls(images, labels.astype(np.int64))


Parts = tuple[Pixels, Pixels, str]
"""Train pixels, test pixels and what a report must say about them.

Nothing where they are the original ones.
"""
