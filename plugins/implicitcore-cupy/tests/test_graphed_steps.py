"""Steps as CUDA graphs with this backend's kernels in them: as by the loop, to the bit."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from cpu_launcher import on_cpu, with_graphs

import implicitcore as ic

BACKEND = type(on_cpu())
LOOP, GRAPHS = BACKEND(), BACKEND(cuda_graphs=True)
X = torch.tensor([[0.5], [2.0], [5.0]], dtype=torch.float64)
TIMES = [0.0, 0.3, 0.31, 0.8]


@pytest.fixture(autouse=True)
def graphs(monkeypatch):
    """What records graphs; it counts them, and what is launched of them."""
    return with_graphs(monkeypatch)


def turning():
    def field(t, z, x):
        return x * (z.roll(1, 1) - z) + torch.cos(t).to(z.dtype)

    return field


def z_of(scale, dtype=torch.float64):
    return (scale * torch.linspace(-1, 2, 15, dtype=torch.float64)).view(3, 5).to(dtype)


@torch.no_grad()
def solved(field, backend, solver, scale, dtype, **options):
    z0, given = z_of(scale, dtype), dict[str, Any](times=TIMES) | options
    return ic.integrate(field, z0, X.to(dtype), solver=solver, backend=backend, **given)


@pytest.mark.parametrize(
    "solver",
    [
        ic.RK4(dt=0.05),
        ic.Tsit5(rtol=1e-4),
        ic.Bosh3(controller="pid"),
        ic.Adams(),
    ],
    ids=lambda solver: type(solver).__name__,
)
def test_the_kernels_in_a_graph(graphs, solver):
    dtype = torch.float32 if isinstance(solver, ic.Bosh3) else torch.float64
    for options in ({}, {"times": [0.4, 0.3, 0.0]}):
        field = turning()
        for scale in (1.0, 1.0, 0.7):
            found, expected = (
                solved(field, each, solver, scale, dtype, **options) for each in (GRAPHS, LOOP)
            )
            assert torch.equal(found.z, expected.z)
            assert torch.equal(found.steps, expected.steps)
            assert torch.equal(found.status, expected.status)
    assert graphs.records == 2 and graphs.replays > 5


def test_a_sample_that_leaves_the_domain_fails_alone(graphs):
    def poles(t, z, x):
        return x * z.square()

    x = torch.tensor([[-1.0], [1.0], [-0.5]], dtype=torch.float64)
    for solver in (ic.Adams(max_steps=40), ic.Tsit5(max_steps=40)):
        for _ in range(3):
            found, expected = (
                ic.integrate(
                    *(poles, torch.ones(3, 1, dtype=torch.float64), x),
                    times=[0.0, 1.5],
                    solver=solver,
                    backend=backend,
                    gradient=ic.Adjoint(),
                    on_failure="ignore",
                )
                for backend in (GRAPHS, LOOP)
            )
            assert torch.equal(found.z.nan_to_num(), expected.z.nan_to_num())
            assert torch.equal(found.steps, expected.steps)
            assert torch.equal(found.status, expected.status)
            assert len(set(found.status.tolist())) == 2
    assert graphs.replays
