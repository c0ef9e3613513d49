"""The published layers, through their names."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

import implicitcore as ic


class Cell(nn.Module):
    """A contraction of (z, x), both ``[batch, 6]``."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.linear = nn.utils.parametrizations.orthogonal(nn.Linear(6, 6))

    def forward(self, z: Tensor, x: Tensor) -> Tensor:
        return torch.tanh(0.6 * self.linear(z) + x)


NAMES = ["deq", "continuous_deq", "skip_deq", "skip_reg_deq", "neural_ode", "homoode"]
EQUILIBRIA = NAMES[:4]
x = torch.randn(5, 6, generator=torch.Generator().manual_seed(1))


def build(name, **options):
    extra = {"skip_deq": {"predictor": nn.Linear(6, 6)}, "homoode": {"channels": 6}}.get(name, {})
    return ic.build(name, Cell(), **{**extra, **options})


@pytest.mark.parametrize("name", NAMES)
def test_every_layer_trains_a_step(name):
    layer = build(name)
    before = {name: value.detach().clone() for name, value in layer.named_parameters()}
    optimizer = torch.optim.SGD(layer.parameters(), lr=0.1)
    solution = layer.solve(x).raise_if_failed()
    loss = solution.z.square().mean() + layer.regularizer(solution)
    loss.backward()
    optimizer.step()
    assert solution.backward.vjps > 0
    assert all(not torch.equal(before[name], value) for name, value in layer.named_parameters())


@pytest.mark.parametrize("name", EQUILIBRIA)
def test_the_equilibrium_layers_agree(name):
    layer = build(name, root_solver={"name": "anderson", "tol": 1e-6})
    reference = build("deq", root_solver={"name": "broyden", "tol": 1e-6})
    assert torch.allclose(layer(x), reference(x), atol=1e-5)


@pytest.mark.parametrize("name", NAMES)
def test_the_config_builds_an_equal(name):
    layer = build(name)
    extra = {"predictor": layer.start.predictor} if name == "skip_deq" else {}
    twin = ic.build(layer.config, Cell(), **extra)
    assert twin.config == layer.config
    twin.load_state_dict(layer.state_dict())
    assert torch.equal(twin(x), layer(x))


def test_continuous_deq_takes_the_documented_options():
    layer = ic.build(
        "continuous_deq",
        Cell(),
        root_solver={"name": "steady_state", "ode_solver": "tsit5", "tol": 1e-4, "max_steps": 50},
        gradient={"name": "implicit", "solver": {"name": "gmres", "tol": 1e-4}},
        backend="auto",
    )
    assert layer.root_solver == ic.SteadyState(ode_solver=ic.Tsit5(), tol=1e-4, max_steps=50)
    assert layer.gradient == ic.Implicit(ic.GMRES(tol=1e-4))
    assert type(layer.backend) is type(ic.create("backend", "auto"))
    z = layer(x)
    assert torch.allclose(layer.get_submodule("dynamics.cell")(z, x), z, atol=1e-3)


@pytest.mark.parametrize("gradient", ["implicit", "unrolled", "phantom"])
def test_the_skip_predictor_learns_from_the_regulariser_alone(gradient):
    layer = build("skip_deq", gradient=gradient, root_solver="picard")
    solution = layer.solve(x)
    predictor = list(layer.start.parameters())
    assert torch.autograd.grad(
        solution.z.sum(), predictor, allow_unused=True, retain_graph=True
    ) == (None, None)
    weight, bias = torch.autograd.grad(layer.regularizer(solution), predictor)
    assert bool(weight.any()) and bool(bias.any())


def test_the_skip_regulariser_is_the_mean_distance_with_gradient_to_both_ends():
    layer = build("skip_deq", weight=0.5)
    solution = layer.solve(x)
    assert torch.allclose(
        layer.regularizer(solution), 0.5 * (solution.z - solution.start).abs().mean()
    )
    assert torch.allclose(solution.start, layer.get_submodule("start.predictor")(x))
    (cell,) = torch.autograd.grad(
        layer.regularizer(solution), [layer.get_parameter("dynamics.cell.linear.bias")]
    )
    assert bool(cell.any())


def test_skip_reg_starts_from_the_first_update_and_counts_it():
    layer = build("skip_reg_deq")
    solution = layer.solve(x)
    assert torch.equal(solution.start, layer.get_submodule("dynamics.cell")(torch.zeros_like(x), x))
    assert solution.evaluations == layer.solve(x, solution.start.detach()).evaluations + 1
    assert len(layer.state_dict()) == len(layer.dynamics.state_dict())


