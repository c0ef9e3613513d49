import pytest
import torch
from torch import nn

from implicitcore_lab.models import ContractiveCell, build_classifier
from implicitcore_lab.settings import read_settings

LAYERS = ("deq", "continuous_deq", "skip_deq", "skip_reg_deq", "neural_ode", "homoode")


def jacobian_norm(cell, z, x):
    jacobian = torch.autograd.functional.jacobian(lambda z: cell(z, x), z).reshape(
        z.numel(), z.numel()
    )
    return torch.linalg.matrix_norm(jacobian, 2).item()


@pytest.mark.parametrize("size", [0.01, 1.0, 100.0])
def test_dense_cell_is_a_contraction_whatever_its_weights(size):
    cell = ContractiveCell(nn.Linear(20, 20), bound=0.9)
    nn.init.normal_(cell.linear.weight, std=size)
    z = torch.zeros(1, 20)  # with x cancelling the bias, tanh has slope 1 here: the steepest point
    norm = jacobian_norm(cell, z, -cell.get_parameter("linear.bias").detach())
    assert norm <= 0.9 + 1e-5
    assert norm > 0.6 or size < 1  # and the bound is not far off


def test_a_rank_one_weight_reaches_the_bound():
    cell = ContractiveCell(nn.Linear(20, 20, bias=False), bound=0.9)
    cell.linear.weight.data = torch.outer(torch.ones(20), torch.ones(20))
    assert jacobian_norm(cell, torch.zeros(1, 20), torch.zeros(1, 20)) == pytest.approx(
        0.9, rel=1e-5
    )


@pytest.mark.parametrize("size", [0.1, 10.0])
def test_convolutional_cell_is_a_contraction_whatever_its_weights(size):
    cell = ContractiveCell(nn.Conv2d(3, 3, 3, padding=1, bias=False), bound=0.9)
    for weight in (torch.randn(3, 3, 3, 3), torch.ones(3, 3, 3, 3)):
        cell.linear.weight.data = weight * size
        z = torch.zeros(1, 3, 8, 8)
        assert jacobian_norm(cell, z, torch.zeros_like(z)) <= 0.9 + 1e-5


def test_small_weights_stay_as_they_are():
    cell = ContractiveCell(nn.Linear(5, 5))
    nn.init.normal_(cell.linear.weight, std=0.01)
    z, x = torch.randn(2, 3, 5)
    torch.testing.assert_close(cell(z, x), torch.tanh(cell.linear(z) + x))


def test_gradient_through_the_scale():
    cell = ContractiveCell(nn.Linear(4, 4)).double()
    nn.init.normal_(cell.linear.weight)
    z, x = torch.randn(2, 3, 4, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(
        lambda weight: torch.func.functional_call(cell, {"linear.weight": weight}, (z, x)),
        cell.linear.weight,
    )


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
