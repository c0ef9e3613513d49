"""The parts of a training as papers have them, each with the value it should have."""

import math
from dataclasses import replace

import pytest
import torch
from torch import nn
from torch.nn.functional import cross_entropy

import implicitcore as ic
from implicitcore_lab.augment import augmented
from implicitcore_lab.data import Dataset, Split
from implicitcore_lab.errors import DataError, TrainingError
from implicitcore_lab.models import build_classifier
from implicitcore_lab.objective import Objective
from implicitcore_lab.optimisation import (
    AveragedWeights,
    build_optimizers,
    parameter_groups,
    rate_factor,
)
from implicitcore_lab.settings import Settings, read_settings
from implicitcore_lab.training import Training

SETTINGS = read_settings({"hidden": 4, "epochs": 2, "batch_size": 16})


@pytest.fixture
def data():
    images = torch.randn(40, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    split = Split(images, torch.arange(40) % 3)
    return Dataset("random", split, split.first(10), classes=3)


def build(settings, data):
    return build_classifier(settings, data.shape, data.classes)


def train(settings, data):
    training = Training(build(settings, data), data.holding_out(settings.validation), settings)
    return training, training.run()


# --- the learning rate


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({}, [1, 1, 1, 1]),
        ({"schedule": "cosine"}, [1, (1 + math.cos(math.pi / 4)) / 2, 0.5, None]),
        ({"schedule": "cosine", "warmup": 2}, [0.5, 1, 1, 0.5]),
        ({"schedule": "step", "decay": 0.5, "decay_epochs": 1}, [1, 1, 0.5, 0.5]),
        ({"warmup": 3}, [1 / 3, 2 / 3, 1, 1]),
    ],
)
def test_schedules(changes, expected):
    settings = replace(Settings(epochs=2), **changes)
    for step, value in enumerate(expected):
        if value is not None:
            assert rate_factor(settings, step, 2) == pytest.approx(value)


def test_the_schedule_reaches_the_optimiser_and_the_record(data):
    training, history = train(replace(SETTINGS, schedule="cosine", learning_rate=0.1), data)
    last = (1 + math.cos(math.pi * 5 / 6)) / 2  # 40 images in batches of 16: three steps an epoch
    assert history.epochs[-1].learning_rate == pytest.approx(0.1 * last)


# --- roles


def test_each_layer_says_its_roles(data):
    for layer, expected in (
        ("deq", {"dynamics", "model"}),
        ("skip_deq", {"dynamics", "start", "model"}),
        ("homoode", {"dynamics", "start", "model"}),
        ("skip_reg_deq", {"dynamics", "model"}),
    ):
        model = build(SETTINGS.with_layer(layer), data)
        groups = parameter_groups(model)
        assert {group["role"] for group in groups} == expected
        found = [parameter for group in groups for parameter in group["params"]]
        assert len(found) == len(set(found)) == len(list(model.parameters()))


def test_a_layer_with_roles_of_its_own_is_asked():
    class Cell(nn.Module):
        def __init__(self):
            super().__init__()
            self.linear = nn.Linear(2, 2)

        def forward(self, z, x):
            return torch.tanh(self.linear(z) + x)

    class Layer(ic.ImplicitLayer):
        def parameter_groups(self):
            return [{"role": "slow", "params": list(self.dynamics.parameters())}]

    layer = Layer(ic.FixedPoint(Cell()), solver=ic.Picard())
    model = nn.Sequential(nn.Linear(2, 2), layer)
    assert [group["role"] for group in parameter_groups(model)] == ["slow", "model"]


def test_frozen_parameters_are_in_no_group(data):
    model = build(SETTINGS, data)
    model.encoder.requires_grad_(False)
    found = [parameter for group in parameter_groups(model) for parameter in group["params"]]
    assert not set(found) & set(model.encoder.parameters())


@pytest.mark.parametrize(
    ("name", "kind"),
    [("adam", torch.optim.Adam), ("adamw", torch.optim.AdamW), ("sgd", torch.optim.SGD)],
)
def test_optimisers(data, name, kind):
    settings = replace(
        SETTINGS.with_layer("homoode"), optimizer=name, weight_decay=0.1, momentum=0.5
    )
    (optimizer,) = build_optimizers(build(settings, data), settings)
    assert type(optimizer) is kind
    decays = {group["role"]: group["weight_decay"] for group in optimizer.param_groups}
    assert decays == {"dynamics": 0.1, "start": 0.0, "model": 0.1}
    assert name != "sgd" or optimizer.param_groups[0]["momentum"] == 0.5


def test_the_start_has_an_optimiser_of_its_own_that_steps_now_and_then(data):
    settings = replace(
        SETTINGS.with_layer("homoode"), start_optimizer="sgd", start_every=2, epochs=1, momentum=0.0
    )
    training, _ = train(replace(settings, start_every=4), data)
    untouched = build(settings, data).state_dict()
    name = next(key for key in untouched if key.startswith("layer.start"))
    assert torch.equal(training.model.state_dict()[name], untouched[name])  # three steps alone
    training, _ = train(settings, data)
    assert not torch.equal(training.model.state_dict()[name], untouched[name])


# --- the loss


def test_the_loss_is_the_sum_of_its_terms(data):
    layer = {"name": "skip_deq", "weight": 0.5, "root_solver": {"name": "anderson", "tol": 1e-6}}
    settings = replace(
        SETTINGS.with_layer(layer), label_smoothing=0.2, regularizer_weight=3.0, jacobian_weight=2.0
    )
    model = build(settings, data)
    images, labels = data.train.images, data.train.labels
    torch.manual_seed(0)
    loss, logits, held, _ = Objective(model, settings)(images, labels)
    torch.manual_seed(0)
    jacobian = ic.jacobian_regularizer(model.layer, held.solution, model.encoder(images))
    expected = (
        cross_entropy(logits, labels, label_smoothing=0.2)
        + 3 * model.layer.regularizer(held.solution)
        + 2 * jacobian
    )
    assert torch.allclose(loss, expected)
    assert jacobian > 0


