import math
from dataclasses import replace

import pytest
import torch

from implicitcore_lab.data import Dataset, Split
from implicitcore_lab.errors import TrainingError
from implicitcore_lab.evaluation import evaluate, residual_curve, step_memory
from implicitcore_lab.models import build_classifier
from implicitcore_lab.settings import read_settings
from implicitcore_lab.training import fit

SETTINGS = read_settings({"hidden": 8, "epochs": 2, "batch_size": 16})


@pytest.fixture
def data():
    """Two easy classes: bright above, bright below."""
    images = torch.randn(48, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    labels = torch.arange(48) % 2
    images[labels == 1, :, :4] += 2
    images[labels == 0, :, 4:] += 2
    return Dataset("easy", Split(images, labels), Split(images[:20], labels[:20]))


def build(layer, data):
    return build_classifier(SETTINGS.with_layer(layer), data.shape, data.classes)


def without_times(history):
    times = {"seconds": 0, "forward_ms": 0, "backward_ms": 0, "step_ms": 0, "peak_bytes": 0}
    return [replace(step, **times) for step in history.steps]


def test_learns_and_counts(data):
    model = build("deq", data)
    seen = []
    settings = replace(SETTINGS, epochs=10, learning_rate=1e-2)
    history = fit(model, data, settings, on_step=seen.append, on_epoch=seen.append)
    assert len(history.steps) == 30
    assert len(history.epochs) == 10
    assert seen[:4] == [*history.steps[:3], history.epochs[0]]
    assert history.epochs[-1].test_accuracy == 1.0
    assert history.epochs[-1].loss < history.epochs[0].loss / 2
    assert history.epochs[0].evaluations > 1
    assert history.epochs[0].backward >= 1
    assert history.epochs[-1].seconds == pytest.approx(sum(step.seconds for step in history.steps))
    assert 0 < history.seconds_per_step <= max(step.seconds for step in history.steps)


@pytest.mark.parametrize("layer", ["deq", "skip_deq", "homoode"])
def test_the_same_seed_gives_the_same_numbers(data, layer):
    models = [build(layer, data) for _ in range(2)]
    histories = [fit(model, data, SETTINGS.with_layer(layer)) for model in models]
    assert without_times(histories[0]) == without_times(histories[1])
    for first, second in zip(models[0].parameters(), models[1].parameters(), strict=True):
        assert torch.equal(first, second)


def test_another_seed_gives_other_numbers(data):
    histories = [fit(build("deq", data), data, replace(SETTINGS, seed=seed)) for seed in (0, 1)]
    assert without_times(histories[0]) != without_times(histories[1])


def test_the_layers_own_loss_term_is_learnt(data):
    model = build("homoode", data)
    fit(model, data, SETTINGS.with_layer("homoode"))
    start = [value for name, value in model.named_parameters() if "start" in name]
    assert len(start) == 1
    assert start[0].abs().min() > 0  # it began at zero


def test_a_loss_that_is_not_a_number_names_the_step(data):
    model = build("deq", data)
    with torch.no_grad():
        model.get_parameter("head.bias")[0] = math.nan
    with pytest.raises(TrainingError, match=r"deq: the loss is nan at step 1 \(epoch 1\)"):
        fit(model, data, SETTINGS)


def test_a_sample_that_is_not_finite_names_the_step(data):
    data.train.images[3] = math.nan
    with pytest.raises(
        TrainingError,
        match=r"deq: the solve of 1 of 16 samples is not finite at step \d \(epoch 1\)",
    ):
        fit(build("deq", data), data, SETTINGS)


def test_unconverged_samples_are_counted(data):
    layer = {"name": "deq", "root_solver": {"name": "picard", "max_steps": 2, "tol": 1e-6}}
    model = build(layer, data)
    result = evaluate(model, data.test, 16)
    assert result.unconverged == result.samples == 20
    assert result.worst_residual is not None
    assert result.worst_residual > 1e-6


def test_evaluation_looks_at_every_image(data):
    model = build("deq", data)
    result = evaluate(model, data.test, 7)
    with torch.no_grad():
        expected = int((model(data.test.images).argmax(1) == data.test.labels).sum())
    assert (result.correct, result.samples, result.accuracy) == (expected, 20, expected / 20)
    assert result.unconverged == 0


@pytest.mark.parametrize(
    ("layer", "has_residual"),
    [("deq", True), ("continuous_deq", True), ("neural_ode", False), ("homoode", False)],
)
def test_residuals(data, layer, has_residual):
    model = build(layer, data)
    curve = residual_curve(model, data.test.images)
    worst = evaluate(model, data.test, 20).worst_residual
    assert bool(curve) == has_residual == (worst is not None)
    if worst is not None:
        assert curve[-1] == pytest.approx(worst)
        assert curve[-1] < curve[0] / 10


def test_memory_of_a_step_leaves_the_model_alone(data):
    model = build("deq", data)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    peaks = [step_memory(model, data.train.images[:16], data.train.labels[:16]) for _ in range(2)]
    assert peaks[0] == peaks[1] > 0
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert all(parameter.grad is None for parameter in model.parameters())


def test_implicit_gradient_needs_less_memory_than_unrolling(data):
    solver = {"name": "picard", "max_steps": 500, "tol": 1e-6, "damping": 0.1}
    peaks = [
        step_memory(
            build({"name": "deq", "root_solver": solver, "gradient": gradient}, data),
            data.train.images,
            data.train.labels,
        )
        for gradient in ("implicit", "unrolled")
    ]
    assert peaks[0] < peaks[1]
