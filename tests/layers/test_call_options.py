"""Options of a layer's solver for one call alone."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import implicitcore as ic
from implicitcore.registry.registry import REGISTRY

N = 3


class Cell(nn.Module):
    """f(z, x), a contraction; of a z wider than x it sees what it can."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.mix = nn.Linear(N, N, dtype=torch.float64)

    def forward(self, z: Tensor, x: Tensor) -> Tensor:
        wide = nn.functional.pad(torch.tanh(0.5 * self.mix(z[:, :N]) + x), (0, z.shape[1] - N))
        return wide - 0.1 * z


class Levels(nn.Module):
    """The same at two resolutions."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.down = nn.Conv2d(2, 4, 3, stride=2, padding=1, dtype=torch.float64)

    def forward(self, z: tuple[Tensor, ...], x: Tensor) -> tuple[Tensor, ...]:
        fine, coarse = z
        return torch.tanh(0.5 * fine + x), torch.tanh(0.4 * coarse + self.down(fine))


class Predicted(nn.Module):
    """The start of a layer at two resolutions."""

    def __init__(self) -> None:
        super().__init__()
        self.down = nn.Conv2d(2, 4, 3, stride=2, padding=1, dtype=torch.float64)

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        return x, self.down(x)


GIVEN: dict[str, dict[str, Any]] = {
    "skip_deq": {"predictor": nn.Linear(N, N, dtype=torch.float64)},
    "homoode": {"channels": N},
    "augmented_neural_ode": {"extra": 2},
    "multiscale_skip_deq": {"predictor": Predicted()},
}
LAYERS = [part.name for part in REGISTRY.parts("layer") if part.provider == "implicitcore-layers"]
each_layer = pytest.mark.parametrize("name", LAYERS)


def make(name: str) -> tuple[Any, Tensor]:
    """A layer by its name, and an input."""
    generator = torch.Generator().manual_seed(1)
    given = copy.deepcopy(GIVEN.get(name, {}))
    if not name.startswith("multiscale"):
        return ic.build(name, Cell(), **given), torch.randn(4, N, generator=generator).double()
    if "predictor" not in given:
        given["channels"] = (2, 4)
    x = torch.randn(2, 2, 4, 4, generator=generator).double()
    return ic.build(name, Levels(), **given), x


def tighter(layer: Any) -> dict[str, Any]:
    """Other options that its solver has."""
    if not isinstance(layer.solver, ic.ODESolver):
        return {"tol": 1e-9, "max_steps": 300}
    return {"rtol": 1e-9, "atol": 1e-11} if hasattr(layer.solver, "rtol") else {"dt": 0.01}


def leaves(value: Any) -> list[Tensor]:
    return [value] if isinstance(value, Tensor) else list(value)


def total(values: list[Tensor]) -> Tensor:
    return torch.cat([value.flatten() for value in values]).sum()


@each_layer
def test_a_call_with_options_is_a_call_of_a_layer_that_has_them(name):
    layer, x = make(name)
    options, config, solver = tighter(layer), layer.config, layer.solver
    other = copy.deepcopy(layer)
    for option, value in options.items():
        other.solver = ic.create(layer.solver.kind, {**ic.describe(other.solver), option: value})
    plain = leaves(layer(x))
    found, expected = leaves(layer(x, **options)), leaves(other(x))
    for a, b in zip(found, expected, strict=True):
        assert torch.equal(a, b)
    assert layer.solver is solver
    assert layer.config == config
    for a, b in zip(leaves(layer(x)), plain, strict=True):
        assert torch.equal(a, b)
    solution, wanted = layer.solve(x, **options), other.solve(x)
    assert solution.evaluations == wanted.evaluations
    assert torch.equal(solution.steps, wanted.steps)
    parameters = [p for p in layer.parameters() if p.requires_grad]
    copies = [p for p in other.parameters() if p.requires_grad]
    got = torch.autograd.grad(total(found), parameters, allow_unused=True)
    of_other = torch.autograd.grad(total(expected), copies, allow_unused=True)
    for a, b in zip(got, of_other, strict=True):
        assert a is b is None or torch.equal(a, b)


@each_layer
@pytest.mark.parametrize(
    ("options", "complaint"),
    [
        ({"max_step_s": 3}, "max_step_s: unknown option of .*did you mean '?max_steps"),
        ({"max_steps": 0}, "max_steps: expected a number greater than or equal to 1, received 0"),
        ({"max_steps": "many"}, "max_steps: expected an integer, received 'many'"),
        ({"max_steps": 0, "kees": 1}, "2 problems"),
    ],
    ids=str,
)
def test_options_are_read_as_those_of_the_solver(name, options, complaint):
    layer, x = make(name)
    for call in (layer, layer.solve):
        with pytest.raises(ic.ConfigError, match=complaint):
            call(x, **options)


def test_options_stand_beside_the_other_arguments():
    layer, x = make("neural_ode")
    z = layer(x, times=[0.0, 0.5, 1.0], rtol=1e-10, atol=1e-12)
    assert z.shape == (3, 4, N)
    assert not torch.equal(z[-1], layer(x))
    deq, x = make("deq")
    solution = deq.solve(x, trace=True, max_steps=2)
    assert len(solution.trace) <= 3
    assert solution.status.tolist() == [ic.Status.MAX_STEPS] * 4
    with pytest.warns(ic.ConvergenceWarning):
        deq(x, torch.zeros_like(x), max_steps=2)


def test_a_solver_that_cannot_be_made_again_is_refused():
    class Own(ic.RootSolver):
        def solve(self, system, z0):
            raise AssertionError

    layer = ic.ImplicitLayer(ic.FixedPoint(Cell()), solver=Own())
    with pytest.raises(ic.ConfigError, match="tol: options of one call need a solver that is a da"):
        layer(torch.ones(2, N, dtype=torch.float64), tol=1e-3)


def test_a_solve_in_a_graph_refuses_them_by_name(tmp_path):
    layer, x = make("deq")
    compiled = ic.compile(layer)
    for call in (compiled, compiled.solve):
        with pytest.raises(
            ic.ConfigError, match="tol: a solve in a graph has its options in the g"
        ):
            call(x, tol=1e-3)

    class Model(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = layer

        def forward(self, x: Tensor) -> Tensor:
            return self.layer(x, tol=1e-3)

    with pytest.raises(ic.ConfigError, match="tol: a solve in a graph has its options in the grap"):
        ic.export(Model(), x, tmp_path / "model.pt2")
