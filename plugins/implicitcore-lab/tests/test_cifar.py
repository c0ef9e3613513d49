import hashlib
import io
import pickle
import struct
import tarfile
import zipfile
import zlib
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from PIL import Image

from implicitcore.testing import checks_for
from implicitcore_lab import arrays, cifar
from implicitcore_lab.cifar import read_cifar10
from implicitcore_lab.errors import DataError
from implicitcore_lab.images import CIFAR10

BATCHES = [f"data_batch_{i}" for i in range(1, 6)] + ["test_batch"]
rng = np.random.default_rng(0)
IMAGES = rng.integers(0, 256, (6, 2, 3, 32, 32), dtype=np.uint8)
LABELS = rng.integers(0, 10, (6, 2))


def archive(path, members):
    with tarfile.open(path, "w:gz") as file:
        for name, content in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            file.addfile(info, io.BytesIO(content))
    return hashlib.md5(path.read_bytes()).hexdigest()


def binary_member(images, labels):
    return np.concatenate(
        [labels[:, None].astype(np.uint8), images.reshape(len(images), -1)], 1
    ).tobytes()


def jpeg_arrays(images):
    streams = []
    for image in images:
        buffer = io.BytesIO()
        Image.fromarray(image.transpose(1, 2, 0)).save(buffer, "JPEG", quality=95)
        streams.append(buffer.getvalue())
    offsets = np.cumsum([0, *map(len, streams)])
    return np.frombuffer(b"".join(streams), np.uint8), offsets.astype(np.uint32)


def expect_all(parts):
    train, test, note = parts
    np.testing.assert_array_equal(train.images, IMAGES[:5].reshape(-1, 3, 32, 32))
    np.testing.assert_array_equal(train.labels, LABELS[:5].ravel())
    np.testing.assert_array_equal(test.images, IMAGES[5])
    np.testing.assert_array_equal(test.labels, LABELS[5])
    assert note == ""


@pytest.fixture
def binary(tmp_path, monkeypatch):
    path = tmp_path / cifar.BINARY.name
    members = {
        f"cifar-10-batches-bin/{name}.bin": binary_member(*part)
        for name, *part in zip(BATCHES, IMAGES, LABELS, strict=True)
    }
    monkeypatch.setattr(cifar, "BINARY", replace(cifar.BINARY, md5=archive(path, members)))
    return path


@pytest.fixture
def exact(tmp_path):
    def write(name="cifar.npz", **changes):
        arrays = {
            "x_train": IMAGES[:5].reshape(-1, 3, 32, 32).transpose(0, 2, 3, 1),
            "y_train": LABELS[:5].ravel().astype(np.uint8),
            "x_test": IMAGES[5].transpose(0, 2, 3, 1),
            "y_test": LABELS[5].astype(np.uint8),
        }
        np.savez(tmp_path / name, **arrays | changes)
        return tmp_path / name

    return write


def test_binary_archive(binary, tmp_path):
    expect_all(read_cifar10(tmp_path))
    expect_all(read_cifar10(binary))


@pytest.mark.parametrize("check", checks_for("dataset"), ids=lambda check: check.name)
def test_contract(binary, monkeypatch, tmp_path_factory, check):
    cache = tmp_path_factory.mktemp("cache")
    (cache / "cifar10").symlink_to(binary.parent)
    monkeypatch.setenv("IMPLICITCORE_CACHE", str(cache))
    check(CIFAR10())


def test_python_archive(tmp_path, monkeypatch):
    path = tmp_path / cifar.PYTHON.name
    members = {}
    for name, images, labels in zip(BATCHES, IMAGES, LABELS, strict=True):
        members[f"cifar-10-batches-py/{name}"] = pickle.dumps(
            {"data": images.reshape(2, -1), "labels": labels.tolist()}, protocol=2
        )
    monkeypatch.setattr(cifar, "PYTHON", replace(cifar.PYTHON, md5=archive(path, members)))
    expect_all(read_cifar10(tmp_path))


def test_python_archive_is_not_unpickled_before_its_md5_is_right(tmp_path, monkeypatch):
    archive(tmp_path / cifar.PYTHON.name, {"cifar-10-batches-py/data_batch_1": pickle.dumps({})})
    monkeypatch.setattr(pickle, "loads", lambda *args, **options: pytest.fail("unpickled"))
    with pytest.raises(DataError, match=f"expected {cifar.PYTHON.md5}"):
        read_cifar10(tmp_path)


def test_binary_archive_with_wrong_md5(tmp_path):
    (tmp_path / cifar.BINARY.name).write_bytes(b"damaged")
    with pytest.raises(
        DataError, match=f"{cifar.BINARY.name}: md5 .*, expected {cifar.BINARY.md5}"
    ):
        read_cifar10(tmp_path)


def test_binary_record_cut_short():
    with pytest.raises(DataError, match="source: 3000 bytes, expected a multiple of 3073"):
        cifar._parse_binary(bytes(3000), "source")


def test_exact_npz(exact, tmp_path):
    expect_all(read_cifar10(exact()))
    expect_all(read_cifar10(tmp_path))


