"""On an accelerator a stage is added to all rows of a tableau at once: the same trajectories."""

from __future__ import annotations

import pytest
import torch

import implicitcore as ic
from implicitcore.backends import torch as torch_backend
from implicitcore.ode_solvers import runge_kutta
from implicitcore.tensors import host

WEIGHT = torch.tensor([[0.3, -0.5], [0.4, 0.1]], dtype=torch.float64)
SPAN = torch.tensor([0.0, 3.0], dtype=torch.float64)


def field(t, z, x):
    return torch.tanh(z @ WEIGHT) * torch.cos(t)


@torch.no_grad()
def solved(solver):
    z0 = torch.tensor([[1.0, 2.0], [-3.0, 0.5]], dtype=torch.float64)
    return ic.integrate(field, z0, times=SPAN, solver=solver).raise_if_failed()


@pytest.mark.parametrize("solver", [ic.Tsit5(), ic.Bosh3(), ic.DOP853(), ic.Fehlberg45()])
def test_the_trajectory_is_that_of_one_sum_after_another(solver, monkeypatch):
    expected = solved(solver)
    monkeypatch.setattr(host, "on_host", lambda tensor: False)
    made, kind = [], torch_backend._AllRows
    monkeypatch.setattr(torch_backend, "_AllRows", lambda *args: made.append(0) or kind(*args))
    found = solved(solver)
    assert made
    assert found.steps.tolist() == expected.steps.tolist()
    assert torch.allclose(found.z, expected.z, rtol=0, atol=1e-11)


@pytest.mark.parametrize(
    "solver",
    [ic.Euler(dt=0.1), ic.Heun(dt=0.1), ic.RK4(dt=0.1), ic.AdaptiveHeun(), ic.Tsit5(), ic.DOP853()],
    ids=str,
)
def test_a_compiler_gets_the_extension_that_a_table_gives(solver, monkeypatch):
    """Of Euler's a row has no weight other than zero."""
    z0 = torch.tensor([[1.0, 2.0], [-3.0, 0.5]], dtype=torch.float64)
    given = {"times": torch.linspace(0, 3, 8), "solver": solver}
    expected = ic.integrate(field, z0, **given).raise_if_failed()
    monkeypatch.setattr(runge_kutta.torch.compiler, "is_compiling", lambda: True)
    found = ic.integrate(field, z0, **given).raise_if_failed()
    assert torch.allclose(found.z, expected.z, rtol=0, atol=1e-12)
