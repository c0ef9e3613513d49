import json

import pytest
import torch
import yaml
from PIL import Image

from implicitcore.testing.expect import known

SMALL = ["--epochs", "1", "--hidden", "8", "--batch-size", "256", "--device", "cpu"]


@pytest.fixture
def run(command):
    return command


def test_compare(run, tmp_path):
    output = run("compare", "--layers", "deq,homoode", "--out", "here", *SMALL).output
    assert "deq  epoch 1/1  loss" in output
    assert "homoode  epoch 1/1  loss" in output
    assert "\x1b" not in output  # not a terminal: no control sequences
    for column in (
        "accuracy",
        "per step",
        "forward",
        "backward",
        "memory",
        "parameters",
        "residual",
    ):
        assert column in output
    results = json.loads((tmp_path / "here" / "results.json").read_text())
    deq, homoode = results["layers"]
    assert deq["test_samples"] == homoode["test_samples"] == 360
    assert (
        deq["parameters"] == 8 * 65 + 2 * 8 + 8 * 9 + 10 * 9
    )  # encoder, its normalisation, cell, head
    field = 2 * 8 * 9 + 2 * 2 * 8  # two maps, two normalisations, in the place of the cell
    assert homoode["parameters"] == deq["parameters"] - 8 * 9 + field + 8  # the learned start
    assert deq["tolerance"] == homoode["tolerance"] == 1e-4
    assert "accuracy: of 360 test images, one is 0.28%; 95% confidence interval: +-" in output
    assert "tolerance: 1e-04 for every layer" in output
    assert deq["worst_residual"] < 1e-2
    assert homoode["worst_residual"] is None
    assert deq["residuals"]
    assert homoode["residuals"] == []
    assert deq["config"]["name"] == "deq"
    assert results["settings"]["seed"] == 0
    with Image.open(tmp_path / "here" / "comparison.png") as picture:
        assert picture.size == (1440, 600)
        assert len(known(picture.convert("RGB").getcolors(1_000_000))) > 20


def test_compare_finds_every_problem_before_it_trains(run, tmp_path):
    output = run(
        "compare",
        "--layers",
        "deq,homode",
        "--epochs",
        "-1",
        "--dataset",
        "mnits",
        "--out",
        "here",
        status=1,
    ).output
    assert "3 problems" in output
    for name in ("epochs", "dataset", "layer"):
        assert f"  {name}: " in output
    assert "did you mean 'homoode'" in output
    assert not (tmp_path / "here").exists()


def test_compare_at_another_tolerance(run, tmp_path):
    output = run("compare", "--layers", "deq", "--tolerance", "1e-2", *SMALL).output
    assert "tolerance: 1e-02 for every layer" in output
    (deq,) = json.loads((tmp_path / "comparison" / "results.json").read_text())["layers"]
    assert deq["config"]["root_solver"]["tol"] == deq["tolerance"] == 1e-2
    assert "solver" not in deq["config"]["gradient"]  # which then follows it


def test_a_saved_run_keeps_its_tolerance(run, tmp_path):
    run("train", "--layer", "neural_ode", "--tolerance", "1e-2", "--out", "run", *SMALL)
    assert json.loads((tmp_path / "run" / "config.json").read_text())["tolerance"] == 1e-2
    assert "the saved accuracy, exactly" in run("evaluate", "run").output


def test_compare_needs_a_layer(run):
    assert "expected at least one name" in run("compare", "--layers", ",", status=1).output


@pytest.mark.parametrize("layer", ["deq", "skip_deq", "skip_reg_deq", "homoode"])
def test_train_then_evaluate(run, tmp_path, layer):
    run("train", "--layer", layer, "--out", "run", *SMALL)
    folder = tmp_path / "run"
    assert sorted(path.name for path in folder.iterdir()) == [
        "config.json",
        "metrics.jsonl",
        "result.json",
        "steps.jsonl",
        "weights.safetensors",
    ]
    result = json.loads((folder / "result.json").read_text())
    metrics = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    assert metrics == result["epochs"]
    assert metrics[-1]["test_accuracy"] == result["test_accuracy"]
    output = run("evaluate", "run").output
    assert f"{result['test_correct']} of 360" in output
    assert "the saved accuracy, exactly" in output


def test_evaluate_tells_when_the_accuracy_differs(run, tmp_path):
    run("train", "--out", "run", *SMALL)
    path = tmp_path / "run" / "result.json"
    result = json.loads(path.read_text())
    path.write_text(json.dumps(result | {"test_correct": result["test_correct"] + 1}))
    assert "DIFFERS" in run("evaluate", "run", status=1).output


def test_learned_start_is_saved(run, tmp_path):
    from safetensors.torch import load_file

    run("train", "--layer", "homoode", "--out", "run", *SMALL)
    starts = [
        value
        for name, value in load_file(tmp_path / "run" / "weights.safetensors").items()
        if "start" in name
    ]
    assert [tuple(value.shape) for value in starts] == [(8,)]
    assert starts[0].abs().min() > 0


