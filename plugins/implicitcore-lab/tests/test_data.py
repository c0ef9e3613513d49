import hashlib

import numpy as np
import pytest
import torch

from implicitcore.testing import checks_for
from implicitcore_lab import data, images
from implicitcore_lab.errors import DataError
from implicitcore_lab.files import PublicFile, check_md5


@pytest.fixture
def tiny_mnist(tmp_path, monkeypatch, write_idx):
    """Four IDX files of twenty images, taken for the official ones."""
    rng = np.random.default_rng(0)
    arrays = [
        rng.integers(0, 256, (12, 4, 4)),
        np.arange(12) % 10,
        rng.integers(0, 256, (8, 4, 4)),
        np.arange(8),
    ]
    paths = [
        write_idx(tmp_path / name, array)
        for name, array in zip(images.IDX_NAMES, arrays, strict=True)
    ]
    files = tuple(
        PublicFile(path.name, hashlib.md5(path.read_bytes()).hexdigest()) for path in paths
    )
    monkeypatch.setitem(images.IDX_FILES, "mnist", files)
    return tmp_path, arrays


def test_digits_are_split_alike_every_time():
    first, second = data.load("digits"), data.load("digits")
    assert torch.equal(first.train.images, second.train.images)
    assert torch.equal(first.test.labels, second.test.labels)
    assert (len(first.train), len(first.test), first.shape) == (1437, 360, (1, 8, 8))


def test_digits_are_stratified():
    dataset = data.load("digits")
    train, test = (
        split.labels.bincount(minlength=10) / len(split) for split in (dataset.train, dataset.test)
    )
    assert torch.allclose(train, test, atol=0.003)


def test_standardised_with_the_training_images(tiny_mnist):
    folder, arrays = tiny_mnist
    dataset = data.load("mnist", folder)
    assert dataset.train.images.dtype == torch.float32
    assert dataset.train.labels.dtype == torch.int64
    expected = (arrays[2] - arrays[0].mean()) / arrays[0].std()
    np.testing.assert_allclose(dataset.test.images[:, 0].numpy(), expected, rtol=1e-5, atol=1e-6)
    assert dataset.train.labels.tolist() == arrays[1].tolist()


def test_each_colour_is_standardised():
    images = np.random.default_rng(0).integers(0, 256, (20, 3, 4, 4)).astype(np.uint8)
    images[:, 2] = 7
    mean, deviation = data._moments(images)
    np.testing.assert_allclose(mean.flatten().numpy(), images.mean((0, 2, 3)), rtol=1e-6)
    np.testing.assert_allclose(
        deviation.flatten().numpy(), images.std((0, 2, 3)), rtol=1e-6, atol=1e-5
    )
    assert deviation.min() > 0


def test_missing_file(tiny_mnist):
    folder, _ = tiny_mnist
    (folder / images.IDX_NAMES[2]).unlink()
    with pytest.raises(
        DataError, match=r"t10k-images-idx3-ubyte\.gz: no such file, expected train-images"
    ):
        data.load("mnist", folder)


def test_wrong_md5(tiny_mnist):
    folder, _ = tiny_mnist
    (folder / images.IDX_NAMES[1]).write_bytes(b"damaged")
    with pytest.raises(DataError, match=r"train-labels-idx1-ubyte\.gz: md5 .*, expected"):
        data.load("mnist", folder)


def test_images_and_labels_that_differ_in_number(tiny_mnist, monkeypatch, write_idx):
    folder, _ = tiny_mnist
    path = write_idx(folder / images.IDX_NAMES[1], np.arange(5))
    files = list(images.IDX_FILES["mnist"])
    files[1] = PublicFile(path.name, hashlib.md5(path.read_bytes()).hexdigest())
    monkeypatch.setitem(images.IDX_FILES, "mnist", tuple(files))
    with pytest.raises(DataError, match=r"labels \[5\] for images \[12, 1, 4, 4\]"):
        data.load("mnist", folder)


def test_digits_read_no_folder(tmp_path):
    with pytest.raises(DataError, match="reads no --data-dir"):
        data.load("digits", tmp_path)


def test_without_a_folder_files_come_from_the_cache(tiny_mnist, monkeypatch, tmp_path):
    folder, _ = tiny_mnist
    monkeypatch.setenv("IMPLICITCORE_CACHE", str(tmp_path / "cache"))
    (tmp_path / "cache").mkdir()
    (tmp_path / "cache" / "mnist").symlink_to(folder)
    assert len(data.load("mnist").train) == 12


@pytest.mark.parametrize("check", checks_for("dataset"), ids=lambda check: check.name)
@pytest.mark.parametrize(
    ("name", "source"), [("mnist", images.MNIST()), ("fashion-mnist", images.FashionMNIST())]
)
def test_contract(tiny_mnist, monkeypatch, tmp_path_factory, name, source, check):
    folder, _ = tiny_mnist
    cache = tmp_path_factory.mktemp("cache")
    (cache / name).symlink_to(folder)
    monkeypatch.setenv("IMPLICITCORE_CACHE", str(cache))
    monkeypatch.setitem(images.IDX_FILES, name, images.IDX_FILES["mnist"])
    check(source)


def test_a_folder_in_the_place_of_a_file(tmp_path):
    with pytest.raises(DataError, match="cannot be read: .*directory"):
        check_md5(tmp_path, "0")


def test_real_mnist(real_data):
    dataset = data.load("mnist", real_data / "mnist")
    assert (len(dataset.train), len(dataset.test), dataset.shape) == (60_000, 10_000, (1, 28, 28))
    assert dataset.train.labels[:5].tolist() == [5, 0, 4, 1, 9]
    assert dataset.train.images.mean().abs() < 1e-4
    assert abs(dataset.train.images.std().item() - 1) < 1e-4
