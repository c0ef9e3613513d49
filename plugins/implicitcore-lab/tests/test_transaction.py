"""A run directory appears whole or not at all, and nothing that lies there is lost."""

import json
import os
import stat
import subprocess

import pytest
import torch
from click.testing import CliRunner

from implicitcore.cli import cli
from implicitcore_lab import transaction
from implicitcore_lab.errors import Interrupted, RunError
from implicitcore_lab.runs import RunDirectory
from implicitcore_lab.settings import Settings
from implicitcore_lab.storage import DirectoryLock, exchange, write_atomic
from implicitcore_lab.transaction import Transaction, resumed

SMALL = ["--epochs", "1", "--hidden", "4", "--batch-size", "512", "--device", "cpu"]


@pytest.fixture
def run(tmp_path, monkeypatch):
    """Run a command in an empty folder; gives its output."""
    monkeypatch.chdir(tmp_path)

    def invoke(*words, status=0):
        result = CliRunner().invoke(cli, [str(word) for word in words])
        assert result.exit_code == status, result.output
        assert "Traceback" not in result.output
        return result.output

    return invoke


@pytest.fixture
def interrupted(run, monkeypatch):
    """Train and stop before the epoch's end, as a signal does."""

    def invoke(*words):
        with monkeypatch.context() as patch:
            patch.setattr("implicitcore_lab.keeper.Checkpoints.stop", lambda self: True)
            return run("train", *words, *SMALL, status=1)

    return invoke


def files(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def test_until_it_has_ended_well_a_run_is_beside_its_directory(interrupted, run, tmp_path):
    assert "stopped after step 1" in interrupted("--out", "run")
    assert not (tmp_path / "run").exists()
    names = {path.name.split("-")[0] for path in (tmp_path / "run.partial").iterdir()}
    assert names == {"checkpoint", "config.json", "metrics.jsonl", "steps.jsonl"}
    run("train", "--out", "run", "--resume")
    assert not (tmp_path / "run.partial").exists()
    assert len((tmp_path / "run" / "steps.jsonl").read_text().splitlines()) == 3
    assert "nothing is left to do" in run("train", "--out", "run", "--resume")


def test_resume_begins_where_there_is_nothing(run, tmp_path):
    run("train", "--out", "run", "--resume", *SMALL)
    run("train", "--out", "other", *SMALL)
    assert (tmp_path / "run" / "weights.safetensors").read_bytes() == (
        tmp_path / "other" / "weights.safetensors"
    ).read_bytes()


def test_a_run_cut_short_is_not_lost_by_accident(interrupted, run, tmp_path):
    interrupted("--out", "run")
    before = files(tmp_path / "run.partial")
    assert "go on with --resume" in run("train", "--out", "run", *SMALL, status=1)
    assert files(tmp_path / "run.partial") == before
    run("train", "--out", "run", "--overwrite", *SMALL)


def test_resume_with_other_settings_is_refused(interrupted, run):
    interrupted("--out", "run")
    output = run("train", "--out", "run", "--resume", "--learning-rate", "1", status=1)
    assert "learning_rate: the run in run was started with 0.003, received 1.0" in output
    run("train", "--out", "run", "--resume", "--hidden", "4", "--threads", "1")


def test_the_checkpoint_before_a_damaged_one_is_used(interrupted, run, tmp_path, monkeypatch):
    run("train", "--out", "whole", *SMALL, "--epochs", "2")
    calls = []
    with monkeypatch.context() as patch:
        patch.setattr(
            "implicitcore_lab.keeper.Checkpoints.stop",
            lambda self: calls.append(1) or len(calls) == 5,
        )
        run("train", "--out", "run", *SMALL, "--epochs", "2", status=1)
    newest, older = sorted((tmp_path / "run.partial").glob("checkpoint*"), reverse=True)
    newest.write_bytes(b"damaged")
    output = run("train", "--out", "run", "--resume")
    assert f"an older checkpoint is used: run.partial/{newest.name}: damaged" in output
    assert (tmp_path / "run" / "weights.safetensors").read_bytes() == (
        tmp_path / "whole" / "weights.safetensors"
    ).read_bytes()


def test_two_trainings_into_one_directory(run, tmp_path):
    with Transaction(tmp_path / "run"):
        output = run("train", "--out", "run", *SMALL, status=1)
        assert "run.partial: another process is training into it" in output
    run("train", "--out", "run", *SMALL)


def test_a_directory_with_something_else_is_left_alone(run, tmp_path):
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "thesis.tex").write_text("mine")
    for options in ([], ["--overwrite"], ["--resume"]):
        output = run("train", "--out", "run", *SMALL, *options, status=1)
        assert "run is not empty and holds no run" in output
    assert files(tmp_path / "run") == {"thesis.tex": b"mine"}
    assert not (tmp_path / "run.partial").exists()