def test_train_from_yaml_with_options_over_it(run, tmp_path):
    layer = {
        "name": "deq",
        "root_solver": {"name": "picard", "tol": "1e-3", "max_steps": 40},
        "gradient": "phantom",
    }
    (tmp_path / "settings.yaml").write_text(
        yaml.safe_dump({"layer": layer, "hidden": 8, "epochs": 5, "batch_size": 256})
    )
    run("train", "--config", "settings.yaml", "--epochs", "1")
    saved = json.loads((tmp_path / "runs" / "digits-deq" / "config.json").read_text())
    assert saved["epochs"] == 1
    assert saved["hidden"] == 8
    assert saved["layer"]["root_solver"]["tol"] == 1e-3
    assert saved["layer"]["gradient"]["name"] == "phantom"
    run("evaluate", "runs/digits-deq")


def test_a_saved_configuration_trains_the_same_again(run, tmp_path):
    run("train", "--layer", "deq", "--out", "first", *SMALL)
    run("train", "--config", "first/config.json", "--out", "second")
    first, second = (
        (tmp_path / name / "weights.safetensors").read_bytes() for name in ("first", "second")
    )
    assert first == second


def test_config_problems_have_their_paths(run, tmp_path):
    layer = {"name": "deq", "root_solver": {"name": "andersen"}, "strickt": True}
    (tmp_path / "settings.yaml").write_text(yaml.safe_dump({"layer": layer, "epoch": 5}))
    output = run("train", "--config", "settings.yaml", status=1).output
    assert "epoch: unknown setting; did you mean 'epochs'?" in output
    assert "layer.root_solver: unknown root_solver 'andersen'; did you mean 'anderson'" in output
    assert "layer.strickt: unknown option" in output
    assert not (tmp_path / "runs").exists()


def test_a_run_is_not_overwritten_by_accident(run):
    run("train", "--out", "run", *SMALL)
    assert "holds a run already" in run("train", "--out", "run", *SMALL, status=1).output
    run("train", "--out", "run", "--overwrite", *SMALL)


def test_evaluate_without_a_run(run, tmp_path):
    assert "result.json: no such file" in run("evaluate", "nowhere", status=1).output


@pytest.mark.parametrize("name", ["config.json", "weights.safetensors", "result.json"])
def test_evaluate_a_damaged_run(run, tmp_path, name):
    run("train", "--out", "run", *SMALL)
    (tmp_path / "run" / name).write_bytes(b"{damaged")
    assert name in run("evaluate", "run", status=1).output
    (tmp_path / "run" / name).unlink()
    assert f"{name}: no such file" in run("evaluate", "run", status=1).output


def test_weights_of_another_configuration(run, tmp_path, sign):
    run("train", "--out", "run", *SMALL)
    path = tmp_path / "run" / "config.json"
    path.write_text(path.read_text().replace('"hidden": 8', '"hidden": 9'))
    assert "run/config.json: damaged" in run("evaluate", "run", status=1).output
    sign(tmp_path / "run")
    assert "not the weights of this configuration" in run("evaluate", "run", status=1).output


@pytest.mark.skipif(torch.cuda.is_available(), reason="asks for what is not there")
def test_cuda_where_there_is_none(run):
    assert (
        "torch finds no CUDA device"
        in run("compare", "--device", "cuda", "--layers", "deq", status=1).output
    )


def test_missing_data_folder(run, tmp_path):
    output = run(
        "compare",
        "--dataset",
        "mnist",
        "--data-dir",
        tmp_path / "nowhere",
        "--layers",
        "deq",
        status=1,
    ).output
    assert "train-images-idx3-ubyte.gz: no such file" in output


def test_cifar10_note_reaches_the_report(run, tmp_path, monkeypatch):
    from implicitcore_lab import jobs
    from implicitcore_lab.data import Dataset, Split

    split = Split(torch.randn(32, 3, 8, 8), torch.arange(32) % 10)
    monkeypatch.setattr(
        jobs, "load", lambda name, folder: Dataset(name, split, split, note="recompressed")
    )
    output = run(
        "compare", "--dataset", "cifar10", "--layers", "deq", *SMALL, "--out", "here"
    ).output
    assert "data: recompressed" in output
    assert (
        json.loads((tmp_path / "here" / "results.json").read_text())["data_note"] == "recompressed"
    )


@pytest.mark.slow(80)
@pytest.mark.timeout(900)
def test_mnist_in_one_epoch(run, real_data, tmp_path):
    """In half as many steps as by default, at a learning rate for them."""
    run(
        "compare",
        "--dataset",
        "mnist",
        "--data-dir",
        real_data / "mnist",
        "--epochs",
        "1",
        "--batch-size",
        "256",
        "--learning-rate",
        "5e-3",
        "--out",
        "here",
    )
    layers = json.loads((tmp_path / "here" / "results.json").read_text())["layers"]
    assert len(layers) == 6
    assert all(layer["test_accuracy"] > 0.94 for layer in layers)


@pytest.mark.slow(25)
def test_digits_by_default(run, tmp_path):
    run("compare")
    layers = json.loads((tmp_path / "comparison" / "results.json").read_text())["layers"]
    assert len(layers) == 6
    assert all(layer["test_accuracy"] > 0.95 for layer in layers)
    assert all(layer["unconverged_train"] == layer["unconverged_test"] == 0 for layer in layers)
