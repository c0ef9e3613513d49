"""Data sets and models by their names: ours, and those of others."""

import contextlib
import json
import random
import shutil
import struct
import zlib
from dataclasses import replace

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from PIL import Image
from support.sites import Site, hook

import implicitcore as ic
from implicitcore.cli import cli
from implicitcore.testing import NotApplicable, checks_for, parametrize_with_checks
from implicitcore_lab.data import load
from implicitcore_lab.errors import DataError, TrainingError
from implicitcore_lab.images import Digits
from implicitcore_lab.models import Convolutional, Dense
from implicitcore_lab.sequences import Text, TimeSeries
from implicitcore_lab.sources import ImageFolder, Npz

rng = np.random.default_rng(0)


@pytest.fixture
def npz(tmp_path):
    def write(**changes):
        arrays = {
            "x_train": rng.normal(3, 2, (30, 5)).astype(np.float32),
            "y_train": np.arange(30) % 3,
            "x_test": rng.normal(3, 2, (9, 5)).astype(np.float32),
            "y_test": np.arange(9) % 3,
        }
        np.savez(tmp_path / "a.npz", **arrays | changes)
        return tmp_path / "a.npz"

    return write


@pytest.fixture
def folder(tmp_path):
    for name, value in (("cat", 10), ("dog", 200)):
        (tmp_path / "animals" / name).mkdir(parents=True)
        for index in range(5):
            image = Image.new("RGB", (9, 7), (value, 0, index))
            image.save(tmp_path / "animals" / name / f"{index}.{'png' if index else 'jpg'}")
    return tmp_path / "animals"


@pytest.fixture
def series(tmp_path):
    path = tmp_path / "a.csv"
    rows = [f"{np.sin(i / 3)},{i}" for i in range(60)]
    path.write_text("\n".join(["value,time", *rows]))
    return path


@parametrize_with_checks([Digits(), Text(samples=200), Dense(), Convolutional()])
def test_contracts(part, check):
    check(part)


@pytest.mark.parametrize("check", checks_for("dataset"), ids=lambda check: check.name)
def test_contracts_of_what_reads_files(check, npz, folder, series):
    for source in (
        Npz(path=npz()),
        ImageFolder(path=folder, size=8),
        ImageFolder(path=folder, size=4, grey=True),
        TimeSeries(path=series, window=4),
    ):
        with contextlib.suppress(NotApplicable):
            check(source)


def test_arrays_are_standardised_as_a_whole(npz):
    found = load({"name": "npz", "path": str(npz())})
    assert (found.shape, found.classes, len(found.test)) == ((5,), 3, 9)
    assert found.train.images.mean().abs() < 1e-6
    assert found.train.images.std() == pytest.approx(1, abs=1e-6)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"x_test": np.zeros((9, 4), np.float32)}, r"x_test \[9, 4\], expected the sample shape"),
        ({"y_train": np.arange(30.0)}, "labels float64"),
        ({"y_train": np.arange(29)}, r"x float32 \[30, 5\] with y \[29\]"),
        ({"y_train": np.arange(30) - 1}, "expected integers from 0"),
        ({"x_train": np.full((30, 5), np.nan)}, "values that are not finite"),
    ],
)
def test_arrays_that_do_not_fit(npz, changes, message):
    with pytest.raises(DataError, match=message):
        load("npz", npz(**changes))


def test_images_have_the_labels_of_their_folders(folder):
    found = load({"name": "image-folder", "size": 8}, folder)
    assert (found.shape, found.classes) == ((3, 8, 8), 2)
    assert (len(found.train), len(found.test)) == (8, 2)
    for split in (found.train, found.test):
        bright = split.images[:, 0].mean((1, 2)) > 0
        assert torch.equal(bright, split.labels == 1)  # the dogs


def test_images_split_by_their_folder(folder):
    for part in ("train", "test"):
        (folder / part).mkdir()
    for name in ("cat", "dog"):
        (folder / "test" / name).mkdir()
        (folder / name / "0.jpg").rename(folder / "test" / name / "0.jpg")
        (folder / name).rename(folder / "train" / name)
    found = load({"name": "image-folder", "size": 8, "grey": True}, folder)
    assert (found.shape, len(found.train), len(found.test)) == ((1, 8, 8), 8, 2)


