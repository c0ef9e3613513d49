"""Batches whose samples depend on each other: solved as one where it is said, and refused else."""

from typing import Any

import pytest
import torch

import implicitcore as ic
from implicitcore.testing.dense import relative_error

NODES = 8
CHAIN = torch.diag(torch.full((NODES - 1,), 0.5, dtype=torch.float64), -1)
RING = 2 * torch.eye(NODES) - torch.eye(NODES).roll(1, 0) - torch.eye(NODES).roll(-1, 0)
RING = RING.double()
ROOT_SOLVERS = [
    ic.Picard(tol=1e-10),
    ic.Anderson(tol=1e-10),
    ic.Broyden(tol=1e-10),
    ic.Newton(tol=1e-10),
    ic.PseudoTransient(tol=1e-10),
    ic.SteadyState(tol=1e-10, max_steps=300),
    ic.Homotopy(corrector=ic.Newton(tol=1e-10)),
    ic.Chain((ic.Picard(tol=1e-10), ic.Newton(tol=1e-10))),
]
TIGHT: dict[str, Any] = {"rtol": 1e-9, "atol": 1e-11}
ODE_SOLVERS = [
    ic.Tsit5(**TIGHT),
    ic.DOP853(**TIGHT),
    ic.Adams(**TIGHT),
    ic.ESDIRK(rtol=1e-7, atol=1e-9),  # of order 4
    ic.RadauIIA5(**TIGHT),
    ic.RK4(dt=0.02),
]
GRADIENTS = [ic.Unrolled(), ic.Adjoint(ic.Tsit5(**TIGHT)), ic.Checkpointed()]


def named(part):
    return type(part).__name__


def signal():
    """At the first node alone, so that the nodes settle one after the other."""
    x = torch.zeros(NODES, 1, dtype=torch.float64)
    x[0] = 1
    return x


def chain(z, x):
    """z_i = z_{i-1} / 2 + x_i: the solution is 2^-i."""
    return CHAIN @ z + x


def diffusion(t, z, x):
    return -RING @ z


@pytest.mark.parametrize("solver", ROOT_SOLVERS, ids=named)
def test_a_coupled_batch_is_solved_as_one(solver):
    x = signal().requires_grad_()
    solution = ic.fixed_point(
        chain, torch.zeros_like(x), x, solver=solver, coupled=True, on_failure="ignore"
    )
    inverse = torch.linalg.inv(torch.eye(NODES, dtype=torch.float64) - CHAIN)
    assert solution.converged.tolist() == [True] * NODES
    assert solution.residual.shape == solution.steps.shape == (NODES,)
    assert torch.allclose(solution.z, inverse @ x, atol=1e-8)
    found = torch.autograd.grad(solution.z[3].sum(), x)  # a loss of one node
    assert relative_error(found, [inverse[3].unsqueeze(1)]) < 1e-4


@pytest.mark.parametrize("solver", ROOT_SOLVERS[:6], ids=named)
def test_without_a_word_it_is_refused(solver):
    with pytest.raises(ic.InputError, match="use coupled=True"):
        ic.fixed_point(chain, torch.zeros(NODES, 1).double(), signal(), solver=solver)


@pytest.mark.parametrize("gradient", [ic.Neumann(), ic.Phantom(), ic.Implicit()], ids=named)
def test_every_strategy_of_an_equilibrium_refuses_it(gradient):
    x = signal().requires_grad_()
    with pytest.raises(ic.InputError, match="use coupled=True"):
        ic.fixed_point(chain, torch.zeros_like(x), x, solver=ic.Picard(tol=1e-9), gradient=gradient)


def test_a_gradient_that_reaches_samples_without_one_is_refused():
    x = signal().requires_grad_()
    start = torch.linalg.solve(torch.eye(NODES, dtype=torch.float64) - CHAIN, signal())
    solution = ic.fixed_point(chain, start, x)  # stops at once: nothing to see in the residual
    with pytest.raises(ic.InputError, match="sample . is not in the loss, and has a gradient"):
        solution.z[5].sum().backward()


@pytest.mark.parametrize("gradient", GRADIENTS, ids=named)
@pytest.mark.parametrize("solver", ODE_SOLVERS, ids=named)
def test_a_coupled_trajectory_is_integrated_as_one(solver, gradient):
    z0, times = signal().requires_grad_(), torch.tensor([0.0, 0.5, 2.0])
    found = ic.integrate(
        diffusion,
        z0,
        times=times,
        solver=solver,
        gradient=gradient,
        coupled=True,
        on_failure="ignore",
    )
    exact = torch.matrix_exp(-2 * RING)
    assert found.z.shape == (3, NODES, 1)
    assert found.status.tolist() == [ic.Status.CONVERGED] * NODES
    assert torch.allclose(found.z[-1], exact @ z0, atol=1e-7)
    gradients = torch.autograd.grad(found.z[-1][3].sum(), z0)
    assert relative_error(gradients, [exact[3].unsqueeze(1)]) < 1e-6


@pytest.mark.parametrize("name", ["deq", "continuous_deq", "skip_reg_deq", "neural_ode"])
def test_a_layer_on_a_graph_equals_the_graph_as_one_sample(name):
    class Nodes(torch.nn.Module):
        def forward(self, *arguments):
            z, x = arguments[-2:]
            return 0.5 * torch.tanh(RING @ z) + x

    class Whole(torch.nn.Module):
        def forward(self, *arguments):
            z, x = (part.reshape(NODES, 2) for part in arguments[-2:])
            return (0.5 * torch.tanh(RING @ z) + x).reshape(1, -1)

    x = torch.zeros(NODES, 2, dtype=torch.float64)
    x[0] = 1
    layer, whole = ic.build(name, Nodes(), coupled=True), ic.build(name, Whole())
    assert torch.allclose(layer(x), whole(x.reshape(1, -1)).reshape(NODES, 2), atol=1e-12)
    assert ic.build(layer.config, Nodes()).coupled
    if name != "neural_ode":
        with pytest.raises(ic.InputError, match="use coupled=True"):
            ic.build(name, Nodes())(x)
