"""Layers of a state at several resolutions, and states that are pytrees in every layer."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn
from torch.utils import _pytree as pytree

import implicitcore as ic
from implicitcore_layers import MultiscaleCell

CHANNELS = (2, 4, 4)
X = torch.randn(3, 2, 5, 6, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
EXACT = {"root_solver": ic.Newton(tol=1e-12, max_steps=100)}
FORMS: dict[str, dict[str, Any]] = {
    "multiscale_deq": EXACT,
    "multiscale_continuous_deq": {"root_solver": {"name": "steady_state", "tol": 1e-12}},
    "multiscale_skip_deq": EXACT,
    "multiscale_skip_reg_deq": EXACT,
}


def contraction(cell: MultiscaleCell) -> MultiscaleCell:
    """The cell, where x counts for more than z: the blocks' own part is small, as are all but one.

    A norm takes back what a smaller z would bring.
    """
    first, *others = cell.blocks
    with torch.no_grad():
        next(iter(first.get_submodule("conv2").parameters())).mul_(0.1)
        first.get_parameter("norm2.weight").fill_(20.0)
        for block in others:
            block.get_parameter("norm3.weight").fill_(0.01)
    return cell


def make_cell(**options: Any) -> MultiscaleCell:
    torch.manual_seed(0)
    return contraction(MultiscaleCell(channels=CHANNELS, expansion=1, groups=1, **options)).double()


def build(name: str, cell: nn.Module, **options: Any) -> Any:
    if name == "multiscale_skip_deq":
        options = {"predictor": make_cell().predictor().double(), **options}
    else:
        options = {"channels": CHANNELS, **options}
    return ic.build(name, cell, **options)


def entries(z: Any) -> torch.Tensor:
    return torch.cat([leaf.flatten(1) for leaf in pytree.tree_leaves(z)], 1)


@pytest.mark.parametrize("name", [*FORMS, "multiscale_neural_ode"])
def test_the_state_is_an_image_at_each_resolution(name):
    z = build(name, make_cell())(X)
    assert [tuple(leaf.shape) for leaf in z] == [(3, 2, 5, 6), (3, 4, 3, 3), (3, 4, 2, 2)]


@pytest.mark.parametrize("side", [1, 2, 7, 16, 17])
@pytest.mark.parametrize("branches", [1, 2, 4])
def test_any_number_of_resolutions_of_any_size(branches, side):
    channels = (2, 4, 4, 16)[:branches]
    cell = ic.create("cell", "multiscale", channels=channels, expansion=1, norm="group", groups=1)
    x = torch.randn(2, 2, side, 16)
    z = ic.Pyramid(channels)(x)
    assert [leaf.shape[1] for leaf in z] == list(channels)
    assert all(a.shape == b.shape for a, b in zip(cell(z, x), z, strict=True))
    assert cell.head()(cell(z, x)).shape == (2, 10)


@pytest.mark.parametrize("name", FORMS)
@pytest.mark.parametrize("weight_norm", [False, True])
def test_the_gradient_of_each_form_is_that_of_unrolling(name, weight_norm):
    cell = make_cell(weight_norm=weight_norm)
    gradient = {"name": "implicit", "solver": {"name": "gmres", "tol": 1e-12}}
    layer = build(name, cell, gradient=gradient, **FORMS[name])
    x = X.clone().requires_grad_()
    wrt = [x, *cell.parameters()]
    solution = layer.solve(x).raise_if_failed()
    found = torch.autograd.grad(entries(solution.z).pow(3).sum(), wrt)
    z: Any = tuple(torch.zeros_like(leaf) for leaf in solution.z)
    for _ in range(60):
        z = cell(z, x)
    torch.testing.assert_close(entries(solution.z), entries(z), rtol=1e-9, atol=1e-9)
    expected = torch.autograd.grad(entries(z).pow(3).sum(), wrt)
    for mine, theirs in zip(found, expected, strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-6, atol=1e-9)


def rk4_step(cell: nn.Module, z: Any, dt: float) -> Any:
    def moved(slope: Any, share: float) -> Any:
        return tuple(a + share * dt * b for a, b in zip(z, slope, strict=True))

    k1 = cell(z, X)
    k2 = cell(moved(k1, 0.5), X)
    k3 = cell(moved(k2, 0.5), X)
    k4 = cell(moved(k3, 1.0), X)
    mean = [(a + 2 * b + 2 * c + d) / 6 for a, b, c, d in zip(k1, k2, k3, k4, strict=True)]
    return moved(mean, 1.0)


def test_the_gradient_of_the_flow_is_that_of_unrolling():
    cell = make_cell()
    options = {"ode_solver": ic.RK4(dt=0.25)}  # at zero the norms of the cell are singular
    results = []
    for gradient in ("unrolled", "checkpointed"):
        layer = build("multiscale_neural_ode", cell, gradient=gradient, **options)
        loss = entries(layer(X)).pow(3).sum()
        results.append(torch.autograd.grad(loss, list(cell.parameters())))
    z: Any = ic.Pyramid(CHANNELS)(X)
    for _ in range(4):
        z = rk4_step(cell, z, 0.25)
    results.append(torch.autograd.grad(entries(z).pow(3).sum(), list(cell.parameters())))
    for other in results[1:]:
        for mine, theirs in zip(results[0], other, strict=True):
            torch.testing.assert_close(mine, theirs, rtol=1e-8, atol=1e-8)


@pytest.mark.parametrize("name", [*FORMS, "multiscale_neural_ode"])
def test_each_form_trains_a_step_and_its_config_builds_an_equal(name):
    cell = make_cell()
    layer = build(name, cell)
    before = {key: value.detach().clone() for key, value in layer.named_parameters()}
    solution = layer.solve(X).raise_if_failed()
    (entries(solution.z).pow(3).mean() + layer.regularizer(solution)).backward()
    torch.optim.SGD(layer.parameters(), lr=0.1).step()
    still = [key for key, value in layer.named_parameters() if torch.equal(before[key], value)]
    assert not still
    extra = {"predictor": layer.predictor} if name == "multiscale_skip_deq" else {}
    twin = ic.build(layer.config, make_cell(), **extra)
    assert twin.config == layer.config
    twin.load_state_dict(layer.state_dict())
    assert torch.equal(entries(twin(X)), entries(layer(X)))


@pytest.mark.parametrize("name", [*FORMS, "multiscale_neural_ode"])
def test_the_parameters_know_their_roles(name):
    layer = build(name, make_cell())
    roles = {group["role"]: len(group["params"]) for group in layer.parameter_groups()}
    cell, predictor = make_cell(), make_cell().predictor()
    expected = {"dynamics": len(list(cell.parameters()))}
    if name == "multiscale_skip_deq":
        expected["start"] = len(list(predictor.parameters()))
    assert roles == expected


def test_channels_are_an_option_that_can_be_assigned():
    for name in ("multiscale_deq", "multiscale_skip_reg_deq"):
        layer = build(name, make_cell(), channels=(2, 4))
        layer.channels = CHANNELS
        assert layer.config["channels"] == list(CHANNELS)
        assert len(layer(X)) == 3


def test_an_input_without_a_width_is_told():
    with pytest.raises(ic.InputError, match=r"\[batch, ..., height, width\]; received \[3, 2\]"):
        build("multiscale_deq", make_cell())(X[..., 0, 0])


# States that are pytrees, in the other layers.

SHAPES = {
    "tuple": ((4,), (2, 3)),
    "dict": {"a": (4,), "b": (2, 3)},
    "nested": ((4,), {"b": (2, 3)}),
}
FLAT = torch.randn(5, 6, generator=torch.Generator().manual_seed(2), dtype=torch.float64)


class Mix(nn.Module):
    """A contraction of any state of 10 entries a sample."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.state, self.input = nn.Linear(10, 10).double(), nn.Linear(6, 10).double()

    def forward(self, z: Any, x: torch.Tensor) -> Any:
        leaves, spec = pytree.tree_flatten(z)
        out = torch.tanh(0.5 * self.state(entries(z)) + self.input(x))
        sizes = [leaf[0].numel() for leaf in leaves]
        parts = zip(out.split(sizes, 1), leaves, strict=True)
        return pytree.tree_unflatten([part.reshape(leaf.shape) for part, leaf in parts], spec)


