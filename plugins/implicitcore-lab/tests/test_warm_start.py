"""A training whose samples begin at their equilibria of the last epoch."""

from dataclasses import replace
from statistics import mean

import pytest

from implicitcore_lab.data import load
from implicitcore_lab.engine import Engine
from implicitcore_lab.errors import TrainingError
from implicitcore_lab.models import build_classifier
from implicitcore_lab.settings import read_settings
from implicitcore_lab.training import Training, fit

EPOCHS = 10
SETTINGS = read_settings(
    {"hidden": 16, "epochs": EPOCHS, "schedule": "cosine", "tolerance": 1e-3, "threads": 1}
)


@pytest.fixture(scope="module")
def digits():
    return load("digits")


def trained(settings, data):
    return fit(build_classifier(settings, data.shape, data.classes), data, settings)


def test_the_fewer_evaluations_the_less_the_equilibria_move_at_the_same_loss(digits):
    cold, warm = (trained(replace(SETTINGS, warm_start=on), digits) for on in (False, True))
    ratios = [
        now.evaluations / before.evaluations
        for now, before in zip(warm.epochs, cold.epochs, strict=True)
    ]
    assert ratios[0] == 1  # the first time nothing is known of a sample
    assert all(ratio <= 1 for ratio in ratios[1:])
    assert ratios[-1] <= 0.7  # the learning rate has fallen, and with it the moves
    moved = mean(step.start_distance or 0 for step in warm.steps[-12:])
    assert moved < 0.05 < mean(step.start_distance or 0 for step in warm.steps[12:24])
    assert warm.epochs[-1].loss == pytest.approx(cold.epochs[-1].loss, rel=0.01)
    assert warm.epochs[-1].test_accuracy == pytest.approx(cold.epochs[-1].test_accuracy, abs=0.01)


@pytest.mark.parametrize(
    ("layer", "message"),
    [
        ("homoode", "homoode: warm_start needs a layer with a root solver"),
        ("skip_deq", r"skip_deq: its loss compares .* \(Predictor\) begins; warm_start is for"),
        ("skip_reg_deq", r"skip_reg_deq: its loss compares .* \(OneStep\)"),
    ],
)
def test_layers_with_a_start_of_their_own_are_refused(digits, layer, message):
    with pytest.raises(TrainingError, match=message):
        trained(replace(SETTINGS.with_layer(layer), warm_start=True), digits)


def test_several_processes_are_refused(digits, monkeypatch):
    monkeypatch.setattr(Engine, "world", 2)
    settings = replace(SETTINGS, warm_start=True)
    model = build_classifier(settings, digits.shape, digits.classes)
    with pytest.raises(TrainingError, match="warm_start: .* train with one process"):
        Training(model, digits, settings)