@pytest.mark.parametrize("can_exchange", [True, False])
def test_overwrite_keeps_what_is_not_of_the_run(run, tmp_path, monkeypatch, can_exchange):
    if not can_exchange:
        monkeypatch.setattr(transaction, "exchange", lambda new, old: False)
    run("train", "--out", "run", *SMALL)
    (tmp_path / "run" / "notes.txt").write_text("mine")
    before = files(tmp_path / "run")
    run("train", "--out", "run", *SMALL, "--overwrite", "--seed", "1")
    after = files(tmp_path / "run")
    assert after["notes.txt"] == b"mine"
    assert after["weights.safetensors"] != before["weights.safetensors"]
    assert set(after) == set(before)
    assert {path.name for path in tmp_path.iterdir()} == {"run"}


def test_an_end_between_the_two_renames_is_undone(run, tmp_path, monkeypatch):
    run("train", "--out", "run", *SMALL)
    (tmp_path / "run").rename(tmp_path / "run.replaced")
    assert "holds a run already" in run("train", "--out", "run", *SMALL, status=1)
    run("evaluate", "run")


def test_an_end_before_the_last_rename_is_made_good(run, tmp_path, monkeypatch):
    with monkeypatch.context() as patch:
        patch.setattr(Transaction, "appear", lambda self: None)
        run("train", "--out", "run", *SMALL)
    assert (tmp_path / "run.partial" / "ready").exists()
    assert "in its place now" in run("train", "--out", "run", "--resume")
    assert "the saved accuracy, exactly" in run("evaluate", "run")


def test_a_missing_exchange_changes_nothing(tmp_path, monkeypatch):
    (tmp_path / "a").mkdir()
    (tmp_path / "b").mkdir()
    (tmp_path / "a" / "file").touch()
    assert exchange(tmp_path / "a", tmp_path / "b")
    assert (tmp_path / "b" / "file").exists()
    with pytest.raises(FileNotFoundError):
        exchange(tmp_path / "a", tmp_path / "missing")


def test_a_write_that_fails_leaves_the_old_file(tmp_path, monkeypatch):
    path = tmp_path / "file"
    write_atomic(path, b"old")

    def fail(descriptor):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", fail)
    with pytest.raises(OSError, match="No space"):
        write_atomic(path, b"new")
    assert files(tmp_path) == {"file": b"old"}


def test_a_lock_is_free_when_its_holder_lets_go(tmp_path):
    lock = DirectoryLock(tmp_path / "a")
    with pytest.raises(RunError, match="another process is training into it"):
        DirectoryLock(tmp_path / "a")
    lock.release()
    DirectoryLock(tmp_path / "a").release()


@pytest.mark.parametrize(
    ("out", "message"),
    [
        ("a" * 300, "File name too long"),
        ("x" * 251, "File name too long"),  # with .partial
        (".", "expected a directory that can be renamed"),
        ("file/run", "Not a directory"),
    ],
)
def test_paths_that_cannot_be(run, tmp_path, out, message):
    (tmp_path / "file").touch()
    assert message in run("train", "--out", out, *SMALL, status=1)
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def test_a_path_with_a_nul(tmp_path):
    for make in (RunDirectory, Transaction):
        with pytest.raises(RunError, match="cannot contain the character NUL"):
            make(tmp_path / "a\0b")


