"""Cells and presets: their parameters, their guarantees, their options."""

# Options that are wrong on purpose are among these.
# pyright: reportArgumentType=false, reportCallIssue=false

from __future__ import annotations

import json

import pytest
import torch
from torch import nn

import implicitcore as ic
from implicitcore.extend import REGISTRY
from implicitcore_layers import (
    Cell,
    ContractiveCell,
    HomoODEField,
    MonotoneCell,
    MultiscaleCell,
    Preset,
)

CELLS = [part for part in REGISTRY.parts("cell") if part.provider == "implicitcore-layers"]
NEEDED = {
    "contractive": {"features": 6},
    "monotone": {"features": 6},
    "multiscale": {"channels": [4, 8, 8]},
    "homoode": {"channels": 8, "groups": 4},
}
SMALL = [
    part.name for part in CELLS if part.name not in ("multiscale-large", "multiscale-imagenet")
]


def create(name: str, **options) -> Cell:
    torch.manual_seed(0)
    return ic.create("cell", {"name": name, **NEEDED.get(name, {})}, **options)


def count(*modules: nn.Module) -> int:
    return sum(parameter.numel() for module in modules for parameter in module.parameters())


@pytest.mark.parametrize("norm", ["group", "batch"])
@pytest.mark.parametrize(
    ("name", "plain", "skip"),
    [
        ("multiscale-tiny", 163_546, 200_122),
        ("multiscale-large", 10_631_958, 11_186_774),
        ("multiscale-imagenet", 17_912_456, 18_467_272),
        ("homoode-cifar10", 132_938, None),
        ("homoode-cifar100", 565_988, None),
        ("homoode-tiny-imagenet", 617_288, None),
    ],
)
def test_the_parameters_are_the_papers_to_the_unit(name, plain, skip, norm):
    with torch.device("meta"):
        cell = ic.create("cell", name, norm=norm)
        assert count(cell.stem(), cell, cell.head()) == plain
        if skip is not None:
            assert count(cell.stem(), cell, cell.head(), cell.predictor()) == skip


def test_the_mlp_of_the_paper_has_a_state_of_128():
    cell = ic.create("cell", "paper-mlp")
    layers = (784 * 128 + 128, 2 * 128 * 128, 128 * 10 + 10)
    assert count(cell.stem(), cell, cell.head()) == sum(layers)
    z, x = torch.randn(2, 3, 128)
    expected = (z @ cell.state.weight.T).relu() + (x @ cell.input.weight.T).relu()
    torch.testing.assert_close(cell(z, x), expected)
    model = nn.Sequential(cell.stem(), ic.build("skip_deq", cell, predictor=cell.predictor()))
    assert cell.head()(model(torch.rand(2, 1, 28, 28))).shape == (2, 10)


@pytest.mark.parametrize("name", [part.name for part in CELLS])
def test_a_description_makes_the_equal(name):
    with torch.device("meta"):
        cell = create(name)
        data = json.loads(json.dumps(ic.describe(cell)))
        twin = ic.create("cell", data)
    assert type(twin) is type(cell)
    assert ic.describe(twin) == ic.describe(cell)
    mine, theirs = cell.state_dict(), twin.state_dict()
    assert {key: value.shape for key, value in mine.items()} == {
        key: value.shape for key, value in theirs.items()
    }


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("contractive", {"features": 4, "bound": 2.0}, "bound: expected"),
        ("contractive", {"features": 4, "bund": 0.5}, "bund: unknown option.*'bound'"),
        ("monotone", {"features": 4, "margin": -1.0}, "margin: expected"),
        ("multiscale-tiny", {"norm": "layer"}, "norm: expected 'group' or 'batch'"),
        ("homoode", {"channels": 0}, "channels: expected"),
    ],
)
@pytest.mark.parametrize("by_name", [True, False])
def test_a_wrong_option_is_told(name, options, message, by_name):
    cls = REGISTRY.find("cell", name).load()
    with pytest.raises(ic.ConfigError, match=message):
        ic.create("cell", name, **options) if by_name else cls(**options)