def test_a_file_that_is_no_image_is_named(folder):
    (folder / "cat" / "9.png").write_bytes(b"no image")
    with pytest.raises(DataError, match=r"9\.png: not a whole image"):
        load("image-folder", folder)
    with pytest.raises(DataError, match="expected one for each of two classes"):
        load("image-folder", folder / "cat")


def chunk(kind, content):
    """A chunk of a PNG file."""
    body = kind + content
    return struct.pack(">I", len(content)) + body + struct.pack(">I", zlib.crc32(body))


def png(side, *chunks):
    head = struct.pack(">IIBBBBB", side, side, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + b"".join(chunks)


def test_image_bombs_are_not_decoded(folder):
    path = folder / "cat" / "9.png"
    data = chunk(b"IDAT", zlib.compress(b""))
    text = chunk(b"zTXt", b"a\0\0" + zlib.compress(bytes(10**8)))
    for content, message in (
        (png(5000, data), r"9\.png: image \[5000, 5000\], expected at most 4096 pixels a side"),
        (png(100_000, data), r"9\.png: .* decompression bomb"),
        (png(8, text, data), r"9\.png: not a whole image \(Decompressed data too large"),
    ):
        path.write_bytes(content)
        with pytest.raises(DataError, match=message):
            load("image-folder", folder)


def test_images_of_sixteen_bits_are_refused(folder):
    Image.new("I;16", (4, 4), 40_000).save(folder / "cat" / "9.png")
    with pytest.raises(DataError, match=r"9\.png: image of mode I;16, expected 8 bits a channel"):
        load("image-folder", folder)


def test_folders_of_other_classes_to_test_on(folder):
    for part in ("train", "test"):
        for name in ("cat", "dog"):
            shutil.copytree(folder / name, folder / part / (name + "s" * (part == "test")))
    with pytest.raises(DataError, match=r"folders \['cats', 'dogs'\], expected those of train"):
        load("image-folder", folder)
    with pytest.raises(DataError, match=r"0\.jpg: a file, expected a folder"):
        load("image-folder", folder / "cat" / "0.jpg")


DAMAGE = ("cut", "bit", "bytes")


@pytest.mark.parametrize("damage", DAMAGE)
@pytest.mark.parametrize("name", ["npz", "time-series", "png", "jpg"])
def test_a_damaged_file_is_one_sentence_or_still_whole(name, damage, npz, folder, series):
    """What a damaged file holds cannot always be told from what it should hold."""
    path, spec = {
        "npz": (npz(), {"name": "npz", "path": str(npz())}),
        "time-series": (series, {"name": "time-series", "path": str(series), "window": 4}),
        "png": (folder / "cat" / "1.png", {"name": "image-folder", "path": str(folder)}),
        "jpg": (folder / "cat" / "0.jpg", {"name": "image-folder", "path": str(folder)}),
    }[name]
    draw = random.Random(0)
    whole, refused = path.read_bytes(), 0
    for _ in range(60):
        path.write_bytes(damaged(whole, damage, draw))
        try:
            load(spec)
        except DataError as error:
            assert "\n" not in str(error)
            refused += 1
    assert refused or (name, damage) == ("jpg", "bit")


def damaged(whole, damage, draw):
    """The bytes with an end, a bit or a few bytes of another file."""
    place = draw.randrange(len(whole))
    if damage == "cut":
        return whole[:place]
    if damage == "bit":
        return whole[:place] + bytes([whole[place] ^ 1 << draw.randrange(8)]) + whole[place + 1 :]
    return whole[:place] + draw.randbytes(9) + whole[place + 9 :]


def test_a_text_gives_the_next_byte(tmp_path):
    path = tmp_path / "a.txt"
    path.write_bytes(bytes(range(100)))
    found = load({"name": "text", "window": 3, "samples": 50}, path)
    assert (found.shape, found.classes) == ((1, 3, 8), 256)
    for split in (found.train, found.test):
        bits = (split.images[:, 0] + 1).div(2).long()
        read = (bits * 2 ** torch.arange(7, -1, -1)).sum(2)
        assert torch.equal(read[:, -1] + 1, split.labels)
        assert torch.equal(read[:, 0] + 3, split.labels)
    assert found.train.labels.max() < found.test.labels.min()
    path.write_bytes(b"short")
    with pytest.raises(DataError, match="5 bytes, expected at least 13 for windows of 3"):
        load({"name": "text", "window": 3}, path)


def test_a_series_gives_the_range_of_the_next_value(series):
    found = load({"name": "time-series", "window": 4, "classes": 2}, series)
    assert found.shape == (1, 4, 2)
    values = torch.tensor([np.sin(i / 3) for i in range(4, 60)])
    labels = torch.cat([found.train.labels, found.test.labels])
    edge = values[labels == 0].max()
    assert torch.equal(labels, (values > edge).long())
    assert found.train.labels.float().mean() == pytest.approx(0.5, abs=0.1)
    series.write_text("1,2\n3\n")
    with pytest.raises(DataError, match=r"row 2 is \['3'\], expected 2 finite numbers"):
        load("time-series", series)
    series.write_text("\n".join(["1,2"] * 60))
    with pytest.raises(DataError, match="too few different values for 4 equally frequent ranges"):
        load("time-series", series)
    with pytest.raises(DataError, match="give --data-dir the CSV file"):
        load("time-series")


def test_images_alone_are_mirrored(npz):
    from implicitcore_lab.augment import augmented
    from implicitcore_lab.settings import Settings

    with pytest.raises(TrainingError, match="flip and crop are for images"):
        augmented(torch.zeros(2, 5), Settings(flip=True), (0, 0, 0))


THEIRS = '''
from dataclasses import dataclass
import torch
from torch import nn
from implicitcore_lab import DataSource, Dataset, ModelBuilder, Split
from implicitcore_layers import ContractiveCell

@dataclass(frozen=True, kw_only=True)
class Moons(DataSource):
    """Two half circles.

    Arguments:
        samples: of each part.
    """
    samples: int = 64

    def load(self, data_dir=None):
        t = torch.linspace(0, 3.14, self.samples)
        y = torch.arange(self.samples) % 2
        x = torch.stack([t.cos() + y, t.sin() * (1 - 2 * y)], 1)
        return Dataset("moons", Split(x, y), Split(x, y), classes=2)

@dataclass(frozen=True, kw_only=True)
class Plain(ModelBuilder):
    """No normalisation."""

    def build(self, hidden, shape, classes):
        linear = nn.Linear(shape[0], hidden)
        cell = ContractiveCell(hidden)
        return linear, cell, nn.Linear(hidden, classes), nn.Linear(hidden, hidden)
'''


@pytest.fixture
def theirs(tmp_path, monkeypatch):
    """Another distribution's data set and model."""
    from implicitcore.registry.registry import REGISTRY

    site = Site(tmp_path / "site")
    register = (
        "registry.register('dataset', 'moons', 'theirs_parts:Moons', summary='moons'); "
        "registry.register('model', 'plain', 'theirs_parts:Plain', summary='plain')"
    )
    site.add("theirs", hook(register), files={"theirs_parts.py": THEIRS})
    monkeypatch.syspath_prepend(site.folder)
    monkeypatch.setattr(REGISTRY, "_plugins", None)
    monkeypatch.chdir(tmp_path)
    yield
    REGISTRY._plugins = None


def test_those_of_another_distribution_train_and_compare_by_name(theirs, tmp_path):
    def run(*words):
        result = CliRunner().invoke(cli, [str(word) for word in words])
        assert result.exit_code == 0, result.output
        return result.output

    words = ["--dataset", "moons", "--hidden", "8", "--epochs", "1", "--device", "cpu"]
    run("train", *words, "--model", "plain", "--out", "run")
    saved = json.loads((tmp_path / "run" / "config.json").read_text())
    assert (saved["dataset"], saved["model"]) == ("moons", "plain")
    assert "the saved accuracy, exactly" in run("evaluate", "run")
    run("compare", *words, "--layers", "deq", "--out", "here")
    (tmp_path / "a.json").write_text(json.dumps({"dataset": {"name": "moons", "samples": 10}}))
    output = run("train", "--config", "a.json", "--epochs", "1", "--out", "other", "--hidden", "4")
    assert "moons: 10 training" in output


def test_what_is_not_there_has_its_near_match():
    with pytest.raises(ic.ConfigError, match="dataset: unknown dataset 'mnits'; did you mean"):
        load("mnits")
    with pytest.raises(ic.ConfigError, match=r"dataset\.windw: unknown option"):
        load({"name": "text", "windw": 3})
    assert replace(Text(), window=4).window == 4
