"""Each setting has an effect: what is trained with another value is something else."""

from dataclasses import fields, replace
from functools import cache

import pytest
import torch

from implicitcore_lab.data import Dataset, Split
from implicitcore_lab.models import build_classifier
from implicitcore_lab.settings import Settings, read_settings
from implicitcore_lab.training import Training

BASE = read_settings({"hidden": 4, "epochs": 2, "batch_size": 16, "device": "cpu"})
START: dict[str, object] = {"layer": "homoode", "start_optimizer": "sgd"}
UNROLLED: dict[str, object] = {"unrolled_steps": 2}
SGD: dict[str, object] = {"optimizer": "sgd"}
STEPS: dict[str, object] = {"schedule": "step", "decay_epochs": 1}

# What each setting is changed to, and what it is changed beside.
CHANGES: dict[str, list[tuple[object, dict[str, object]]]] = {
    "layer": [("skip_reg_deq", {}), ({"name": "deq", "root_solver": "picard"}, {})],
    "model": [("convolutional", {})],
    "hidden": [(5, {})],
    "epochs": [(3, {})],
    "batch_size": [(8, {})],
    "accumulate": [(2, {})],
    "learning_rate": [(1e-3, {})],
    "optimizer": [("adamw", {"weight_decay": 0.1}), ("sgd", {})],
    "momentum": [(0.5, SGD)],
    "weight_decay": [(0.1, {}), (0.1, SGD), (0.1, {"optimizer": "adamw"})],
    "schedule": [("cosine", {}), ("step", {"decay_epochs": 1})],
    "decay": [(0.5, STEPS)],
    "decay_epochs": [(2, STEPS)],
    "warmup": [(3, {})],
    "clip": [(1e-3, SGD)],
    "label_smoothing": [(0.2, {})],
    "regularizer_weight": [(0.0, {"layer": "skip_reg_deq"}), (9.0, {"layer": "skip_deq"})],
    "jacobian_weight": [(1.0, {})],
    "unrolled_steps": [(3, UNROLLED)],
    "unrolled_depth": [(1, UNROLLED)],
    "warm_start": [(True, {})],
    "start_optimizer": [("adam", {"layer": "skip_deq"}), ("sgd", {"layer": "homoode"})],
    "start_learning_rate": [(0.5, START)],
    "start_every": [(2, START)],
    "ema": [(0.5, {}), (0.1, {"ema": 0.5})],
    "validation": [(0.25, {})],
    "patience": [(1, {"validation": 0.25, "epochs": 6, "learning_rate": 1e-6})],
    "flip": [(True, {})],
    "crop": [(2, {})],
    "seed": [(1, {})],
    "precision": [("bf16-mixed", {})],
    "tolerance": [(1e-1, {})],
}
NO_EFFECT = {
    "dataset": "what is read, as the tests of the data sets say",
    "data_dir": "where it is read",
    "device": "where it is trained",
    "devices": "how many processes: the same weights, as test_processes.py says",
    "strategy": "how they share: the same",
    "compile": "how it is computed: the same to rounding",
    "threads": "on how many cores",
    "checkpoint_minutes": "how often it is written",
}
CASES = [
    pytest.param(name, value, beside, id=f"{name}={value}")
    for name, changes in CHANGES.items()
    for value, beside in changes
]


def test_every_setting_is_here():
    assert CHANGES.keys() | NO_EFFECT.keys() == {field.name for field in fields(Settings)}
    assert not CHANGES.keys() & NO_EFFECT.keys()


def trained(settings):
    images = torch.randn(48, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    whole = Dataset(
        "random", Split(images, torch.arange(48) % 3), Split(images, torch.arange(48) % 3), 3
    )
    data = whole.holding_out(settings.validation)
    training = Training(build_classifier(settings, data.shape, data.classes), data, settings)
    training.run()
    return training.model.state_dict()


@cache
def trained_before(**beside):
    """The same each time: shared by the cases that change one setting beside these."""
    before = replace(BASE, **beside)
    one, again = trained(before), trained(before)
    assert all(torch.equal(one[key], again[key]) for key in one)
    return one


@pytest.mark.parametrize(("name", "value", "beside"), CASES)
def test_another_value_trains_something_else(name, value, beside):
    one, other = trained_before(**beside), trained(replace(BASE, **{**beside, name: value}))
    same = one.keys() == other.keys() and all(torch.equal(one[key], other[key]) for key in one)
    assert not same
