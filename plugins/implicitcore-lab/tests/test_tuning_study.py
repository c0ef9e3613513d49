"""The study of several processes, and the command."""

import json
import subprocess
import sys

import pytest
import torch
import yaml
from PIL import Image

import implicitcore as ic
from implicitcore_lab import TuningOptions, tune
from implicitcore_lab.errors import RunError
from implicitcore_lab.tuning.study import FINISHED, open_study
from implicitcore_layers import ContractiveCell


@pytest.fixture
def cell():
    torch.manual_seed(0)
    return ContractiveCell(6)


@pytest.fixture
def x():
    return torch.randn(8, 6, generator=torch.Generator().manual_seed(1))


def test_a_study_goes_on_and_is_of_one_problem(cell, x, tmp_path):
    kept = {"storage": str(tmp_path / "deep" / "journal.log"), "study": "mine", "repeats": 1}
    first = tune("deq", x, cell, trials=3, **kept)
    again = tune("deq", x, cell, trials=5, **kept)
    assert [it.number for it in again.rows] == [0, 1, 2, 3, 4]
    assert again.rows[:3] == first.rows
    assert [it.is_default for it in again.rows] == [True, False, False, False, False]
    with pytest.raises(RunError, match="the study 'mine' is of another problem"):
        tune("continuous_deq", x, cell, trials=6, **kept)
    with pytest.raises(RunError, match=r"storage no-such-database://here"):
        tune("deq", x, cell, storage="no-such-database://here")


def test_a_database_keeps_a_study(cell, x, tmp_path):
    url = f"sqlite:///{tmp_path / 'trials.db'}"
    tune("deq", x, cell, trials=2, repeats=1, storage=url)
    assert len(tune("deq", x, cell, trials=3, repeats=1, storage=url).rows) == 3


PROCESS = """
import pathlib, sys, time, torch
from implicitcore_lab import TuningOptions, tune
from implicitcore_layers import ContractiveCell
torch.manual_seed(0)
torch.set_num_threads(1)
cell, x = ContractiveCell(6), torch.randn(8, 6)
folder = pathlib.Path(sys.argv[1]).parent
(folder / f"ready-{sys.argv[2]}").touch()
while len(list(folder.glob("ready-*"))) < 2:
    time.sleep(0.01)
own = []
found = tune("deq", x, cell, trials=10, repeats=1, storage=sys.argv[1], report=own.append)
exact = found.best.measured.gradient_error <= found.max_gradient_error
print(len(own), found.default.number, exact)
"""


@pytest.mark.slow
def test_two_processes_share_a_journal(tmp_path):
    journal = str(tmp_path / "journal.log")
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    processes = [
        subprocess.Popen([sys.executable, "-c", PROCESS, journal, name], **pipes)
        for name in ("a", "b")
    ]
    told = [process.communicate(timeout=240) for process in processes]
    assert [process.returncode for process in processes] == [0, 0], told
    own = [int(out.split()[0]) for out, _ in told]
    study = open_study(TuningOptions(storage=journal))
    trials = study.get_trials(states=FINISHED)
    defaults = [it for it in trials if not it.params]
    others = [it for it in trials if it.params]
    assert 1 <= len(defaults) <= 2  # both may have measured it in the same moment
    assert sum(own) == len(others) + 1
    assert 10 <= len(trials) <= 12  # each may have one under way at the end
    assert min(own) >= 1
    assert len({it.user_attrs["worker"] for it in trials}) == 2
    assert len({json.dumps(it.params) for it in others}) == len(others)  # none twice
    assert all(out.split()[1:] == ["0", "True"] for out, _ in told)


SETTINGS = {"layer": "deq", "dataset": "digits", "hidden": 8, "batch_size": 32, "device": "cpu"}
FEW = ["--trials", "6", "--repeats", "1", "--threads", "1"]


def test_the_command(command, tmp_path):
    (tmp_path / "s.yaml").write_text(yaml.safe_dump(SETTINGS))
    output = command("tune", "s.yaml", *FEW, "--max-gradient-error", "1e-2").output
    assert "Pareto front" in output
    assert "the default" in output
    assert "trial   0  x 1.00" in output
    record = json.loads((tmp_path / "tuned" / "trials.json").read_text())
    assert record["max_gradient_error"] == 1e-2
    assert [it["number"] for it in record["trials"]] == list(range(6))
    assert [it["default"] for it in record["trials"]] == [True] + 5 * [False]
    with Image.open(tmp_path / "tuned" / "front.png") as picture:
        assert picture.size == (960, 600)
    said = command("config", "validate", "tuned/best.yaml").output
    assert "valid configuration of a layer (DEQ)" in said
    best = ic.load_config(tmp_path / "tuned" / "best.yaml")
    assert best == record["config"]
    layer = ic.build(best, ContractiveCell(8))
    assert layer.config == best
    again = command("tune", "tuned/best.yaml", "--trials", "1", "--batch-size", "16").output
    assert "deq on 16 samples of digits" in again


def test_the_command_takes_a_run_and_its_weights(command, tmp_path):
    command("train", "--epochs", "1", "--hidden", "8", "--out", "run", "--device", "cpu")
    output = command("tune", "run", "--trials", "2", "--repeats", "1").output
    assert "deq on 128 samples of digits" in output
    (tmp_path / "run" / "weights.safetensors").write_bytes(b"something else")
    assert "damaged" in command("tune", "run", "--trials", "2", status=1).output


def test_the_command_says_what_is_wrong(command, tmp_path):
    (tmp_path / "s.yaml").write_text(yaml.safe_dump({**SETTINGS, "layer": "deqq", "hiden": 3}))
    output = command("tune", "s.yaml", status=1).output
    assert "did you mean 'deq'" in output
    assert "did you mean 'hidden'" in output
    (tmp_path / "s.yaml").write_text(yaml.safe_dump(SETTINGS))
    output = command("tune", "s.yaml", "--trials", "none", "--minutes", "-1", status=1).output
    assert "trials: expected an integer" in output
    assert "minutes: expected a number greater than 0" in output
    output = command("tune", "s.yaml", "--root-solver", "andersen", status=1).output
    assert "did you mean 'anderson'" in output
    assert "nowhere.yaml" in command("tune", "nowhere.yaml", status=1).output
