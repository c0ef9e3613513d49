import gzip
import re
import struct

import numpy as np
import pytest

from implicitcore_lab.errors import DataError
from implicitcore_lab.idx import read_idx

IMAGES = np.arange(24).reshape(2, 3, 4)


def test_reads_what_was_written(tmp_path, write_idx):
    path = write_idx(tmp_path / "images.gz", IMAGES)
    np.testing.assert_array_equal(read_idx(path, 3), IMAGES)


def test_wrong_magic_number(tmp_path, write_idx):
    path = write_idx(tmp_path / "images.gz", IMAGES, magic=0x0D03)
    with pytest.raises(
        DataError, match=r"images\.gz: magic number 0x00000d03, expected 0x00000803"
    ):
        read_idx(path, 3)


def test_labels_where_images_are_expected(tmp_path, write_idx):
    path = write_idx(tmp_path / "labels.gz", np.arange(100))
    with pytest.raises(DataError, match="magic number 0x00000801, expected 0x00000803"):
        read_idx(path, 3)


def test_fewer_pixels_than_the_header_says(tmp_path, write_idx):
    path = write_idx(tmp_path / "images.gz", IMAGES, cut=5)
    with pytest.raises(
        DataError, match=re.escape("images.gz: 19 bytes after the header, expected 2 x 3 x 4")
    ):
        read_idx(path, 3)


def test_a_bomb_is_not_unpacked(tmp_path, monkeypatch):
    path = tmp_path / "images.gz"
    head = struct.pack(">IIII", 0x803, 1, 2, 3)
    path.write_bytes(gzip.compress(head + bytes(200_000_000), 1))
    with pytest.raises(DataError, match="more than 6 bytes after the header, expected 1 x 2 x 3"):
        read_idx(path, 3)
    path.write_bytes(gzip.compress(struct.pack(">IIII", 0x803, 2**31, 2**31, 2**31)))
    with pytest.raises(DataError, match="more than 2,147,483,648, the most that is read"):
        read_idx(path, 3)


def test_no_whole_header(tmp_path, write_idx):
    path = write_idx(tmp_path / "images.gz", IMAGES, cut=30)
    with pytest.raises(DataError, match="10 bytes, expected a header of 16 bytes"):
        read_idx(path, 3)


@pytest.mark.parametrize(
    "damage",
    [lambda content: content[:-10], lambda content: b"not gzip at all", lambda content: b""],
)
def test_damaged_gzip(tmp_path, write_idx, damage):
    path = write_idx(tmp_path / "images.gz", IMAGES)
    path.write_bytes(damage(path.read_bytes()))
    with pytest.raises(DataError, match=r"images\.gz"):
        read_idx(path, 3)
