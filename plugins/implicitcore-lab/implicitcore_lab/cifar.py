"""Readers of CIFAR-10: the two official archives and two npz forms.

Reference:
    Krizhevsky, Learning Multiple Layers of Features from Tiny Images, 2009.
"""

from __future__ import annotations

import io
import pickle
import tarfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
from PIL import Image

from implicitcore_lab.arrays import read_npz
from implicitcore_lab.errors import DataError, first_line
from implicitcore_lab.files import PublicFile, check_md5
from implicitcore_lab.pixels import Parts, Pixels

SHAPE = (3, 32, 32)
Arrays = dict[str, np.ndarray]
HOMES = ("https://www.cs.toronto.edu/~kriz/",)
BINARY = PublicFile("cifar-10-binary.tar.gz", "c32a1d4ab5d03f1284b67883e8d87530", HOMES)
PYTHON = PublicFile("cifar-10-python.tar.gz", "c58f30108f718f92721af3b95e74349a", HOMES)
RECOMPRESSED = "pixels decoded from recompressed JPEG, not the original CIFAR-10"


def read_cifar10(path: Path) -> Parts:
    """Read whichever form of CIFAR-10 lies at ``path``.

    Arguments:
        path: a folder that holds one data file, or the data file itself.

    Returns:
        Train pixels, test pixels and a note for the report (empty for exact pixels).

    Raises:
        DataError: nothing to read there, several files to choose from, or a damaged file.
    """
    file = _choose(path) if path.is_dir() else path
    if not file.exists():
        raise DataError(f"{file}: no such file or folder")
    if file.name == BINARY.name:
        return _read_archive(file, BINARY, "cifar-10-batches-bin/{}.bin", _parse_binary)
    if file.name == PYTHON.name:
        return _read_archive(file, PYTHON, "cifar-10-batches-py/{}", _parse_python)
    if file.suffix == ".npz":
        return _read_npz(file)
    raise DataError(f"{file}: expected {BINARY.name}, {PYTHON.name} or an .npz file")


def _choose(folder: Path) -> Path:
    for name in (BINARY.name, PYTHON.name):
        if (folder / name).exists():
            return folder / name
    found = sorted(folder.glob("*.npz"))
    if not found:
        raise DataError(
            f"{folder}: no CIFAR-10 here, expected {BINARY.name}, {PYTHON.name} or an .npz file"
        )
    if len(found) > 1:
        names = ", ".join(file.name for file in found)
        raise DataError(
            f"{folder}: several files ({names}), expected one: give the file itself as --data-dir"
        )
    return found[0]


def _read_archive(
    path: Path, official: PublicFile, member: str, parse: Callable[[bytes, str], Pixels]
) -> Parts:
    check_md5(path, official.md5)
    parts = []
    with tarfile.open(path, "r:gz") as archive:
        for batch in [f"data_batch_{i}" for i in range(1, 6)] + ["test_batch"]:
            stream = archive.extractfile(member.format(batch))
            if stream is None:
                raise DataError(f"{path}: {member.format(batch)} is not a file")
            parts.append(parse(stream.read(), f"{path}:{batch}"))
    train = Pixels(
        np.concatenate([part.images for part in parts[:-1]]),
        np.concatenate([part.labels for part in parts[:-1]]),
    )
    return train, parts[-1], ""


def _parse_binary(content: bytes, source: str) -> Pixels:
    record = 1 + int(np.prod(SHAPE))
    if len(content) % record:
        raise DataError(
            f"{source}: {len(content)} bytes, expected a multiple of {record} (a label and "
            f"{record - 1} pixels)"
        )
    rows = np.frombuffer(content, np.uint8).reshape(-1, record)
    return Pixels.checked(rows[:, 1:].reshape(-1, *SHAPE), rows[:, 0], source)


def _parse_python(content: bytes, source: str) -> Pixels:
    batch = pickle.loads(
        content, encoding="latin1"
    )  # only after its archive's md5 was the official one
    return Pixels.checked(batch["data"].reshape(-1, *SHAPE), np.asarray(batch["labels"]), source)


def _read_npz(path: Path) -> Parts:
    arrays = read_npz(path)
    names = set(arrays)
    if {"x_train", "y_train", "x_test", "y_test"} <= names:
        return _exact(arrays, "train", path), _exact(arrays, "test", path), ""
    if {"train_jpeg", "train_off", "y_train", "test_jpeg", "test_off", "y_test"} <= names:
        return _jpeg(arrays, "train", path), _jpeg(arrays, "test", path), RECOMPRESSED
    raise DataError(
        f"{path}: arrays {sorted(names)}, expected x_ and y_, or _jpeg, _off and y_, each "
        "of train and test"
    )


def _exact(arrays: Arrays, split: str, path: Path) -> Pixels:
    images = arrays[f"x_{split}"]
    if images.shape[1:] != (32, 32, 3):
        raise DataError(f"{path}: x_{split} {list(images.shape)}, expected [n, 32, 32, 3]")
    return Pixels.checked(images.transpose(0, 3, 1, 2), arrays[f"y_{split}"], f"{path}:{split}")


def _jpeg(arrays: Arrays, split: str, path: Path) -> Pixels:
    stream, offsets = arrays[f"{split}_jpeg"].tobytes(), arrays[f"{split}_off"]
    if offsets.dtype.kind not in "iu" or offsets.ndim != 1:
        raise DataError(
            f"{path}: {split}_off {offsets.dtype} {list(offsets.shape)}, expected integers [n + 1]"
        )
    ends = offsets.tolist()
    if not ends or ends[-1] != len(stream):
        expected = ends[-1] if ends else "some"
        raise DataError(f"{path}: {split}_jpeg {len(stream)} bytes, expected {expected}")
    images = np.empty((len(ends) - 1, 32, 32, 3), np.uint8)
    for i, (start, end) in enumerate(zip(ends, ends[1:], strict=False)):
        images[i] = _decode(stream[start:end], f"{path}:{split}[{i}]")
    return Pixels.checked(images.transpose(0, 3, 1, 2), arrays[f"y_{split}"], f"{path}:{split}")


def _decode(content: bytes, source: str) -> np.ndarray:
    try:
        with Image.open(io.BytesIO(content)) as image:  # reads the header alone
            if image.size != (32, 32):
                raise DataError(f"{source}: image {list(image.size)}, expected [32, 32]")
            return np.asarray(image.convert("RGB"))
    except DataError:
        raise
    except Exception as error:  # of a damaged image Pillow raises whatever it met
        raise DataError(f"{source}: not a JPEG image ({first_line(error)})") from error