def test_homoode_start_is_one_value_per_channel_in_the_state_dict_and_survives_a_reload(tmp_path):
    layer = ic.build("homoode", lambda z, c: torch.tanh(c - z), channels=3)
    c = torch.randn(4, 3, 5, 5, generator=torch.Generator().manual_seed(2))
    with torch.no_grad():
        layer.get_parameter("start.value").copy_(torch.tensor([0.1, -0.2, 0.3]))
    solution = layer.solve(c)
    assert solution.start.shape == c.shape
    assert torch.equal(solution.start[2, :, 1, 4], layer.get_parameter("start.value"))
    torch.save(layer.state_dict(), tmp_path / "weights.pt")
    twin = ic.build("homoode", lambda z, c: torch.tanh(c - z), channels=3)
    twin.load_state_dict(torch.load(tmp_path / "weights.pt", weights_only=True))
    assert torch.equal(twin.get_parameter("start.value"), layer.get_parameter("start.value"))
    assert torch.equal(twin(c), layer(c))


@pytest.mark.parametrize("gradient", ["adjoint", "unrolled"])
def test_homoode_start_learns_from_the_regulariser_alone(gradient):
    layer = build("homoode", gradient=gradient)
    solution = layer.solve(x)
    (task,) = torch.autograd.grad(
        solution.z.sum(), [layer.get_parameter("start.value")], allow_unused=True, retain_graph=True
    )
    assert task is None
    fit = layer.regularizer(solution)
    assert torch.allclose(fit, nn.functional.smooth_l1_loss(solution.start, solution.z))
    bias = layer.get_parameter("dynamics.field.linear.bias")
    start, cell = torch.autograd.grad(
        fit, [layer.get_parameter("start.value"), bias], allow_unused=True
    )
    assert bool(start.any()) and cell is None


def test_neural_ode_is_the_flow_from_the_input():
    layer = ic.build(
        "neural_ode",
        lambda z, x: -z,
        ode_solver={"name": "dopri5", "rtol": 1e-8, "atol": 1e-10},
        horizon=0.5,
    )
    z = x.double()
    assert torch.allclose(
        layer(z), z * torch.exp(torch.tensor(-0.5, dtype=torch.float64)), rtol=1e-7
    )
    timed = ic.build(
        "neural_ode",
        lambda t, z, x: torch.cos(t) + 0 * z,
        ode_solver={"name": "dopri5", "rtol": 1e-8},
        autonomous=False,
    )
    assert torch.allclose(
        timed(z), z + torch.sin(torch.tensor(1.0, dtype=torch.float64)), rtol=1e-6
    )


FLOWS = {"neural_ode": {}, "augmented_neural_ode": {"extra": 1}, "homoode": {"channels": 6}}


@pytest.mark.parametrize("name", FLOWS)
def test_the_gradient_of_a_flow_is_that_of_its_steps(name):
    class BlackBox(ic.ODESolver):
        def solve(self, system, z0, times, stop=None):
            raise NotImplementedError

    layer = ic.build(name, Cell(), **FLOWS[name])
    assert layer.gradient == ic.Checkpointed()
    layer.gradient = None
    assert layer.gradient == ic.Checkpointed()
    assert ic.build(name, Cell(), ode_solver=BlackBox(), **FLOWS[name]).gradient == ic.Adjoint()


def test_the_gradient_of_a_flow_that_contracts_is_exact():
    """Samples with rates from 1 to 30: the way back in time is unstable for the fast ones."""
    rates = torch.linspace(1, 30, 5, dtype=torch.float64).unsqueeze(1)
    layer = ic.build(
        "neural_ode", lambda z, x: rates * (torch.sin(z) / 2 - z), ode_solver={"name": "tsit5"}
    )
    z0 = x.double().requires_grad_()
    found = torch.autograd.grad(layer(z0).sum(), z0)[0]
    solution = ic.integrate(
        lambda t, z, x: rates * (torch.sin(z) / 2 - z),
        z0,
        times=[0.0, 1.0],
        solver=ic.Tsit5(),
        gradient=ic.Unrolled(),
    )
    exact = torch.autograd.grad(solution.z[-1].sum(), z0)[0]
    assert torch.allclose(found, exact, rtol=1e-12, atol=1e-14)


def test_bad_options_are_one_error_with_near_matches():
    with pytest.raises(ic.ConfigError) as failure:
        ic.build(
            "deq",
            Cell(),
            root_solver={"name": "anderson", "toll": 1, "depth": 0},
            gradient="implict",
            on_failur="mask",
        )
    text = str(failure.value)
    assert all(
        part in text
        for part in ["root_solver.toll", "'tol'", "root_solver.depth", "'implicit'", "'on_failure'"]
    )
