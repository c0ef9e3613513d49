"""A model that is its map."""

import pytest
import torch

import implicitcore as ic
from implicitcore.extend import FixedPointMap
from implicitcore.testing.problems import Cell, inputs


class Model(FixedPointMap):
    def __init__(self):
        super().__init__()
        self.cell = Cell()

    def update(self, z, x):
        return self.cell(z, x)


@pytest.mark.parametrize(
    "solver",
    [ic.Anderson(tol=1e-8), ic.SteadyState(tol=1e-8, max_steps=500), ic.Tsit5()],
    ids=lambda s: type(s).__name__,
)
def test_it_is_the_fixed_point_of_its_update(solver):
    x = inputs()
    model = ic.ImplicitLayer(Model(), solver=solver)
    reference = ic.ImplicitLayer(ic.FixedPoint(Cell()), solver=solver)
    assert torch.equal(model(x), reference(x))


class Half(FixedPointMap):
    def update(self, z, x):
        return 0.5 * z + x


def test_the_tolerance_is_relative_to_the_map():
    layer, x = ic.ImplicitLayer(Half(), solver=ic.Picard(tol=1e-3)), inputs()
    small = layer.solve(1e-6 * x)
    assert small.converged.all()
    assert small.steps.tolist() == layer.solve(x).steps.tolist()


def test_a_model_without_an_update_cannot_be_made():
    with pytest.raises(TypeError, match="update"):
        type("Empty", (FixedPointMap,), {})()
