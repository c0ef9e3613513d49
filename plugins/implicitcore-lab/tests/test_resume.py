"""A training that ends anywhere goes on from there, bit for bit."""

from dataclasses import replace

import pytest
import torch

from implicitcore_lab.data import Dataset, Split
from implicitcore_lab.errors import Interrupted, RunError
from implicitcore_lab.models import build_classifier
from implicitcore_lab.settings import read_settings
from implicitcore_lab.state import State, checkpoints, read_state, write_state
from implicitcore_lab.training import Training

SETTINGS = read_settings(
    {"hidden": 4, "epochs": 2, "batch_size": 8, "optimizer": "adamw", "weight_decay": 0.1}
    | {"clip": 1.0, "schedule": "cosine", "warmup": 2, "ema": 0.9, "validation": 0.2}
    | {"patience": 2, "flip": True, "crop": 1, "jacobian_weight": 0.1, "accumulate": 2}
    | {"unrolled_steps": 1, "start_optimizer": "sgd", "start_every": 2}
)


class StopAfter:
    """A keeper that stops after a step and keeps what it is given in memory."""

    def __init__(self, step):
        self.step, self.calls = step, 0
        self.kept = State()

    def due(self):
        return False

    def stop(self):
        self.calls += 1
        return self.calls == self.step

    def keep(self, state, step):
        self.kept = State(dict(state.data), {k: v.clone() for k, v in state.tensors.items()})


@pytest.fixture
def data():
    images = torch.randn(44, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    split = Split(images, torch.arange(44) % 3)
    return Dataset("random", split, split.first(10), classes=3)


def training(settings, data):
    model = build_classifier(settings, data.shape, data.classes)
    return Training(model, data.holding_out(settings.validation), settings)


def figures(history):
    times = {"seconds": 0, "forward_ms": 0, "backward_ms": 0, "peak_bytes": 0}
    steps = [replace(step, step_ms=0, **times) for step in history.steps]
    return steps, [replace(epoch, **times) for epoch in history.epochs]


@pytest.mark.parametrize("layer", ["deq", "warm deq", "skip_deq", "homoode"])
@pytest.mark.parametrize("step", [1, 2, 4])
def test_going_on_is_as_if_nothing_had_happened(data, layer, step):
    warm, _, name = layer.rpartition(" ")
    settings = replace(SETTINGS.with_layer(name), warm_start=bool(warm))
    if layer == "homoode":
        settings = replace(settings, unrolled_steps=0, jacobian_weight=0.0)
    whole = training(settings, data)
    expected = whole.run()
    keeper, first = StopAfter(step), training(settings, data)
    with pytest.raises(Interrupted, match=f"after step {step}"):
        first.run(keeper=keeper)
    torch.manual_seed(99)
    second = training(replace(settings, seed=settings.seed), data)
    torch.randn(7)  # whatever the process has drawn since
    second.load(keeper.kept, first.history)
    found = second.run()
    # A new cell is asked once whether it mixes samples, where it is integrated step by step.
    asked = found.steps[step].evaluations - expected.steps[step].evaluations
    assert asked in ({0, 1} if layer == "homoode" else {0})
    found.steps[step] = replace(found.steps[step], evaluations=expected.steps[step].evaluations)
    number = step // found.epochs[0].steps
    epoch, evaluations = found.epochs[number], expected.epochs[number].evaluations
    assert epoch.evaluations == pytest.approx(evaluations + asked / epoch.steps)
    found.epochs[number] = replace(epoch, evaluations=evaluations)
    assert figures(found) == figures(expected)
    assert len(found.steps) == 6
    for name, value in whole.model.state_dict().items():
        assert torch.equal(value, second.model.state_dict()[name]), name
    if whole.warm and second.warm:
        for name, value in whole.warm.state_dict().items():
            assert torch.equal(value, second.warm.state_dict()[name]), name
        assert whole.warm.seen.all()
    assert bool(warm) == bool(whole.warm) == bool(second.warm)
    for one, other in zip(whole.optimizers, second.optimizers, strict=True):
        for values, others in zip(
            one.state_dict()["state"].values(), other.state_dict()["state"].values(), strict=True
        ):
            assert all(
                torch.equal(values[key], others[key]) for key in values if values[key] is not None
            )


def test_a_checkpoint_of_other_settings_is_refused(data):
    keeper = StopAfter(1)
    with pytest.raises(Interrupted):
        training(SETTINGS, data).run(keeper=keeper)
    other = training(replace(SETTINGS, hidden=5), data)
    with pytest.raises(RunError, match="not of these settings"):
        other.load(keeper.kept, other.history)


def test_a_state_is_read_back_as_it_was_written(tmp_path):
    state = State({"position": 3})
    tree = {"a": torch.arange(3), 0: [torch.ones(()), None, 0.1, {"x": "y"}], "empty": {}}
    state.add("tree", tree)
    path = write_state(tmp_path, 3, state)
    found = read_state(path)
    assert found.data["position"] == 3
    read = found.get("tree")
    assert torch.equal(read["a"], tree["a"])
    assert torch.equal(read[0][0], tree[0][0])
    assert read[0][1:] == tree[0][1:]
    assert read["empty"] == {}


def test_the_newest_two_checkpoints_are_kept(tmp_path):
    paths = [write_state(tmp_path, step, State({"step": step})) for step in (1, 2, 3)]
    assert checkpoints(tmp_path) == [paths[2], paths[1]]
    assert sorted(tmp_path.iterdir()) == [paths[1], paths[2]]


@pytest.mark.parametrize("place", [0, 40, -1])
def test_a_damaged_checkpoint_is_refused(tmp_path, place):
    path = write_state(tmp_path, 1, State({"step": 1}, {"a": torch.ones(9)}))
    content = bytearray(path.read_bytes())
    content[place] ^= 1
    path.write_bytes(content)
    with pytest.raises(RunError, match="damaged, its SHA-256"):
        read_state(path)


def test_a_checkpoint_of_another_version_is_refused(tmp_path, monkeypatch):
    from implicitcore_lab import state

    monkeypatch.setattr(state, "SCHEMA", 2)
    path = write_state(tmp_path, 1, State())
    monkeypatch.setattr(state, "SCHEMA", 1)
    with pytest.raises(RunError, match="schema version 2; this implicitcore-lab reads version 1"):
        read_state(path)