@pytest.mark.parametrize(
    "name",
    [pytest.param(name, marks=[pytest.mark.slow] * name.startswith("homoode-")) for name in SMALL],
)
def test_every_preset_trains_a_step(name):
    cell = create(name, **({"dropout": 0.0} if "homoode" in name or "multiscale" in name else {}))
    if not isinstance(cell, Preset):
        pytest.skip("a cell without a stem and a head")
    if isinstance(cell, MultiscaleCell):
        layer = ic.build("multiscale_deq", cell, channels=cell.channels, gradient="phantom")
    elif isinstance(cell, HomoODEField):
        layer = ic.build("homoode", cell, channels=cell.channels)
    else:
        layer = ic.build("deq", cell)
    layer.on_failure = "mask" if isinstance(cell, MultiscaleCell) else "raise"
    side = 28 if name == "paper-mlp" else 16
    images = torch.randn(2, 1 if name == "paper-mlp" else 3, side, side)
    model = nn.Sequential(cell.stem(), layer, cell.head())
    if isinstance(cell, MultiscaleCell):
        layer.on_failure = "warn"
        layer.solver = ic.Anderson(tol=0.9, max_steps=100)
    before = {key: value.detach().clone() for key, value in cell.named_parameters()}
    x = model[0](images)
    solution = layer.solve(x).raise_if_failed()
    logits = model[2](solution.z)
    assert logits.shape == (2, cell.classes)
    (
        nn.functional.cross_entropy(logits, torch.tensor([1, 2])) + layer.regularizer(solution)
    ).backward()
    torch.optim.SGD(model.parameters(), lr=0.1).step()
    moved = [key for key, value in cell.named_parameters() if not torch.equal(before[key], value)]
    assert set(moved) == set(before)


def test_batch_norm_runs_in_a_coupled_layer():
    torch.manual_seed(0)
    cell = ic.create("cell", "multiscale-tiny", norm="batch", dropout=0.0)
    with torch.no_grad():  # x counts for more than z
        cell.blocks[0].get_parameter("norm2.weight").fill_(20.0)
        cell.blocks[1].get_parameter("norm3.weight").fill_(0.01)
    x = torch.randn(3, 24, 8, 8)
    options = {"channels": (24, 24), "root_solver": ic.Picard(tol=1e-4)}
    coupled = ic.build("multiscale_deq", cell, coupled=True, **options)
    z = coupled.solve(x).raise_if_failed().z
    z[0].square().mean().backward()
    assert all(parameter.grad is not None for parameter in cell.parameters())
    assert not torch.allclose(coupled(x[:2])[0], z[0][:2], atol=1e-2)  # a sample is not alone


def test_homoode_is_singular_at_zero_and_not_at_its_default_start():
    field = create("homoode", channels=16, groups=16).double()
    c = torch.randn(2, 16, 6, 6, dtype=torch.float64)
    slope = {}
    for init in (0.0, "signs"):
        start = ic.LearnedInitialGuess(16, init=init).double()(c).detach().requires_grad_()
        torch.manual_seed(1)
        (gradient,) = torch.autograd.grad(field(start, c).pow(3).sum(), start)
        slope[init] = gradient.norm().item()
    assert slope[0.0] > 10 * slope["signs"]


# Guarantees.


def jacobian_norm(cell, z, x):
    jacobian = torch.autograd.functional.jacobian(lambda z: cell(z, x), z).reshape(
        z.numel(), z.numel()
    )
    return torch.linalg.matrix_norm(jacobian, 2).item()


@pytest.mark.parametrize("size", [0.01, 1.0, 100.0])
def test_dense_cell_is_a_contraction_whatever_its_weights(size):
    cell = ContractiveCell(20, bound=0.9)
    nn.init.normal_(cell.linear.weight, std=size)
    z = torch.zeros(1, 20)  # with x cancelling the bias, tanh has slope 1 here: the steepest point
    norm = jacobian_norm(cell, z, -cell.get_parameter("linear.bias").detach())
    assert norm <= 0.9 + 1e-5
    assert norm > 0.6 or size < 1  # and the bound is not far off
    assert norm <= cell.certificate().rate * (1 + 1e-5) <= 0.9 + 1e-4


def test_a_rank_one_weight_reaches_the_bound():
    cell = ContractiveCell(20, bound=0.9)
    nn.init.zeros_(cell.get_parameter("linear.bias"))
    cell.linear.weight.data = torch.outer(torch.ones(20), torch.ones(20))
    assert jacobian_norm(cell, torch.zeros(1, 20), torch.zeros(1, 20)) == pytest.approx(
        0.9, rel=1e-5
    )