def test_a_read_only_directory(run, tmp_path):
    folder = tmp_path / "fixed"
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "ro", "tmpfs", str(folder)]
    mounted = os.getuid() == 0 and not subprocess.run(mount, capture_output=True).returncode
    if os.getuid() == 0 and not mounted:
        pytest.skip("root can write everywhere, and cannot mount a read-only file system here")
    folder.chmod(stat.S_IRUSR | stat.S_IXUSR) if not mounted else None
    try:
        output = run("train", "--out", folder / "run", *SMALL, status=1)
        assert output.count("\n") == 1
        assert "Read-only file system" in output or "Permission denied" in output
        output = run("compare", "--layers", "deq", "--out", folder / "c", *SMALL, status=1)
        assert "cannot be written" in output
    finally:
        if mounted:
            subprocess.run(["umount", str(folder)], check=True)
        folder.chmod(stat.S_IRWXU)


@pytest.mark.parametrize("name", ["config.json", "metrics.jsonl", "steps.jsonl"])
def test_a_file_that_was_changed_afterwards_is_told(run, tmp_path, name):
    run("train", "--out", "run", *SMALL)
    record = json.loads((tmp_path / "run" / "result.json").read_text())
    assert record["schema"] == 1
    assert set(record["files"]) == {
        "config.json",
        "metrics.jsonl",
        "steps.jsonl",
        "weights.safetensors",
    }
    path = tmp_path / "run" / name
    path.write_bytes(path.read_bytes() + b" ")
    assert f"run/{name}: damaged or not of this run" in run("evaluate", "run", status=1)


def test_a_run_of_another_version_is_refused(run, tmp_path):
    run("train", "--out", "run", *SMALL)
    path = tmp_path / "run" / "result.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"schema": 2}))
    assert "schema version 2" in run("evaluate", "run", status=1)
    path.write_text("[]")
    assert "expected JSON with test_correct" in run("evaluate", "run", status=1)


def test_several_seeds(run, tmp_path):
    output = run("train", "--seeds", "0,1", "--out", "runs", *SMALL)
    assert "mean +- standard deviation of 2 seeds" in output
    assert sorted(path.name for path in (tmp_path / "runs").iterdir()) == ["seed-0", "seed-1"]
    accuracies = [
        json.loads((tmp_path / "runs" / f"seed-{seed}" / "result.json").read_text())
        for seed in (0, 1)
    ]
    values = torch.tensor([each["test_accuracy"] for each in accuracies])
    assert f"{values.mean():.2%} +- {values.std():.2%}" in output
    assert "given twice" in run("train", "--seeds", "0,0", status=2)
    assert "expected whole numbers" in run("train", "--seeds", "0,x", status=2)


def test_every_setting_has_an_option():
    from dataclasses import fields

    from implicitcore_lab.cli import SETTINGS

    assert {field.name for field in fields(Settings)} == {"layer", *SETTINGS}


def test_an_interrupted_training_says_where(tmp_path):
    error = Interrupted(3).by(15, tmp_path)
    assert error.signal == 15
    assert str(tmp_path) in str(error)
    assert "--resume" in str(error)


@pytest.mark.parametrize(
    ("layer", "fits"),
    [
        ("deq", True),
        ({"name": "deq", "root_solver": "anderson"}, True),
        ("homoode", False),
        ({"name": "deq", "root_solver": "picard"}, False),
    ],
)
def test_a_run_that_was_cut_short_as_it_ended_goes_on(tmp_path, layer, fits):
    """Its configuration has all options of the layer by then."""
    whole = {"name": "deq", "root_solver": {"name": "anderson", "tol": 1e-4}, "coupled": False}
    partial = tmp_path / "here.partial"
    partial.mkdir()
    partial.joinpath("weights.safetensors").touch()
    stored = Settings(layer=whole)
    partial.joinpath("config.json").write_text(json.dumps(stored.as_data()))
    given = Settings(layer=layer)
    if fits:
        assert resumed(given, tmp_path / "here", {"layer": layer}).layer == whole
    else:
        with pytest.raises(RunError, match="was started with"):
            resumed(given, tmp_path / "here", {"layer": layer})
