"""A saved run is data: reading it back runs no pickle, so a run folder from anybody is safe to
evaluate."""

import _pickle
import io
import pickle

import pytest
import torch
from click.testing import CliRunner

from implicitcore.cli import cli

SMALL = ["--epochs", "1", "--hidden", "8", "--batch-size", "256", "--device", "cpu"]


def refuse(*args, **kwargs):
    raise AssertionError("a pickle was read")


class Refuse:
    __init__ = refuse


@pytest.fixture
def no_pickle(monkeypatch):
    """Nothing can be unpickled, whichever way it is asked for."""
    for module, name in (
        (pickle, "load"),
        (pickle, "loads"),
        (_pickle, "load"),
        (_pickle, "loads"),
        (torch, "load"),
    ):
        monkeypatch.setattr(module, name, refuse)
    for module in (pickle, _pickle):
        monkeypatch.setattr(module, "Unpickler", Refuse)
    monkeypatch.setattr(pickle, "_Unpickler", Refuse)


@pytest.mark.parametrize("layer", ["deq", "skip_deq", "homoode"])
def test_a_run_is_read_back_without_pickle(tmp_path, monkeypatch, request, layer):
    monkeypatch.chdir(tmp_path)
    trained = CliRunner().invoke(cli, ["train", "--layer", layer, "--out", "run", *SMALL])
    assert trained.exit_code == 0, trained.output
    request.getfixturevalue("no_pickle")
    evaluated = CliRunner().invoke(cli, ["evaluate", "run"])
    assert "the saved accuracy, exactly" in evaluated.output, evaluated.exception


@pytest.mark.parametrize("layer", ["homoode"])
def test_a_run_goes_on_without_pickle(tmp_path, monkeypatch, request, layer):
    monkeypatch.chdir(tmp_path)
    words = ["train", "--layer", layer, "--out", "run"]
    with monkeypatch.context() as patch:
        patch.setattr("implicitcore_lab.keeper.Checkpoints.stop", lambda self: True)
        assert CliRunner().invoke(cli, [*words, *SMALL]).exit_code == 1
    request.getfixturevalue("no_pickle")
    resumed = CliRunner().invoke(cli, [*words, "--resume"])
    assert resumed.exit_code == 0, resumed.output
    assert (tmp_path / "run" / "result.json").exists()


def test_weights_that_are_a_pickle_are_refused(tmp_path, monkeypatch, no_pickle, sign):
    monkeypatch.chdir(tmp_path)
    CliRunner().invoke(cli, ["train", "--out", "run", *SMALL])
    stream = io.BytesIO()
    pickle.dump({"head.bias": [0.0]}, stream)
    (tmp_path / "run" / "weights.safetensors").write_bytes(stream.getvalue())
    sign(tmp_path / "run")
    evaluated = CliRunner().invoke(cli, ["evaluate", "run"])
    assert evaluated.exit_code == 1
    assert "weights.safetensors: not the weights of this configuration" in evaluated.output


def test_the_block_blocks(no_pickle):
    data = pickle.dumps(1)
    for read in (
        lambda: pickle.loads(data),
        lambda: pickle.Unpickler(io.BytesIO(data)).load(),
        lambda: torch.load(io.BytesIO(data)),
    ):
        with pytest.raises(AssertionError, match="a pickle was read"):
            read()
