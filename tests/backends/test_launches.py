"""How many kernels of our own an iteration launches on a device, and how often the host waits.

Counted without a device, on tensors that have no values. The table may shrink and must not grow;
docs/benchmarks/launches.md explains it.
"""

from __future__ import annotations

import pytest
import torch
from support.host_syncs import HostSyncs

import implicitcore as ic
from implicitcore.backends.torch import TORCH
from implicitcore.root_solvers.krylov import Krylov
from implicitcore.system.memory import Memory

BATCH, N = 3, 8
FEW, MANY = 21, 61
TABLE = {  # launches of the torch backend, and waits, an iteration (GMRES: a product)
    "picard": (3.25, 0.25),
    "anderson": (24.2, 0.25),
    "broyden": (17.8, 0.25),
    "gmres": (26.3, 0.25),
    "tsit5": (84, 1),
}
SOLVERS = {"picard": ic.Picard, "anderson": ic.Anderson, "broyden": ic.Broyden}


def meta(*shape):
    return torch.zeros(shape, device="meta")


def usual(tensor):
    """What the host reads where nothing happens: residuals that stay as they are."""
    return torch.ones(tensor.shape, dtype=tensor.dtype)


def all_accept(tensor):
    """What it reads of a step that every sample accepts, far from the end."""
    if tensor.dtype == torch.int64:
        return torch.tensor(BATCH)
    return torch.tensor([True, False, False]) if tensor.shape == (3,) else torch.tensor(True)


def counted(name, steps):
    """Launches, the cell's own left out, and waits."""
    with HostSyncs(all_accept if name == "tsit5" else usual) as syncs, torch.no_grad():

        def cell(z, x):
            syncs.aside = True
            value = torch.tanh(z @ x)
            syncs.aside = False
            return value

        z, x = meta(BATCH, N), ic.shared(meta(N, N))
        if name == "tsit5":
            solver = ic.Tsit5(max_steps=steps)
            ic.integrate(lambda t, z, x: cell(z, x), z, x, times=meta(2), solver=solver)
        elif name == "gmres":
            limit, g = meta(BATCH), meta(BATCH, N)
            Krylov(TORCH, lambda v: cell(v, x.value), g, limit, steps).minimise()
        else:
            ic.fixed_point(cell, z, x, solver=SOLVERS[name](max_steps=steps))
    return syncs.launches, syncs.counts.total()


@pytest.mark.parametrize("name", TABLE)
def test_an_iteration_launches_no_more_than_the_table_says(name, monkeypatch):
    # Tensors without memory all look like one that f returns again, and would be copied.
    monkeypatch.setattr(Memory, "own", lambda self, result: result)
    (some, few), (more, many) = counted(name, FEW), counted(name, MANY)
    launches, waits = TABLE[name]
    ours = more - some
    assert ours.total() <= launches * (MANY - FEW), ours
    assert many - few <= waits * (MANY - FEW)