def test_jpeg_npz_is_labelled(tmp_path):
    path = tmp_path / "jpeg.npz"
    smooth = np.broadcast_to(np.linspace(0, 255, 32).astype(np.uint8), (3, 3, 32, 32)).copy()
    stream, offsets = jpeg_arrays(smooth)
    labels = np.array([1, 2, 3])
    arrays: dict[str, Any] = {
        f"{split}_{key}": value
        for split in ("train", "test")
        for key, value in (("jpeg", stream), ("off", offsets))
    }
    np.savez(path, **arrays, y_train=labels, y_test=labels)
    train, test, note = read_cifar10(path)
    assert train.images.shape == test.images.shape == (3, 3, 32, 32)
    assert np.abs(train.images.astype(int) - smooth).max() < 8
    assert "recompressed" in note
    arrays["train_jpeg"] = stream[:-1]
    np.savez(path, **arrays, y_train=labels, y_test=labels)
    with pytest.raises(
        DataError, match=f"train_jpeg {len(stream) - 1} bytes, expected {len(stream)}"
    ):
        read_cifar10(path)
    arrays |= {"train_jpeg": stream, "test_jpeg": np.zeros_like(stream)}
    np.savez(path, **arrays, y_train=labels, y_test=labels)
    with pytest.raises(DataError, match=r"jpeg\.npz:test\[0\]: not a JPEG image"):
        read_cifar10(path)


def test_several_files_are_not_mixed(exact, tmp_path):
    exact("a.npz")
    exact("b.npz")
    with pytest.raises(DataError, match=r"several files \(a\.npz, b\.npz\), expected one"):
        read_cifar10(tmp_path)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"x_train": np.zeros((2, 3, 32, 32), np.uint8)},
            r"x_train \[2, 3, 32, 32\], expected \[n, 32, 32, 3\]",
        ),
        ({"x_train": np.zeros((10, 32, 32, 3))}, "images float64 .*, expected uint8"),
        ({"y_train": np.arange(3)}, r"labels \[3\] for images \[10, 3, 32, 32\]"),
        ({"y_train": np.arange(10.0)}, "labels float64, expected integers"),
        ({"y_train": np.arange(5, 15)}, r"labels 5 \.\. 14, expected 0 \.\. 9"),
        ({"x_train": np.array([{}])}, "not a whole npz file of arrays"),
    ],
)
def test_npz_with_something_else(exact, changes, message):
    path = exact(**changes)
    with pytest.raises(DataError, match=message) as raised:
        read_cifar10(path)
    assert str(path) in str(raised.value)


def test_npz_with_other_names(tmp_path):
    np.savez(tmp_path / "a.npz", images=IMAGES)
    with pytest.raises(DataError, match=r"arrays \['images'\], expected x_ and y_"):
        read_cifar10(tmp_path)


@pytest.mark.parametrize("content", [b"", b"PK\x03\x04 cut short"])
def test_damaged_npz(tmp_path, content):
    (tmp_path / "a.npz").write_bytes(content)
    with pytest.raises(DataError, match=r"a\.npz: not a whole npz file"):
        read_cifar10(tmp_path)


def test_arrays_that_claim_more_than_the_file_has(tmp_path):
    stream = io.BytesIO()
    np.lib.format.write_array_header_1_0(
        stream, {"descr": "|u1", "fortran_order": False, "shape": (10**15,)}
    )
    with zipfile.ZipFile(tmp_path / "a.npz", "w") as archive:
        archive.writestr("x_train.npy", stream.getvalue())
    with pytest.raises(DataError, match=r"x_train\.npy: \[1000000000000000\] of uint8 are more"):
        read_cifar10(tmp_path)


def test_a_zip_bomb_is_not_unpacked(tmp_path, monkeypatch):
    monkeypatch.setattr(arrays, "LARGEST", 1000)
    np.savez_compressed(tmp_path / "a.npz", x_train=np.zeros(10_000, np.uint8))
    with pytest.raises(DataError, match="bytes unpacked, more than 1,000, the most that is read"):
        read_cifar10(tmp_path)


def test_an_image_bomb_is_not_decoded():
    def chunk(kind, content):
        body = kind + content
        return struct.pack(">I", len(content)) + body + struct.pack(">I", zlib.crc32(body))

    def png(side):
        head = struct.pack(">IIBBBBB", side, side, 8, 2, 0, 0, 0)
        return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", zlib.compress(b""))

    for side, message in (
        (33, r"source: image \[33, 33\], expected \[32, 32\]"),
        (20_000, "source: not a JPEG image .* decompression bomb"),
    ):
        with pytest.raises(DataError, match=message):
            cifar._decode(png(side), "source")


def test_nothing_there(tmp_path):
    with pytest.raises(DataError, match="no CIFAR-10 here"):
        read_cifar10(tmp_path)
    with pytest.raises(DataError, match="missing: no such file or folder"):
        read_cifar10(tmp_path / "missing")
    (tmp_path / "a.txt").touch()
    with pytest.raises(DataError, match=r"a\.txt: expected cifar-10-binary\.tar\.gz"):
        read_cifar10(tmp_path / "a.txt")


def test_real_exact_pixels(real_data):
    train, test, note = read_cifar10(real_data / "cifar10" / "cifar10_lossless_4000_1000.npz")
    assert train.images.shape == (4000, 3, 32, 32)
    assert test.images.shape == (1000, 3, 32, 32)
    assert note == ""
    assert train.labels[:5].tolist() == [
        6,
        9,
        9,
        4,
        1,
    ]  # frog, truck, truck, deer, automobile: the official order


@pytest.mark.slow
def test_real_jpeg_is_close_to_the_exact_pixels(real_data):
    train, test, note = read_cifar10(real_data / "cifar10" / "cifar10_full_jpeg.npz")
    assert (len(train.images), len(test.images)) == (50_000, 10_000)
    assert note == cifar.RECOMPRESSED
    exact, _, _ = read_cifar10(real_data / "cifar10" / "cifar10_lossless_4000_1000.npz")
    assert np.abs(train.images[:4000].astype(int) - exact.images).mean() < 10  # other images: 70
    np.testing.assert_array_equal(train.labels[:4000], exact.labels)
