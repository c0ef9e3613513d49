"""torch.compile, of the cell and of the whole layer: the same results and gradients."""

from __future__ import annotations

import shutil
import subprocess
import sys

import pytest
import torch
from torch import nn
from torch.nn.utils import parametrizations

import implicitcore as ic
from implicitcore.testing.dense import relative_error
from implicitcore.testing.problems import Cell, inputs

# torch's own: Dynamo looks at the .grad of what is no leaf, Inductor uses torch.jit.
pytestmark = [
    pytest.mark.filterwarnings(
        "ignore:The .grad attribute of a Tensor that is not a leaf:UserWarning"
    ),
    pytest.mark.filterwarnings("ignore:.*torch.jit:DeprecationWarning"),
]

BACKENDS = ["eager", "aot_eager", pytest.param("inductor", marks=pytest.mark.slow)]
SOLVERS = [
    ic.Picard(tol=1e-10, max_steps=100),
    ic.Anderson(tol=1e-10),
    ic.Broyden(tol=1e-10),
    ic.Newton(tol=1e-10),
]
GRADIENTS = [
    ic.Implicit(ic.GMRES(tol=1e-10)),
    ic.Implicit(ic.Anderson(tol=1e-10)),
    ic.Phantom(steps=3),
    ic.Unrolled(),
]
# What Dynamo finds does not depend on what compiles it: aot_eager has each part once.
LAYERS = [
    pytest.param(solver, gradient, backend, id=f"{type(solver).__name__}-{i}{j}-{backend}")
    for i, solver in enumerate(SOLVERS)
    for j, gradient in enumerate(GRADIENTS)
    for backend in BACKENDS[: 2 if i == j else 1]
]


@pytest.fixture(autouse=True)
def fresh(request):
    if "inductor" in request.node.name and not (shutil.which("g++") or shutil.which("clang++")):
        pytest.skip("no C++ compiler")
    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()
    yield
    torch._dynamo.reset()


def values(call, parameters, x):
    x = x.detach().requires_grad_()
    z = call(x)
    return [z.detach(), *torch.autograd.grad(z.square().sum(), [*parameters, x])]


def name(part):
    return type(part).__name__


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("gradient", GRADIENTS, ids=name)
def test_a_compiled_cell(gradient, backend):
    cell, x = Cell(), inputs()
    solver = SOLVERS[1]
    plain = ic.ImplicitLayer(ic.FixedPoint(cell), solver=solver, gradient=gradient)
    compiled = ic.ImplicitLayer(
        ic.FixedPoint(torch.compile(cell, backend=backend, fullgraph=True)),
        solver=solver,
        gradient=gradient,
    )
    assert (
        relative_error(values(compiled, cell.parameters(), x), values(plain, cell.parameters(), x))
        < 1e-8
    )


@pytest.mark.parametrize(("solver", "gradient", "backend"), LAYERS)
def test_a_compiled_layer(solver, gradient, backend):
    model = nn.Sequential(
        nn.Linear(6, 6).double(),
        ic.ImplicitLayer(ic.FixedPoint(Cell()), solver=solver, gradient=gradient),
        nn.Tanh(),
    )
    x = inputs()
    expected = values(model, model.parameters(), x)
    compiled = torch.compile(model, backend=backend)
    for _ in range(2):
        assert relative_error(values(compiled, model.parameters(), x), expected) < 1e-8


def test_a_compiled_layer_is_not_compiled_again_for_another_count_of_steps():
    layer = ic.ImplicitLayer(ic.FixedPoint(Cell()), solver=ic.Anderson(tol=1e-10))
    compiled = torch.compile(layer, backend="eager")
    for scale in (1e-3, 1e-2, 0.1, 1.0, 3.0):
        compiled(scale * inputs())
    assert torch._dynamo.utils.counters["stats"].get("unique_graphs", 0) <= 2


def test_a_compiled_solve_gives_the_solution():
    layer, x = ic.ImplicitLayer(ic.FixedPoint(Cell()), solver=ic.Anderson(tol=1e-10)), inputs()
    solution = torch.compile(layer.solve, backend="eager")(x)
    assert bool(solution.converged.all()) and solution.evaluations == layer.solve(x).evaluations


def test_a_compiled_function():
    cell, x, solver = Cell(), inputs(), ic.Anderson(tol=1e-10)
    f = lambda x: ic.fixed_point(cell, torch.zeros_like(x), x, solver=solver).z + 1  # noqa: E731
    assert torch.equal(torch.compile(f, backend="eager")(x), f(x))


class NormCell(nn.Module):
    """What a solve holds, in a cell that is compiled: a parametrised weight and a dropout mask."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.linear = parametrizations.spectral_norm(nn.Linear(6, 6)).double()
        self.drop = ic.VariationalDropout(0.3)

    def forward(self, z, x):
        return torch.tanh(0.5 * self.linear(self.drop(z)) + x)


@pytest.mark.parametrize("backend", BACKENDS)
def test_what_a_solve_holds_is_held_in_a_compiled_cell(backend):
    cell, x = NormCell(), inputs()
    state = {key: value.clone() for key, value in cell.state_dict().items()}
    plain = ic.ImplicitLayer(ic.FixedPoint(cell), solver=SOLVERS[1], gradient=GRADIENTS[0])
    compiled = ic.ImplicitLayer(
        ic.FixedPoint(torch.compile(cell, backend=backend)),
        solver=SOLVERS[1],
        gradient=GRADIENTS[0],
    )
    results = []
    for layer in (plain, compiled):
        cell.load_state_dict(state)
        for seed in (0, 1):  # another mask, another weight: held anew
            torch.manual_seed(seed)
            results.append(
                [
                    *values(layer, list(cell.parameters()), x),
                    cell.get_buffer("linear.parametrizations.weight.0._u").clone(),
                ]
            )
    assert relative_error(results[2] + results[3], results[0] + results[1]) < 1e-8
    counts = []
    for _ in range(10):
        compiled(x)
        counts.append(torch._dynamo.utils.counters["stats"]["unique_graphs"])
    assert counts[-1] == counts[0]


GRAPH_WITHOUT_BREAKS = """
import torch, implicitcore as ic

layer = ic.ImplicitLayer(ic.FixedPoint(lambda z, x: 0.5 * z + x), solver=ic.Picard())
try:
    torch.compile(layer, fullgraph=True, backend="eager")(torch.ones(2, 3))
except Exception as error:
    assert "give the model a layer that implicitcore.compile made" in str(error), error
else:
    raise SystemExit("no error")
"""


def test_a_layer_in_a_graph_that_may_not_break_says_what_to_do():
    """In a process of its own: a trace that ends by an error leaves Dynamo's hook behind, and every
    later call holds its arguments longer, which other tests count."""
    subprocess.run([sys.executable, "-c", GRAPH_WITHOUT_BREAKS], check=True)