def test_unrolled_steps_iterate_the_cell(data):
    settings = replace(SETTINGS, unrolled_steps=2, unrolled_depth=3)
    model = build(settings, data)
    images = data.train.images
    _, logits, held, _ = Objective(model, settings)(images, data.train.labels, unrolled=True)
    x = model.encoder(images)
    z = torch.zeros_like(x)
    for _ in range(3):
        z = model.layer.dynamics.update(z, x)
    assert torch.equal(logits, model.head(z))
    assert held.solution.evaluations == 3
    _, history = train(settings, data)
    assert [step.evaluations for step in history.steps[:2]] == [3, 3]
    assert history.steps[2].evaluations > 3


@pytest.mark.parametrize("setting", ["unrolled_steps", "jacobian_weight"])
def test_what_is_for_equilibria_needs_a_root_solver(data, setting):
    message = f"{setting} needs a layer with a root solver; HomoODE integrates to a fixed time"
    with pytest.raises(TrainingError, match=message):
        train(replace(SETTINGS.with_layer("homoode"), **{setting: 1}), data)


def test_clipping_bounds_the_step(data):
    settings = replace(SETTINGS, optimizer="sgd", momentum=0.0, learning_rate=1.0, epochs=1)
    settings = replace(settings, clip=1e-3, batch_size=40)
    training, _ = train(settings, data)
    before = build(settings, data).state_dict()
    after = training.model.state_dict()
    moved = torch.stack([(after[name] - before[name]).norm() for name in before]).norm()
    assert moved.item() == pytest.approx(1e-3, rel=1e-2)


# --- weights


def test_averaged_weights():
    model = nn.Linear(1, 1, bias=False)
    model.weight.data.fill_(0.0)
    average = AveragedWeights(model, 0.9)
    expected = 0.0
    for step in range(1, 4):
        model.weight.data.fill_(float(step))
        average.update()
        keep = min(0.9, (1 + step) / (10 + step))
        expected = keep * expected + (1 - keep) * step
    assert average.weights["weight"].item() == pytest.approx(expected)
    with average.in_use():
        assert model.weight.item() == pytest.approx(expected)
    assert model.weight.item() == 3.0


def test_the_averaged_weights_are_those_that_are_left(data):
    training, _ = train(replace(SETTINGS, ema=0.9), data)
    assert training.average
    for name, value in training.model.state_dict().items():
        assert torch.equal(value, training.average.weights[name])
    plain, _ = train(SETTINGS, data)
    name = "head.weight"
    assert not torch.equal(plain.model.state_dict()[name], training.model.state_dict()[name])


def test_training_ends_without_progress_and_keeps_the_best_weights(data):
    settings = replace(SETTINGS, epochs=50, validation=0.25, patience=2, learning_rate=1e-6)
    training, history = train(settings, data)
    accuracies = [epoch.validation_accuracy or 0.0 for epoch in history.epochs]
    assert len(history.epochs) == training.best.epoch + 2 < 50
    assert training.best.accuracy == max(accuracies) == accuracies[training.best.epoch - 1]
    held_out = data.holding_out(0.25).validation
    found = training.evaluate(held_out)
    assert (found.accuracy, found.samples) == (training.best.accuracy, 10)


def test_validation_images_are_apart_and_the_same_every_time(data):
    first, second = data.holding_out(0.25), data.holding_out(0.25)
    assert torch.equal(first.validation.images, second.validation.images)
    assert (len(first.train), len(first.validation)) == (30, 10)
    rows = torch.cat([first.train.images, first.validation.images]).flatten(1)
    assert len(rows.unique(dim=0)) == 40
    assert torch.equal(first.test.images, data.test.images)
    with pytest.raises(DataError, match=r"a fraction of 0\.001 of 40 training samples is 0"):
        data.holding_out(0.001)


# --- augmentation


def test_flips_and_shifts_are_what_they_say():
    images = torch.arange(2 * 3 * 5 * 6.0).reshape(2, 3, 5, 6) + 1
    seen = set()
    for step in range(40):
        found = augmented(images, Settings(flip=True), (step, 0, 0))
        for one, other in zip(found, images, strict=True):
            seen.add(torch.equal(one, other))
            assert torch.equal(one, other) or torch.equal(one, other.flip(2))
    assert seen == {True, False}
    shifted = augmented(images, Settings(crop=2), (0, 0, 0))
    padded = nn.functional.pad(images, [2] * 4)
    for one, other in zip(shifted, padded, strict=True):
        windows = [other[:, i : i + 5, j : j + 6] for i in range(5) for j in range(5)]
        assert any(torch.equal(one, window) for window in windows)


def test_augmentation_is_a_function_of_seed_step_and_process():
    images = torch.randn(8, 1, 6, 6, generator=torch.Generator().manual_seed(0))
    settings = Settings(flip=True, crop=2)
    first = augmented(images, settings, (3, 0, 0))
    assert torch.equal(first, augmented(images, settings, (3, 0, 0)))
    for place in ((4, 0, 0), (3, 1, 0), (3, 0, 1)):
        assert not torch.equal(first, augmented(images, settings, place))
    assert augmented(images, Settings(), (0, 0, 0)) is images
