"""What the lab measures, against what is known in closed form."""

import json

import pytest
import torch
from click.testing import CliRunner

import implicitcore as ic
from implicitcore.cli import cli
from implicitcore_lab.data import Dataset, Split
from implicitcore_lab.measures import equilibrium_figures, solve_figures, start_distance
from implicitcore_lab.models import Classifier, HomotopyField, build_classifier
from implicitcore_lab.settings import read_settings
from implicitcore_lab.training import Training
from implicitcore_layers import SkipDEQ

RADIUS = 0.6


def affine(matrix, **options):
    """f(z, x) = A z + x, whose Jacobian is A everywhere."""
    solver = ic.Picard(tol=1e-6, max_steps=200)
    return ic.ImplicitLayer(ic.FixedPoint(lambda z, x: z @ matrix.T + x), solver=solver, **options)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_the_spectral_radius_is_that_of_the_matrix(dtype):
    basis = torch.linalg.qr(torch.randn(4, 4, dtype=dtype)).Q
    matrix = basis @ torch.diag(torch.tensor([RADIUS, -0.3, 0.2, 0.0], dtype=dtype)) @ basis.T
    figures = equilibrium_figures(affine(matrix), torch.randn(5, 4, dtype=dtype))
    assert figures["spectral_radius"] == pytest.approx(RADIUS, rel=1e-2)


def test_the_distance_from_the_start():
    """From z0 = s to z* = x / (1 - a): |z* - s| / |z*|, of each sample, then the mean."""
    x, start = torch.tensor([[3.0, 4.0], [6.0, 8.0]]), torch.tensor([0.0, 10.0])
    layer = affine(0.5 * torch.eye(2))
    solution = layer.solve(x, z0=start.expand(2, 2))
    expected = ((2 * x - start).norm(dim=1) / (2 * x).norm(dim=1)).mean()
    assert solve_figures(solution)["start_distance"] == pytest.approx(expected.item(), rel=1e-4)


def test_an_equilibrium_of_zero_does_not_make_the_mean_infinite():
    """As a sample has it whose relus are all off: a start that is not zero is all wrong."""
    layer = ic.ImplicitLayer(ic.FixedPoint(lambda z, x: torch.relu(x)), solver=ic.Picard())
    x = torch.tensor([[-1.0, -2.0], [3.0, 4.0], [-1.0, -1.0]])
    start = torch.tensor([[0.5, 0.0], [0.0, 0.0], [0.0, 0.0]])
    solution = layer.solve(x, z0=start)
    assert start_distance(solution).tolist() == [1.0, 1.0, 0.0]
    assert solve_figures(solution)["start_distance"] == pytest.approx(2 / 3)


def test_a_layer_without_equilibria_has_no_radius():
    layer = ic.build("neural_ode", lambda z, x: -z)
    figures = equilibrium_figures(layer, torch.ones(2, 3), lambda z: z, torch.zeros(2).long())
    assert "spectral_radius" not in figures
    assert "residual" not in figures
    assert figures["explicit_accuracy"] == 1.0


def test_what_the_start_says_is_counted_on_all_test_images():
    """The predictor finds the label, the solve then goes on to where every label is 0."""
    labels = torch.arange(7) % 3
    images = torch.nn.functional.one_hot(labels, 3).float().view(7, 1, 1, 3)
    images[6] = images[6].roll(1)  # one that the predictor has wrong
    nowhere = torch.tensor([1.0, 0.0, 0.0])
    layer = SkipDEQ(lambda z, x: 0.0 * z + nowhere, torch.nn.Identity())
    head = torch.nn.Linear(3, 3, bias=False)
    head.load_state_dict({"weight": torch.eye(3)})
    model = Classifier(torch.nn.Flatten(), layer, head)
    split = Split(images, labels)
    settings = read_settings({"batch_size": 3, "device": "cpu"})
    found = Training(model, Dataset("seven", split, split, 3), settings).evaluate(split)
    assert (found.correct, found.explicit_correct, found.samples) == (3, 6, 7)


def test_the_lines_of_a_run_have_everything(tmp_path):
    small = ["--epochs", "2", "--hidden", "8", "--batch-size", "256", "--device", "cpu"]
    words = ["train", "--layer", "skip_deq", *small, "--validation", "0.1"]
    done = CliRunner().invoke(cli, [*words, "--out", str(tmp_path / "run")])
    assert done.exit_code == 0, done.output
    steps, epochs = (
        [json.loads(line) for line in (tmp_path / "run" / name).read_text().splitlines()]
        for name in ("steps.jsonl", "metrics.jsonl")
    )
    each = {"evaluations", "backward", "unconverged", "forward_ms", "backward_ms", "start_distance"}
    assert len(steps) == 2 * len(epochs[:1]) * epochs[0]["steps"]
    for line in steps:
        assert all(line[name] is not None for name in each | {"loss", "correct", "peak_bytes"})
        assert line["start_distance"] > 0
        assert line["peak_bytes"] > 1e7  # a process with torch in it
    more = {"spectral_radius", "explicit_accuracy", "validation_accuracy", "learning_rate"}
    for line in epochs:
        assert all(line[name] is not None for name in each | more)
        assert 0 < line["spectral_radius"] < 0.9  # the bound of the cell
        assert (line["explicit_accuracy"] * 360) == pytest.approx(
            round(line["explicit_accuracy"] * 360)
        )


@pytest.mark.parametrize(("shape", "kind"), [((1, 8, 8), "Linear"), ((3, 8, 8), "Conv2d")])
def test_homoode_has_the_field_it_was_published_with(shape, kind):
    models = {
        name: build_classifier(read_settings({"layer": name, "hidden": 8}), shape, 10)
        for name in ("homoode", "neural_ode")
    }
    fields = {
        name: [part for part in model.modules() if isinstance(part, HomotopyField)]
        for name, model in models.items()
    }
    assert fields["neural_ode"] == []
    (field,) = fields["homoode"]
    assert type(field.inner).__name__ == type(field.outer).__name__ == kind
    z, x = torch.randn(2, 2, 8, *shape[1:][: 2 * (kind == "Conv2d")])
    found = field(z, x)
    assert found.shape == x.shape
    large, larger = (field(scale * z, x) for scale in (1e4, 1e6))
    assert torch.allclose(large, larger, atol=1e-2)  # what stands before x is normalised
    groups = found.reshape(2, field.outer_norm.num_groups, -1)
    assert groups.mean(2).abs().max() < 1e-5
    assert (groups.var(2, unbiased=False) - 1).abs().max() < 1e-2
    assert torch.allclose(field(z[:1], x[:1]), found[:1], atol=1e-5)  # each sample by itself
