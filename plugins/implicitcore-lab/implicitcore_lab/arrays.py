"""Reading ``.npz`` files of anybody: no pickle, and no more memory than the file says it needs."""

from __future__ import annotations

import zipfile
from math import prod
from pathlib import Path
from typing import Any

import numpy as np

from implicitcore_lab.errors import DataError, first_line

LARGEST = 2**33
"""Bytes of all arrays of a file, unpacked."""


def read_npz(path: Path) -> dict[str, np.ndarray]:
    """The arrays of a file, by name.

    Raises:
        DataError: it is damaged, holds objects, or unpacks to more than it says or than is read.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            sizes = {info.filename: info.file_size for info in archive.infolist()}
            total = sum(sizes.values())
            if total > LARGEST:
                raise DataError(
                    f"{path}: {total:,} bytes unpacked, more than {LARGEST:,}, the most that is "
                    "read"
                )
            return {
                name.removesuffix(".npy"): _read(archive, name, size)
                for name, size in sizes.items()
            }
    except DataError:
        raise
    except Exception as error:  # a damaged file asks for other compression, encryption, ...
        raise DataError(f"{path}: not a whole npz file of arrays ({first_line(error)})") from error


def _read(archive: zipfile.ZipFile, name: str, size: int) -> np.ndarray:
    with archive.open(name) as stream:
        shape, dtype = _header(stream)
        if prod(shape) * dtype.itemsize > size:
            raise ValueError(f"{name}: {list(shape)} of {dtype} are more than its {size} bytes")
    with archive.open(name) as stream:
        return np.lib.format.read_array(stream, allow_pickle=False)


def _header(stream: Any) -> tuple[tuple[int, ...], np.dtype]:
    version = np.lib.format.read_magic(stream)
    read = {
        (1, 0): np.lib.format.read_array_header_1_0,
        (2, 0): np.lib.format.read_array_header_2_0,
    }
    if version not in read:
        raise ValueError(f"version {version} of the npy format")
    shape, _, dtype = read[version](stream)
    if dtype.hasobject:
        raise ValueError("an array of objects")
    return shape, dtype
