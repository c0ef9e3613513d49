"""The IDX format of MNIST and Fashion-MNIST: a magic number, the sizes, then the bytes.

Reference:
    LeCun, Cortes, Burges, The MNIST database of handwritten digits, "File formats for the MNIST
    database".
"""

from __future__ import annotations

import gzip
import zlib
from pathlib import Path

import numpy as np

from implicitcore_lab.errors import DataError

UNSIGNED_BYTE = 0x08


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
    content = _decompress(path)
    magic = (UNSIGNED_BYTE << 8) | dimensions
    header = 4 + 4 * dimensions
    if len(content) < header:
        raise DataError(f"{path}: {len(content)} bytes, expected a header of {header} bytes")
    received, *shape = np.frombuffer(content, ">u4", 1 + dimensions).tolist()
    if received != magic:
        raise DataError(
            f"{path}: magic number 0x{received:08x}, expected 0x{magic:08x} (unsigned "
            f"bytes, {dimensions} dimensions)"
        )
    pixels = np.frombuffer(content, np.uint8, offset=header)
    if pixels.size != np.prod(shape, dtype=np.int64):
        raise DataError(
            f"{path}: {pixels.size} bytes after the header, expected {' x '.join(map(str, shape))}"
        )
    return pixels.reshape(shape)


def _decompress(path: Path) -> bytes:
    try:
        with gzip.open(path) as stream:
            return stream.read()
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise DataError(f"{path}: not a whole gzip file ({error})") from error