@pytest.mark.parametrize("size", [0.1, 10.0])
def test_convolutional_cell_is_a_contraction_whatever_its_weights(size):
    cell = ContractiveCell(3, kernel=3, bound=0.9)
    nn.init.zeros_(cell.get_parameter("linear.bias"))
    for weight in (torch.randn(3, 3, 3, 3), torch.ones(3, 3, 3, 3)):
        cell.linear.weight.data = weight * size
        z = torch.zeros(1, 3, 8, 8)
        norm = jacobian_norm(cell, z, torch.zeros_like(z))
        assert norm <= 0.9 + 1e-5
        assert norm <= cell.certificate().rate * (1 + 1e-5)


def test_small_weights_stay_as_they_are():
    cell = ContractiveCell(5)
    nn.init.normal_(cell.linear.weight, std=0.01)
    z, x = torch.randn(2, 3, 5)
    torch.testing.assert_close(cell(z, x), torch.tanh(cell.linear(z) + x))
    assert cell.certificate().rate < 0.1


def test_gradient_through_the_scale():
    cell = ContractiveCell(4).double()
    nn.init.normal_(cell.linear.weight)
    z, x = torch.randn(2, 3, 4, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(
        lambda weight: torch.func.functional_call(cell, {"linear.weight": weight}, (z, x)),
        cell.linear.weight,
    )


@pytest.mark.parametrize("size", [0.1, 1.0, 10.0])
@pytest.mark.parametrize("cls", [ContractiveCell, MonotoneCell])
def test_the_plain_iteration_keeps_the_certified_rate(cls, size):
    torch.manual_seed(3)
    cell = cls(8).double()
    with torch.no_grad():
        for parameter in cell.parameters():
            parameter.mul_(size)
        certificate = cell.certificate()
        assert certificate.unique
        assert 0 <= certificate.rate < 1
        x = torch.randn(5, 8, dtype=torch.float64)
        left, right = 10 * torch.randn(2, 5, 8, dtype=torch.float64)
        for _ in range(30):
            gap = (left - right).norm(dim=1)
            left, right = cell(left, x), cell(right, x)
            assert bool(((left - right).norm(dim=1) <= certificate.rate * gap + 1e-13).all())


@pytest.mark.parametrize("size", [0.3, 1.0])
def test_the_monotone_equilibrium_is_that_of_its_operator(size):
    torch.manual_seed(4)
    cell = MonotoneCell(6, margin=0.5).double()
    with torch.no_grad():
        cell.symmetric.mul_(size)
    x = torch.randn(4, 6, dtype=torch.float64)
    layer = ic.build("deq", cell, root_solver=ic.Newton(tol=1e-13, max_steps=200))
    z = layer(x)
    w = cell.weight()
    torch.testing.assert_close(z, torch.relu(z @ w.T + cell.bias + x), rtol=0, atol=1e-11)
    symmetric = torch.eye(6, dtype=torch.float64) - (w + w.T) / 2
    assert torch.linalg.eigvalsh(symmetric).min() >= 0.5 - 1e-12


def test_the_gradient_of_the_monotone_equilibrium_is_that_of_its_operator():
    torch.manual_seed(5)
    cell = MonotoneCell(4).double()
    x = torch.randn(3, 4, dtype=torch.float64)
    options = {"root_solver": ic.Newton(tol=1e-14), "gradient": ic.Implicit(ic.GMRES(tol=1e-12))}
    z = ic.build("deq", cell, **options)(x)
    found = torch.autograd.grad(z.pow(3).sum(), list(cell.parameters()))

    def operator(z, x):
        a, b = cell.symmetric, cell.skew
        w = (1 - cell.margin) * torch.eye(4, dtype=torch.float64) - a.T @ a + b - b.T
        return torch.relu(z @ w.T + cell.bias + x)

    twin = ic.build("deq", operator, **options).solve(x, z.detach()).z
    expected = torch.autograd.grad(twin.pow(3).sum(), list(cell.parameters()))
    for mine, theirs in zip(found, expected, strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-8, atol=1e-10)
