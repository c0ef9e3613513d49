"""The loop of the ODE solvers in a graph against the eager one."""

from __future__ import annotations

import copy
import shutil

import pytest
import torch
from torch import nn

import implicitcore as ic
from implicitcore.graph.layer import in_graph
from implicitcore.ode_solvers.stepwise import EqualSteps

SOLVERS = [
    ic.Euler(),
    ic.RK4(dt=0.3),
    ic.RK4(max_steps=3),
    ic.Tsit5(),
    ic.Tsit5(first_step=0.1, controller="i", min_step=1e-3, max_step=0.3),
    ic.Dopri5(controller="pid"),
    ic.Bosh3(max_steps=7, rtol=1e-5),
    ic.Fehlberg45(),
    ic.DOP853(),
    ic.Adams(),
]
STEADY = [
    ic.SteadyState(),
    ic.SteadyState(ode_solver=ic.Tsit5(), tol=1e-5),
    ic.SteadyState(ode_solver=ic.Fehlberg45(), measure="entries", tol=1e-3, atol=1e-3),
    ic.SteadyState(ode_solver=ic.Euler(dt=0.5), patience=5, max_steps=40),
    ic.SteadyState(ode_solver=ic.Bosh3(), max_steps=8, tol=1e-8),
]


def field(dtype: torch.dtype = torch.float64) -> ic.VectorField:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(4, 16), nn.Tanh(), nn.Linear(16, 4)).to(dtype)
    return ic.VectorField(lambda t, z, x: net(z) * (1 + t) + x)


def trajectory(solver, **options) -> ic.ImplicitLayer:
    start = ic.Identity()
    options = {"on_failure": "ignore", **options}
    return ic.ImplicitLayer(field(), solver=solver, start=start, horizon=2.0, **options)


def equilibrium(solver) -> ic.ImplicitLayer:
    torch.manual_seed(1)
    linear = nn.Linear(4, 4).double()
    cell = ic.FixedPoint(lambda z, x: torch.tanh(2 * linear(z) + x))
    gradient = ic.Implicit(ic.GMRES(tol=1e-9))
    return ic.ImplicitLayer(cell, solver=solver, gradient=gradient, on_failure="ignore")