@pytest.mark.parametrize("kind", SHAPES)
@pytest.mark.parametrize("name", ["deq", "continuous_deq", "skip_reg_deq", "homoode", "neural_ode"])
def test_every_layer_takes_the_shape_of_a_pytree(name, kind):
    shape = SHAPES[kind]
    options: dict[str, Any] = {"shape": shape}
    if name == "homoode":
        options["channels"] = (4, 2)
    if name == "neural_ode":
        options = {"start": {"name": "zeros", "shape": shape}}
    layer = ic.build(name, Mix(), **options).double()
    z = layer(FLAT)
    sizes = ic.Zeros(shape)(FLAT)
    assert pytree.tree_structure(z) == pytree.tree_structure(sizes)
    assert [a.shape for a in pytree.tree_leaves(z)] == [b.shape for b in pytree.tree_leaves(sizes)]
    twin = ic.build(layer.config, Mix()).double()
    twin.load_state_dict(layer.state_dict())
    assert twin.config == layer.config
    assert torch.equal(entries(twin(FLAT)), entries(z))
    entries(z).pow(2).sum().backward()


@pytest.mark.parametrize(
    ("shape", "message"),
    [
        ((4, -1), "shape: expected sizes"),
        (3, "shape: expected sizes, or a tuple or dict of shapes"),
        ((4, (2,)), "shape: expected sizes, or a tuple or dict of shapes"),
        ((True,), "shape: expected sizes"),
        (("4",), "shape: expected sizes"),
        ({"a": 3}, "shape: expected sizes, or a tuple or dict of shapes"),
    ],
)
def test_what_is_no_shape_is_told(shape, message):
    for make in (lambda: ic.build("deq", Mix(), shape=shape), lambda: ic.Zeros(shape)):
        with pytest.raises(ic.ConfigError, match=message):
            make()
