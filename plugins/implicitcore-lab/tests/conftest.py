"""Tiny data files, made on the spot, and where the real ones lie."""

import gzip
import json
import struct
from pathlib import Path

import numpy as np
import pytest

from implicitcore_lab.storage import digest

REAL_DATA = Path(__file__).parents[4] / "shared" / "data"


@pytest.fixture
def real_data() -> Path:
    if not REAL_DATA.is_dir():
        pytest.skip(
            "the real data sets lie in ../shared/data of a development machine, and there "
            "is none here"
        )
    return REAL_DATA


@pytest.fixture
def sign():
    """Write the digests of a run's files into its record, as they are now."""

    def write(folder: Path) -> None:
        path = folder / "result.json"
        record = json.loads(path.read_text())
        for name in record["files"]:
            record["files"][name] = digest((folder / name).read_bytes())
        path.write_text(json.dumps(record))

    return write


@pytest.fixture
def write_idx():
    """Write an array as a gzip-compressed IDX file."""

    def write(path: Path, array: np.ndarray, *, magic: int | None = None, cut: int = 0) -> Path:
        header = struct.pack(
            f">{1 + array.ndim}I", (0x800 | array.ndim) if magic is None else magic, *array.shape
        )
        content = header + array.astype(np.uint8).tobytes()
        path.write_bytes(gzip.compress(content[: len(content) - cut]))
        return path

    return write
