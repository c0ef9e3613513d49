"""An incoming gradient that is not finite comes out NaN, in its sample and in what all share."""

from __future__ import annotations

from functools import lru_cache

import pytest
import torch
from support.trajectory_solvers import stepwise
from torch import nn

import implicitcore as ic

LINEAR = [
    ic.GMRES(tol=1e-8),
    ic.BiCGSTAB(tol=1e-8),
    ic.Picard(tol=1e-8, max_steps=200),
    ic.Anderson(tol=1e-8),
    ic.Broyden(tol=1e-8),
    ic.Newton(tol=1e-8),
    ic.SteadyState(tol=1e-8, max_steps=300),
    ic.Chain((ic.Picard(tol=1e-8, max_steps=5), ic.GMRES(tol=1e-8))),
    ic.PseudoTransient(tol=1e-8),
    ic.Homotopy(),
]
EQUILIBRIA = [
    *(ic.Implicit(solver) for solver in LINEAR),
    ic.Neumann(),
    ic.Phantom(),
    ic.Phantom(steps=3, damping=0.5),
    ic.Shine(),
    ic.Shine(ic.GMRES(tol=1e-8)),
    ic.Unrolled(),
]
TRAJECTORIES = [ic.Unrolled(), ic.Checkpointed(), ic.Checkpointed(2), ic.Adjoint(ic.Tsit5())]
each_value = pytest.mark.parametrize("value", [torch.nan, torch.inf, -torch.inf], ids=str)
each_entry = pytest.mark.parametrize("whole", [True, False], ids=["row", "entry"])
BAD, OTHERS = 2, [0, 1, 3]


class Cell(nn.Module):
    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.linear = nn.Linear(5, 5, dtype=torch.float64)
        nn.init.orthogonal_(self.linear.weight, 0.6)

    def forward(self, *given):
        z, x = given[-2:]  # of (z, x) and of (t, z, x)
        return torch.tanh(self.linear(z) + x) - (z if len(given) == 3 else 0)


def inputs():
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(4, 5, dtype=torch.float64, generator=generator)
    v = torch.randn(4, 5, dtype=torch.float64, generator=generator)
    return x.requires_grad_(), v


def with_bad(v, value, whole):
    bad = v.clone()
    bad[..., BAD, slice(None) if whole else 1] = value
    return bad


def check(z, wrt, v, clean, value, whole):  # noqa: PLR0913
    found, *parameters = torch.autograd.grad(z, wrt, with_bad(v, value, whole), retain_graph=True)
    assert bool(found[BAD].isnan().any())
    assert torch.allclose(found[OTHERS], clean[OTHERS], rtol=1e-6, atol=1e-9)
    for parameter in parameters:
        assert not bool(parameter.isfinite().all()), "who scales a loss sees it"


@lru_cache(maxsize=1)  # of the values, which come one after the other
def equilibrium(gradient):
    """z, what it depends on, an incoming gradient, and the gradient with respect to x."""
    (x, v), cell = inputs(), Cell()
    solver = ic.Broyden(tol=1e-8) if isinstance(gradient, ic.Shine) else ic.Anderson(tol=1e-8)
    z = ic.fixed_point(cell, torch.zeros_like(x), x, solver=solver, gradient=gradient).z
    return z, [x, *cell.parameters()], v, torch.autograd.grad(z, x, v, retain_graph=True)[0]


@each_value
@each_entry
@pytest.mark.parametrize("gradient", EQUILIBRIA, ids=str)
def test_of_an_equilibrium(gradient, value, whole):
    check(*equilibrium(gradient), value, whole)


@lru_cache(maxsize=1)
def trajectory(solver, gradient):
    """The same of the state at the end."""
    (x, v), cell = inputs(), Cell()
    times = torch.tensor([0.0, 0.3, 0.6], dtype=torch.float64)
    given = {"times": times, "solver": solver, "gradient": gradient}
    z = ic.integrate(cell, torch.zeros_like(x), x, **given).z
    v = torch.stack((v * 0, v * 0, v))
    return z, [x, *cell.parameters()], v, torch.autograd.grad(z, x, v, retain_graph=True)[0]


