"""The IDX format of MNIST and Fashion-MNIST: a magic number, the sizes, then the bytes.

Reference:
    LeCun, Cortes, Burges, The MNIST database of handwritten digits, "File formats for the MNIST
    database".
"""

from __future__ import annotations

import gzip
import zlib
from math import prod
from pathlib import Path

import numpy as np

from implicitcore_lab.errors import DataError

UNSIGNED_BYTE = 0x08
LARGEST = 2**31
"""Bytes of one file, unpacked; MNIST has 47 million."""


def read_idx(path: Path, dimensions: int) -> np.ndarray:
    """Read a gzip-compressed IDX file of unsigned bytes.

    Arguments:
        path: the ``.gz`` file.
        dimensions: how many dimensions it should have (labels 1, images 3).

    Returns:
        A uint8 array of that many dimensions.

    Raises:
        DataError: not gzip, cut short, another magic number, or a length that the sizes do not
            give.
    """
    magic = (UNSIGNED_BYTE << 8) | dimensions
    header = 4 + 4 * dimensions
    head = _decompress(path, header)
    if len(head) < header:
        raise DataError(f"{path}: {len(head)} bytes, expected a header of {header} bytes")
    received, *shape = np.frombuffer(head, ">u4").tolist()
    if received != magic:
        raise DataError(
            f"{path}: magic number 0x{received:08x}, expected 0x{magic:08x} (unsigned "
            f"bytes, {dimensions} dimensions)"
        )
    size = prod(shape)
    if size > LARGEST:
        raise DataError(
            f"{path}: {' x '.join(map(str, shape))} bytes are more than {LARGEST:,}, the most that "
            "is read"
        )
    content = _decompress(path, header + size + 1)  # one byte more, to see that there is none
    pixels = np.frombuffer(content, np.uint8, offset=header)
    if pixels.size != size:
        count = f"more than {size}" if pixels.size > size else str(pixels.size)
        raise DataError(
            f"{path}: {count} bytes after the header, expected {' x '.join(map(str, shape))}"
        )
    return pixels.reshape(shape)


def _decompress(path: Path, count: int) -> bytes:
    """The first bytes, and no more: a small file can hold any number of them."""
    try:
        with gzip.open(path) as stream:
            return stream.read(count)
    except (EOFError, zlib.error, OSError) as error:
        raise DataError(f"{path}: not a whole gzip file ({error})") from error