def states() -> torch.Tensor:
    """Samples that take steps of different sizes, and one that cannot begin."""
    z = torch.randn(5, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    return z * torch.tensor([[0.1], [1], [5], [50], [torch.nan]], dtype=torch.float64)


def same(found, eager) -> None:
    assert torch.equal(found.status, eager.status)
    assert torch.equal(found.steps, eager.steps)
    torch.testing.assert_close(found.z, eager.z, equal_nan=True, rtol=1e-9, atol=1e-11)


@pytest.mark.usefixtures("plainly")
@pytest.mark.parametrize("solver", SOLVERS, ids=str)
def test_each_ode_solver_takes_its_steps(solver):
    layer, x = trajectory(solver), states()
    with torch.no_grad():
        eager = layer.solve(x)
        for found in (in_graph(copy.deepcopy(layer)).solve(x), ic.compile(layer).solve(x)):  # pyright: ignore
            same(found, eager)
            assert torch.equal(found.times, eager.times)  # pyright: ignore
            # The eager loop may ask f once whether it mixes samples; a graph evaluates the first
            # step of a method that leaves no velocity once more.
            # With equal steps the eager loop takes those since its last look again, where a sample
            # was not finite.
            again = int(eager.steps.max()) if isinstance(solver, EqualSteps) else 0
            assert -1 <= eager.evaluations - int(found.evaluations) <= 1 + 4 * again


@pytest.mark.usefixtures("plainly")
@pytest.mark.parametrize("solver", STEADY, ids=str)
def test_a_steady_state_is_that_of_the_layer_with_its_gradient(solver):
    layer, x = equilibrium(solver), states().nan_to_num()
    found = []
    for module in (layer, ic.compile(layer)):
        leaf = x.clone().requires_grad_()
        solution = module.solve(leaf)
        found.append((solution, torch.autograd.grad(solution.z.sum(), leaf)[0]))
    (eager, expected), (graph, gradient) = found
    same(graph, eager)
    torch.testing.assert_close(graph.residual, eager.residual, rtol=1e-6, atol=1e-12)
    asked = bool((eager.status == ic.Status.STALLED).any())  # whether others keep a sample there
    assert graph.evaluations == eager.evaluations - 1 - asked
    torch.testing.assert_close(gradient, expected, rtol=1e-6, atol=1e-7)


@pytest.mark.usefixtures("plainly")
def test_a_domain_that_is_left_ends_a_sample():
    layer = ic.ImplicitLayer(
        ic.VectorField(lambda z, x: -z.sqrt() - x, autonomous=True),
        solver=ic.Tsit5(),
        start=ic.Identity(),
        horizon=3.0,
        on_failure="ignore",
    )
    x = torch.tensor([[1.0], [100.0]], dtype=torch.float64)
    with torch.no_grad():
        eager, found = layer.solve(x), ic.compile(layer).solve(x)
    same(found, eager)
    assert found.status.tolist() == [3, 3]


@pytest.mark.parametrize("solver", [ic.ESDIRK(), ic.SteadyState(ode_solver=ic.ESDIRK())], ids=str)
def test_an_ode_solver_without_a_loop_is_named(solver):
    with pytest.raises(ic.ConfigError, match="ESDIRK has no loop in a graph; use Picard"):
        ic.compile(trajectory(solver))


@pytest.mark.usefixtures("only_for_any_size")
@pytest.mark.slow(12)
@pytest.mark.filterwarnings("ignore")
@pytest.mark.timeout(1500)
@pytest.mark.parametrize("solver", [ic.RK4(), ic.Tsit5(), ic.SteadyState()], ids=str)
def test_one_graph_serves_every_batch(solver):
    torch._dynamo.reset()
    steady = isinstance(solver, ic.SteadyState)
    layer = equilibrium(solver) if steady else trajectory(solver)
    compiled = ic.compile(layer)
    with torch.no_grad():
        for batch in (5, 3, 4):
            x = states()[:batch].nan_to_num()
            same(compiled.solve(x), layer.solve(x))


@pytest.mark.slow(13)
@pytest.mark.filterwarnings("ignore")
@pytest.mark.timeout(1500)
@pytest.mark.parametrize("end", [".pt2", ".aoti.pt2", ".onnx"])
@pytest.mark.parametrize(
    "solver", [ic.RK4(), ic.Tsit5(), *STEADY[:2]], ids=str
)  # Adams in the first of STEADY, and in those of test_export with output times
def test_an_artefact_is_the_layer(solver, end, tmp_path):
    if end == ".aoti.pt2" and shutil.which("g++") is None:
        pytest.skip("no C++ compiler")
    steady = isinstance(solver, ic.SteadyState)
    layer = (equilibrium(solver) if steady else trajectory(solver)).float()
    for part in ic.compile(layer).reads.modules:
        part.float()
    path = ic.export(layer, torch.ones(3, 4), tmp_path / f"model{end}")
    run = _runner(path, end)
    for batch in (1, 3, 4):
        x = states()[:batch].float()
        torch.testing.assert_close(run(x), layer(x).detach(), rtol=1e-4, atol=1e-4)


def _runner(path, end):
    if end == ".aoti.pt2":
        return torch._inductor.aoti_load_package(str(path))
    if end == ".pt2":
        return torch.export.load(path).module()
    onnxruntime = pytest.importorskip("onnxruntime")
    session = onnxruntime.InferenceSession(str(path))
    key = session.get_inputs()[0].name
    return lambda x: torch.from_numpy(session.run(None, {key: x.numpy()})[0])