@each_value
@each_entry
@pytest.mark.parametrize("gradient", TRAJECTORIES, ids=str)
@pytest.mark.parametrize("solver", stepwise(), ids=lambda s: type(s).__name__)
def test_of_a_trajectory(solver, gradient, value, whole):
    check(*trajectory(solver, gradient), value, whole)


@pytest.mark.parametrize("solver", LINEAR, ids=str)
def test_of_a_second_derivative(solver):
    """u^T df/dx is NaN where v is, with a graph too."""
    (x, v), cell = inputs(), Cell()
    solution = ic.fixed_point(
        cell, torch.zeros_like(x), x, solver=ic.Anderson(tol=1e-8), gradient=ic.Implicit(solver)
    )
    weights = with_bad(v, torch.nan, True)
    (found,) = torch.autograd.grad(solution.z, x, weights, create_graph=True)
    assert bool(found[BAD].isnan().all())
    assert bool(found[OTHERS].isfinite().all())


@pytest.mark.parametrize("gradient", [*EQUILIBRIA, *TRAJECTORIES], ids=str)
def test_a_gradient_scaler_sees_the_overflow(gradient):
    """A loss that is scaled beyond the dtype: float32 here, whose cell is far from it."""
    cell, x = Cell().float(), inputs()[0].detach().float()
    z0, scale = torch.zeros_like(x), torch.tensor(1e38)
    if gradient in TRAJECTORIES[1:]:
        times = torch.tensor([0.0, 0.6])
        z = ic.integrate(cell, z0, x, times=times, gradient=gradient).z[-1]
    else:
        solver = ic.Broyden(tol=1e-5) if isinstance(gradient, ic.Shine) else ic.Anderson(tol=1e-5)
        z = ic.fixed_point(cell, z0, x, solver=solver, gradient=gradient).z
    (z.sum() * 100 * scale).backward()
    assert not all(bool(known(p.grad).isfinite().all()) for p in cell.parameters())


def known(value):
    assert value is not None
    return value


MANY = "takes one gradient at a time"
BY_MANY = {
    "is_grads_batched": lambda z, x, many: torch.autograd.grad(z, x, many, is_grads_batched=True),
    "vmap": lambda z, x, many: torch.vmap(lambda v: torch.autograd.grad(z, x, v))(many),
}


@pytest.mark.parametrize("by", BY_MANY.values(), ids=list(BY_MANY))
@pytest.mark.parametrize("backend", ["torch", "cpp"])
@pytest.mark.parametrize(
    "gradient", [ic.Implicit(), ic.Implicit(ic.Anderson()), ic.Neumann(), ic.Shine()], ids=str
)
def test_many_gradients_at_once_are_one_error(gradient, backend, by):
    x = torch.ones(2, 3, dtype=torch.float64, requires_grad=True)
    options = {"solver": ic.Broyden(tol=1e-8), "gradient": gradient, "backend": backend}
    z = ic.fixed_point(lambda z, x: torch.cos(z * x), torch.zeros_like(x), x, **options).z
    with pytest.raises(ic.GradientError, match=MANY):
        by(z, x, torch.ones(4, 2, 3, dtype=torch.float64))


@pytest.mark.parametrize("gradient", [ic.Unrolled(), ic.Checkpointed(), ic.Adjoint()], ids=str)
def test_many_gradients_at_once_of_a_trajectory(gradient):
    """By steps that torch follows, one by one the same; else one error."""
    x = torch.ones(2, 3, dtype=torch.float64, requires_grad=True)
    z = ic.integrate(
        lambda z, x: torch.cos(z * x), x.detach(), x, times=[0.0, 1.0, 2.0], gradient=gradient
    ).z
    many = torch.randn(4, *z.shape, dtype=torch.float64)
    if isinstance(gradient, ic.Adjoint):
        with pytest.raises(ic.GradientError, match=MANY):
            torch.autograd.grad(z, x, many, is_grads_batched=True)
        return
    found = torch.autograd.grad(z, x, many, is_grads_batched=True, retain_graph=True)[0]
    each = [torch.autograd.grad(z, x, v, retain_graph=True)[0] for v in many]
    assert torch.allclose(found, torch.stack(each), rtol=1e-12, atol=1e-14)
