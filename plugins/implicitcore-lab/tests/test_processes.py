"""Several processes train what one trains."""

import json
import signal
import subprocess
import sys
import time
from dataclasses import replace

import pytest
import torch
from faults.lab import Around, Command
from faults.ranks import launch
from safetensors.torch import load_file

from implicitcore_lab.data import Dataset, Split
from implicitcore_lab.models import build_classifier
from implicitcore_lab.settings import read_settings
from implicitcore_lab.training import Training

# 1437 images are 20 steps; the last has 69 images, 35 on one process and 34 on the other.
TRAIN = ["train", "--epochs", "1", "--hidden", "8", "--batch-size", "72", "--device", "cpu"]
TRAIN += ["--clip", "1", "--ema", "0.9"]


@pytest.fixture(scope="module")
def alone(tmp_path_factory):
    """What one process trains."""
    folder = tmp_path_factory.mktemp("alone")
    run = Command(*TRAIN, "--out", folder / "run", around=Around(folder / "log"))
    assert run.status == 0, run.output
    return folder / "run"


def difference(one, other):
    first, second = (load_file(folder / "weights.safetensors") for folder in (one, other))
    assert first.keys() == second.keys()
    return max((first[name] - second[name]).abs().max().item() for name in first)


@pytest.mark.parametrize("strategy", ["ddp", "fsdp"])
@pytest.mark.slow
def test_two_processes_equal_one(alone, tmp_path, strategy):
    words = [*TRAIN, "--strategy", strategy, "--out", tmp_path / "run"]
    ranks = launch(words, tmp_path)
    assert [rank.status for rank in ranks] == [0, 0], ranks[0].output + ranks[1].output
    assert len((tmp_path / "run" / "steps.jsonl").read_text().splitlines()) == 20
    counts = [json.loads((tmp_path / f"counts-{rank}").read_text())[:20] for rank in (0, 1)]
    assert counts[0] != counts[1]  # each process stops when its own samples have converged
    assert difference(alone, tmp_path / "run") < 1e-6
    assert ranks[1].output == ""


@pytest.mark.parametrize("dead", [0, 1])
def test_a_process_that_dies_ends_the_others(tmp_path, dead):
    words = [*TRAIN, "--epochs", "1000", "--out", tmp_path / "run"]
    ranks = launch(words, tmp_path)
    steps = tmp_path / "run.partial" / "metrics.jsonl"
    while not (steps.exists() and steps.stat().st_size):
        assert ranks[0].process.is_alive(), ranks[0].output
        time.sleep(0.05)
    begin = time.monotonic()
    ranks[dead].send_after(signal.SIGKILL, 0)
    left = ranks[1 - dead]
    assert left.status == 1
    assert time.monotonic() - begin < 60
    assert "another process of this training has ended" in left.output
    assert "go on with --resume" in left.output


@pytest.mark.slow
def test_a_signal_to_one_stops_all_and_they_go_on(tmp_path):
    words = [*TRAIN, "--epochs", "2", "--out", tmp_path / "run"]
    whole = [*TRAIN, "--epochs", "2", "--out", tmp_path / "whole"]
    assert [rank.status for rank in launch(whole, tmp_path)] == [0, 0]
    ranks = launch(words, tmp_path)
    steps = tmp_path / "run.partial" / "metrics.jsonl"
    while not (steps.exists() and steps.stat().st_size):
        assert ranks[0].process.is_alive(), ranks[0].output
        time.sleep(0.01)
    ranks[1].send_after(signal.SIGTERM, 0, wait=False)
    assert [rank.status for rank in ranks] == [1, 128 + signal.SIGTERM]
    assert [rank.status for rank in launch([*words, "--resume"], tmp_path)] == [0, 0]
    assert difference(tmp_path / "run", tmp_path / "whole") == 0


def test_an_error_is_told_once(tmp_path):
    words = ["train", "--dataset", "mnist", "--data-dir", tmp_path, "--out", tmp_path / "run"]
    ranks = launch(words, tmp_path)
    assert [rank.status for rank in ranks] == [1, 1]
    told = ranks[0].output + ranks[1].output
    assert told.count("train-images-idx3-ubyte.gz: no such file") == 1
    assert "Traceback" not in told
    assert not (tmp_path / "run.partial").exists()


@pytest.mark.slow
def test_torchrun_and_devices(alone, tmp_path):
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node=2"]
    for name, command in (
        ("torchrun", [*torchrun, "-m", "implicitcore", *TRAIN]),
        ("devices", [sys.executable, "-m", "implicitcore", *TRAIN, "--devices", "2"]),
    ):
        words = [*command, "--out", str(tmp_path / name)]
        done = subprocess.run(words, capture_output=True, text=True, timeout=200)
        assert done.returncode == 0, done.stderr
        assert difference(alone, tmp_path / name) < 1e-6


@pytest.mark.parametrize("layer", ["deq", "skip_deq"])
def test_two_batches_for_one_step_equal_one_of_twice_the_size(layer):
    images = torch.randn(44, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    split = Split(images, torch.arange(44) % 3)
    data = Dataset("random", split, split.first(10), classes=3)
    solver = {"name": "anderson", "tol": 1e-6}
    settings = read_settings(
        {
            "hidden": 4,
            "epochs": 3,
            "batch_size": 16,
            "layer": {"name": layer, "root_solver": solver},
        }
    )
    trained = []
    for one in (settings, replace(settings, batch_size=8, accumulate=2)):
        model = build_classifier(one, data.shape, data.classes)
        history = Training(model, data, one).run()
        assert [step.samples for step in history.steps] == [16, 16, 12] * 3
        trained.append(model.state_dict())
    for name, value in trained[0].items():
        assert torch.allclose(value, trained[1][name], atol=1e-5), name


def test_mixed_precision_trains(tmp_path):
    words = [*TRAIN, "--precision", "bf16-mixed", "--out", tmp_path / "run"]
    run = Command(*words, around=Around(tmp_path / "log"))
    assert run.status == 0, run.output
    weights = load_file(tmp_path / "run" / "weights.safetensors")
    assert {value.dtype for value in weights.values()} == {torch.float32}
    steps = (tmp_path / "run" / "steps.jsonl").read_text().splitlines()
    losses = [json.loads(step)["loss"] for step in steps]
    assert sum(losses[-5:]) < sum(losses[:5])
