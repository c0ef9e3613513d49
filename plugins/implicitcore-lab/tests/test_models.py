import pytest
import torch

from implicitcore_lab.models import build_classifier
from implicitcore_lab.settings import read_settings
from implicitcore_layers import ContractiveCell

LAYERS = ("deq", "continuous_deq", "skip_deq", "skip_reg_deq", "neural_ode", "homoode")


@pytest.mark.parametrize("layer", LAYERS)
@pytest.mark.parametrize("shape", [(1, 8, 8), (3, 16, 16)])
def test_every_layer_classifies(layer, shape):
    settings = read_settings({"layer": layer, "hidden": 8})
    model = build_classifier(settings, shape, 10)
    logits, solution = model.solve(torch.randn(5, *shape))
    assert logits.shape == (5, 10)
    assert solution.converged.all()


def test_every_layer_starts_from_the_same_weights():
    models = [
        build_classifier(read_settings({"layer": layer, "hidden": 8}), (1, 8, 8), 10)
        for layer in LAYERS
        if layer != "homoode"  # it integrates a field of its own
    ]
    shared = ("encoder.1.weight", "head.weight")
    for model in models[1:]:
        assert all(
            torch.equal(model.get_parameter(name), models[0].get_parameter(name)) for name in shared
        )
        cells = [
            next(m for m in found.modules() if isinstance(m, ContractiveCell))
            for found in (model, models[0])
        ]
        assert torch.equal(cells[0].linear.weight, cells[1].linear.weight)


def test_building_leaves_the_random_state_alone():
    before = torch.get_rng_state()
    build_classifier(read_settings({"hidden": 8}), (1, 8, 8), 10)
    assert torch.equal(torch.get_rng_state(), before)
