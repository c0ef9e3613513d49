import json
import sys

import pytest
import torch
from click.testing import CliRunner
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from torch.utils._python_dispatch import TorchDispatchMode

import implicitcore as ic
from implicitcore.cli import cli
from implicitcore_lab.tensorboard import TensorBoardObserver, open_writer

SMALL = [
    "--layer",
    "deq",
    "--epochs",
    "2",
    "--hidden",
    "8",
    "--batch-size",
    "256",
    "--device",
    "cpu",
]
X = torch.randn(4, 3, generator=torch.Generator().manual_seed(0))


class Events:
    """The event files of a folder, read back."""

    def __init__(self, folder):
        self.found = EventAccumulator(
            str(folder), size_guidance={"scalars": 0, "histograms": 0}
        ).Reload()
        self.names = set(self.found.Tags()["scalars"])

    def scalars(self, name):
        return {event.step: event.value for event in self.found.Scalars(name)}

    def histogram(self, name):
        return {event.step: event.histogram_value for event in self.found.Histograms(name)}


@pytest.fixture
def writer(tmp_path):
    found = open_writer(tmp_path)
    yield found
    found.close()


def make(**options):
    linear = torch.nn.Linear(3, 3)
    cell = torch.nn.Module()
    cell.linear, cell.forward = linear, lambda z, x: torch.tanh(0.4 * linear(z) + x)
    return ic.ImplicitLayer(ic.FixedPoint(cell), **{"solver": ic.Anderson(tol=1e-5), **options})


def test_what_is_written_is_what_the_solves_did(writer, tmp_path):
    layer, observer = make(), TensorBoardObserver(writer)
    solutions = []
    with ic.observe(observer):
        for scale in (0.1, 1.0, 3.0):
            solutions.append(layer.solve(scale * X))
            if scale > 1:
                solutions[-1].z.sum().backward()
    observer.flush()
    events = Events(tmp_path)
    name = "ImplicitLayer"
    assert events.scalars(f"{name}/evaluations") == {
        step: solution.evaluations for step, solution in enumerate(solutions)
    }
    for figure, expected in {
        "steps": lambda solution: solution.steps.float().mean(),
        "residual_max": lambda solution: solution.residual.max(),
        "residual_median": lambda solution: solution.residual.median(),
        "converged": lambda solution: 1.0,
        "status/converged": lambda solution: 4.0,
        "status/stalled": lambda solution: 0.0,
    }.items():
        assert events.scalars(f"{name}/{figure}") == pytest.approx(
            {step: float(expected(s)) for step, s in enumerate(solutions)}
        )
    assert events.scalars(f"{name}/backward_products") == {2: solutions[2].backward.vjps}
    histogram = events.histogram(f"{name}/steps_of_samples")[1]
    assert (histogram.num, histogram.max) == (4, solutions[1].steps.max())


def test_samples_that_fail_are_counted_by_their_status(writer, tmp_path):
    layer, observer = make(solver=ic.Picard(tol=1e-9, max_steps=2)), TensorBoardObserver(writer)
    with ic.observe(observer):
        layer.solve(X)
    observer.flush()
    events = Events(tmp_path)
    assert events.scalars("ImplicitLayer/status/max_steps") == {0: 4.0}
    assert events.scalars("ImplicitLayer/converged") == {0: 0.0}


def test_a_trajectory_has_no_residual_and_an_empty_batch_nothing(writer, tmp_path):
    layer, observer = make(solver=ic.RK4(dt=0.5)), TensorBoardObserver(writer)
    with ic.observe(observer):
        layer.solve(X[:0])
        layer.solve(X)
    observer.flush()
    events = Events(tmp_path)
    assert events.scalars("ImplicitLayer/steps") == {1: 2.0}
    assert "ImplicitLayer/residual_max" not in events.names


def test_layers_have_names_of_their_own(writer, tmp_path):
    layers = make(), make()
    model, others = torch.nn.Sequential(*layers), (make(), make())
    observer = TensorBoardObserver(writer, model=model)
    with ic.observe(observer):
        for layer in (*layers, *others, *layers):
            layer.solve(X)
        others[0].eval().solve(X)
    observer.flush()
    events = Events(tmp_path)
    steps = {
        name.removesuffix("/steps"): set(events.scalars(name))
        for name in events.names
        if name.endswith("/steps")
    }
    assert steps == {
        "0": {0, 1},
        "1": {0, 1},
        "ImplicitLayer": {0},
        "ImplicitLayer_2": {0},
        "ImplicitLayer/evaluation": {0},
    }


class Operations(TorchDispatchMode):
    def __init__(self):
        super().__init__()
        self.count = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.count += 1
        return func(*args, **(kwargs or {}))


def test_only_one_solve_of_every_so_many_is_read(writer, tmp_path):
    layer, observer, counts = make(), TensorBoardObserver(writer, every=3), []
    solution = layer.solve(X)
    for _ in range(7):
        with Operations() as operations:
            observer.implicitcore_after_solve(layer, solution)
        counts.append(operations.count > 0)
    observer.flush()
    assert counts == [True, False, False, True, False, False, True]
    assert set(Events(tmp_path).scalars("ImplicitLayer/steps")) == {0, 3, 6}
    with pytest.raises(
        ic.ConfigError, match="every: expected a number greater than or equal to 1, received 0"
    ):
        TensorBoardObserver(writer, every=0)


def test_train_writes_the_training_and_the_solves(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write, solves = TensorBoardObserver.implicitcore_after_solve, []

    def counted(self, layer, solution):
        solves.append(solution)
        write(self, layer, solution)

    monkeypatch.setattr(TensorBoardObserver, "implicitcore_after_solve", counted)
    result = CliRunner().invoke(cli, ["train", *SMALL, "--out", "run", "--tensorboard", "events"])
    assert result.exit_code == 0, result.output
    assert solves
    solves.clear()
    ic.ImplicitLayer(ic.FixedPoint(lambda z, x: z / 2 + x), solver=ic.Picard()).solve(X)
    assert not solves  # the observer ended with the command
    epochs = json.loads((tmp_path / "run" / "result.json").read_text())["epochs"]
    events = Events("events")
    losses = events.scalars("train/loss")
    assert list(losses) == list(range(12))  # 1437 images in batches of 256, twice
    assert losses[11] < losses[0]
    assert set(events.scalars("train/accuracy")) == set(losses)
    assert events.scalars("test/accuracy") == pytest.approx(
        {5: epochs[0]["test_accuracy"], 11: epochs[1]["test_accuracy"]}
    )
    evaluations, products = (
        events.scalars(f"DEQ/{name}") for name in ("evaluations", "backward_products")
    )
    assert set(evaluations) == set(products) == set(losses)
    assert sum(evaluations.values()) / 12 == pytest.approx(
        (epochs[0]["evaluations"] + epochs[1]["evaluations"]) / 2
    )
    assert sum(products.values()) / 12 == pytest.approx(
        (epochs[0]["backward"] + epochs[1]["backward"]) / 2
    )
    assert set(events.scalars("DEQ/evaluation/steps")) == set(
        range(6)
    )  # 360 images in batches of 256 and one batch more for the figures of the epoch, twice


def test_without_tensorboard_nothing_is_trained_and_the_message_says_what_to_install(
    tmp_path, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    for name in [name for name in sys.modules if name.startswith("torch.utils.tensorboard")]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "tensorboard", None)
    result = CliRunner().invoke(cli, ["train", *SMALL, "--tensorboard", "events"])
    assert result.exit_code == 1
    assert "pip install 'implicitcore-lab[tensorboard]'" in result.output
    assert not list(tmp_path.iterdir())
