"""What the commands write has the user's usual mode, whatever file it was first."""

import os
import stat
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml
from click.testing import CliRunner

from implicitcore.cli import cli
from implicitcore_lab.files import PublicFile, fetch

SMALL = {
    "layer": "deq",
    "dataset": "digits",
    "hidden": 4,
    "batch_size": 256,
    "epochs": 1,
    "device": "cpu",
}


@pytest.fixture(params=[0o022, 0o027], ids=oct)
def umask(request: pytest.FixtureRequest) -> Iterator[int]:
    before = os.umask(request.param)
    yield request.param
    os.umask(before)


def invoke(*words: object) -> None:
    done = CliRunner().invoke(cli, [*map(str, words)], catch_exceptions=False)
    assert done.exit_code == 0, done.output


def unusual(folder: Path, umask: int) -> dict[str, str]:
    """The files and folders with another mode than a new one has."""
    usual = {True: 0o777 & ~umask, False: 0o666 & ~umask}
    found = {path: stat.S_IMODE(path.stat().st_mode) for path in folder.rglob("*")}
    return {
        str(path.relative_to(folder)): oct(mode)
        for path, mode in found.items()
        if mode != usual[path.is_dir()]
    }


@pytest.mark.slow
def test_every_command_writes_with_the_mode_of_new_files(umask: int, tmp_path: Path):
    settings = tmp_path / "settings.yaml"
    settings.write_text(yaml.safe_dump(SMALL))
    run = tmp_path / "run"
    invoke("train", "--config", settings, "--out", run)
    invoke("train", "--config", settings, "--out", run, "--overwrite")
    invoke("report", run, "--out", tmp_path / "report")
    invoke("diagnose", run, "--out", tmp_path / "diagnosis")
    storage = tmp_path / "storage" / "trials.journal"
    tune = ("--trials", 1, "--repeats", 1, "--storage", storage, "--study", "small")
    invoke("tune", settings, *tune, "--out", tmp_path / "tuned")
    written = {path.suffix for path in tmp_path.rglob("*")}
    assert {".safetensors", ".json", ".jsonl", ".yaml", ".png", ".html", ".journal"} <= written
    assert unusual(tmp_path, umask) == {}


def test_a_download_has_it_too(umask: int, tmp_path: Path):
    (tmp_path / "home").mkdir()
    (tmp_path / "home" / "data").write_bytes(b"")
    empty = "d41d8cd98f00b204e9800998ecf8427e"
    home = (tmp_path / "home").as_uri() + "/"
    fetch(PublicFile("data", empty, (home,)), tmp_path / "cache")
    assert unusual(tmp_path, umask) == {}
