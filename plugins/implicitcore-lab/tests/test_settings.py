import os
from pathlib import Path

import pytest
import torch

from implicitcore import ConfigError
from implicitcore_lab.data import source
from implicitcore_lab.experiment import check_settings, cpu_threads
from implicitcore_lab.settings import Settings, read_settings


def test_defaults_come_from_the_data_set():
    for name in ("digits", "mnist", "fashion-mnist", "cifar10"):
        defaults = source(name).defaults
        assert defaults
        settings = read_settings({"dataset": name})
        assert {key: getattr(settings, key) for key in defaults} == defaults
    assert read_settings({}) == read_settings({"dataset": "digits"})
    assert read_settings({"dataset": "mnist", "epochs": 1}).epochs == 1


def test_texts_of_a_command_line_and_of_yaml():
    settings = read_settings({"epochs": "7", "learning_rate": "1e-3", "data_dir": "somewhere"})
    assert (settings.epochs, settings.learning_rate, settings.data_dir) == (
        7,
        1e-3,
        Path("somewhere"),
    )


def test_round_trip():
    settings = read_settings(
        {
            "layer": {"name": "deq", "root_solver": {"name": "picard"}},
            "data_dir": "somewhere",
            "seed": 3,
        }
    )
    assert read_settings(settings.as_data()) == settings


def test_all_problems_in_one_error():
    values = {
        "epoch": 3,
        "batch_size": 0,
        "learning_rate": "fast",
        "dataset": "digit",
        "seed": -1,
        "hidden": 2.5,
        "device": "gpu",
    }
    with pytest.raises(ConfigError) as raised:
        read_settings(values)
    text = str(raised.value)
    assert len(raised.value.problems) == len(values)
    assert "epoch: unknown setting; did you mean 'epochs'?" in text
    for name in values:
        assert f"\n  {name}: " in text


def test_problems_of_settings_and_layers_come_together():
    layers = ["deqq", {"name": "deq", "root_solver": {"name": "anderson", "toll": 1e-3}}, 3]
    with pytest.raises(ConfigError) as raised:
        check_settings({"epochs": -1}, layers)
    problems = raised.value.problems
    assert [problem.split(":")[0] for problem in problems] == [
        "epochs",
        "layer",
        "layer.root_solver.toll",
        "layer",
    ]
    assert "did you mean 'deq'" in problems[1]
    assert "did you mean 'tol'" in problems[2]


def test_each_layer_gets_the_same_settings():
    each = check_settings({"epochs": 2}, ["deq", "homoode"])
    assert [settings.layer for settings in each] == ["deq", "homoode"]
    assert each[0].with_layer("homoode") == each[1]


@pytest.mark.parametrize(
    ("values", "message"),
    [
        (
            {"learning_rate": "inf"},
            "learning_rate: expected a finite number",
        ),
        ({"learning_rate": "nan"}, "learning_rate: expected a finite number"),
        ({"threads": 10**9}, "threads: expected a number less than or equal to 1000000"),
        ({"epochs": 10**12}, "epochs: expected a number less than or equal to 1000000"),
        ({"seed": 2**64}, "seed: expected a number less than"),
        ({"hidden": 10**6}, "hidden: a cell of 1,000,000 features needs 16,000 GB"),
        ({"patience": 2}, "patience: it is counted on validation images, and none are held out"),
        ({"device": "cpu", "precision": "16-mixed"}, "precision: 16-mixed needs a CUDA device"),
        (
            {"precision": "16-mixed", "strategy": "fsdp", "devices": 2},
            "16-mixed cannot be used with strategy fsdp",
        ),
        ({"precision": "16-mixed", "start_optimizer": "sgd"}, "start_optimizer: one loss scale"),
    ],
)
def test_settings_that_would_end_badly(values, message):
    with pytest.raises(ConfigError, match=message):
        check_settings(values, ["deq"])


def test_more_threads_than_cores_are_as_many_as_cores():
    before = torch.get_num_threads()
    with cpu_threads(Settings(threads=1_000_000)):
        assert torch.get_num_threads() <= max(os.cpu_count() or 1, before)
    assert torch.get_num_threads() == before


def test_precision_may_be_a_number():
    assert read_settings({"precision": 32}).precision == "32"


def test_settings_cannot_be_wrong():
    with pytest.raises(
        ConfigError, match="epochs: expected a number greater than or equal to 1, received 0"
    ):
        Settings(epochs=0)
