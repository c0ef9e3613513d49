"""Every registered ODE solver x every gradient of a trajectory: equal to unrolled at tight
tolerances."""

from __future__ import annotations

from functools import lru_cache

import pytest
import torch
from support.trajectory_solvers import NAMES, SEPARABLE, make
from torch import nn

import implicitcore as ic
from implicitcore.testing.dense import relative_error
from implicitcore.testing.problems import Cell, inputs

GRID = torch.tensor([0.0, 0.3, 0.5], dtype=torch.float64)
# The adjoint differs by the error of both integrations, which at steps of 1e-2 is large for a
# method of order 1.
LOOSE = {"euler": 3e-2, "implicit_euler": 3e-2, "adaptive_heun": 1e-3}
LOOSE["fehlberg21"] = 1e-4  # its estimate of the error is small


class Field(nn.Module):
    """A vector field with parameters, an input and the time, on samples whose time scales are a
    factor of 30 apart."""

    def __init__(self):
        super().__init__()
        self.cell = Cell()

    def forward(self, t, z, x):
        rate = torch.logspace(-1, 0.477, len(z), dtype=z.dtype)[:, None]
        return rate * (self.cell(z, x) - torch.cos(t) * z)


class Pairs(Field):
    """The same of positions and momenta: a separable one."""

    def forward(self, t, z, x):
        rate = torch.logspace(-1, 0.477, len(z), dtype=z.dtype)[:, None]
        (q, p), none = z.tensor_split(2, 1), torch.zeros_like(z[:, :3])
        velocity = self.cell(torch.cat((none, p), 1), x)[:, :3]
        force = self.cell(torch.cat((q, none), 1), x)[:, 3:]
        return rate * torch.cat((velocity, torch.cos(t) * (force - q)), 1)


def tight(name):
    rtol = 1e-4 if name == "adaptive_heun" else 1e-6  # of order 2: it takes many steps
    return make(name, dt=1e-2, rtol=rtol, atol=rtol / 100, max_steps=2000)


def gradients(solve, gradient, wrt):
    solution = solve(gradient).raise_if_failed()
    z = solution.z[1:] if isinstance(solution, ic.Trajectory) else solution.z
    return torch.autograd.grad(z.square().sum(), wrt)


def of_a_trajectory(name, solver, gradient):
    field = Pairs() if name in SEPARABLE else Field()
    z0, x = inputs(seed=2).requires_grad_(), inputs(seed=3).requires_grad_()

    def solve(strategy):
        return ic.integrate(field, z0, x, times=GRID, solver=solver, gradient=strategy)

    return gradients(solve, gradient, [z0, x, *field.parameters()])


@lru_cache(maxsize=1)  # the strategies of a solver come one after the other
def unrolled(name, solver):
    return of_a_trajectory(name, solver, ic.Unrolled())


def compare(found, expected, bound):
    try:
        found = found()
    except ic.GradientError as error:
        assert "use " in str(error) or "give " in str(error)
        pytest.skip(f"refused: {error}")
    assert relative_error(found, expected()) < bound


@pytest.mark.parametrize("gradient", [ic.Adjoint(), ic.Checkpointed(), ic.Checkpointed(8)], ids=str)
@pytest.mark.parametrize("name", [*NAMES, *SEPARABLE])
def test_a_trajectory(name, gradient):
    exact = isinstance(gradient, ic.Checkpointed)  # at any tolerance
    solver = make(name, dt=0.025, rtol=1e-4, atol=1e-6) if exact else tight(name)
    bound = 1e-12
    if not exact and name not in SEPARABLE:  # exact by nature
        bound = LOOSE.get(name, 2e-4 if "dt" in str(solver) else 1e-5)
    compare(lambda: of_a_trajectory(name, solver, gradient), lambda: unrolled(name, solver), bound)


@pytest.mark.parametrize("name", NAMES)
def test_a_steady_state(name):
    cell, x = Cell(), inputs().requires_grad_()
    solver = ic.SteadyState(
        ode_solver=make(name, dt=0.5, rtol=0.1, atol=0.1), tol=1e-12, max_steps=500
    )

    def solve(strategy):
        return ic.fixed_point(cell, torch.zeros_like(x), x, solver=solver, gradient=strategy)

    wrt, gradient = [x, *cell.parameters()], ic.Implicit(ic.GMRES(tol=1e-12))
    compare(
        lambda: gradients(solve, gradient, wrt), lambda: gradients(solve, ic.Unrolled(), wrt), 1e-8
    )
