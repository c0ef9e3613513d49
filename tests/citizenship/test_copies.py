"""Copies of a layer: deepcopy, pickle, state_dict, to()."""

from __future__ import annotations

import copy
import io
import pickle

import pytest
import torch
from torch import nn
from torch.nn.utils import parametrizations

import implicitcore as ic
from implicitcore.testing.problems import Cell, inputs

LAYERS = {
    "root": lambda: ic.ImplicitLayer(
        ic.FixedPoint(Cell()), solver=ic.Chain((ic.Anderson(), ic.Newton()))
    ),
    "steady": lambda: ic.ImplicitLayer(
        ic.FixedPoint(Cell()), solver=ic.SteadyState(), gradient=ic.Phantom(steps=2)
    ),
    "predicted": lambda: ic.ImplicitLayer(
        ic.FixedPoint(Cell()),
        solver=ic.Broyden(),
        start=ic.Predictor(nn.Linear(6, 6).double()),
        on_failure="mask",
    ),
    "learned": lambda: ic.ImplicitLayer(
        ic.FixedPoint(Cell()), solver=ic.Picard(), start=ic.LearnedInitialGuess(6)
    ),
    "ode": lambda: ic.ImplicitLayer(
        ic.FixedPoint(Cell()), solver=ic.Tsit5(), gradient=ic.Adjoint(), start=ic.Identity()
    ),
    "checkpointed": lambda: ic.ImplicitLayer(
        ic.FixedPoint(Cell()), solver=ic.Tsit5(), gradient=ic.Checkpointed(8), start=ic.Identity()
    ),
}


def saved(layer):
    file = io.BytesIO()
    torch.save(layer, file)
    file.seek(0)
    return torch.load(file, weights_only=False)


COPIES = {
    "deepcopy": copy.deepcopy,
    "pickle": lambda layer: pickle.loads(pickle.dumps(layer)),
    "save": saved,
}


@pytest.mark.parametrize("duplicate", COPIES)
@pytest.mark.parametrize("kind", LAYERS)
def test_a_copy_is_equal_and_apart(kind, duplicate):
    layer, x = LAYERS[kind](), inputs()
    layer(x).sum().backward()  # after a call, as before one
    other = COPIES[duplicate](layer)
    assert torch.equal(other(x), layer(x))
    assert (other.solver, other.gradient, other.horizon, other.on_failure) == (
        layer.solver,
        layer.gradient,
        layer.horizon,
        layer.on_failure,
    )
    with torch.no_grad():
        other.dynamics.cell.bias.add_(1)
    assert not torch.equal(other(x), layer(x))


@pytest.mark.parametrize("kind", LAYERS)
def test_a_state_dict_restores_a_layer(kind):
    layer, other, x = LAYERS[kind](), LAYERS[kind](), inputs()
    with torch.no_grad():
        for parameter in layer.parameters():
            parameter.add_(0.01)
    state = layer.state_dict()
    assert set(state) == {key for key, _ in layer.named_parameters()}
    assert other.load_state_dict(state) == ([], [])
    assert torch.equal(other(x), layer(x))


def test_a_solution_is_pickled_without_its_graph():
    layer = LAYERS["root"]()
    with torch.no_grad():
        solution = layer.solve(inputs(), trace=True)
    other = pickle.loads(pickle.dumps(solution))
    assert torch.equal(other.z, solution.z) and other.summary() == solution.summary()


def test_a_copy_of_a_parametrised_cell_holds_its_own_weights():
    cell = nn.Sequential(parametrizations.spectral_norm(nn.Linear(6, 6)), nn.Tanh()).double()
    layer = ic.ImplicitLayer(ic.FixedPoint(Wrapped(cell)), solver=ic.Anderson())
    layer(inputs())
    other = copy.deepcopy(layer).eval()
    assert torch.equal(other(inputs()), layer.eval()(inputs()))


class Wrapped(nn.Module):
    def __init__(self, inner):
        super().__init__()
        self.inner = inner

    def forward(self, z, x):
        return self.inner(0.5 * z + x)


def test_a_layer_moves_between_dtypes():
    layer, x = LAYERS["root"](), inputs()
    expected = layer(x)
    single = layer.float()(x.float())
    assert single.dtype == torch.float32
    assert torch.allclose(single.double(), expected, atol=1e-3)
