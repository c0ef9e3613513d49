"""How many kernels of our own an iteration launches on a device, and how often the host waits.

Counted without a device, on tensors that have no values. The table may shrink and must not grow;
docs/benchmarks/launches.md explains it.
"""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import pytest
import torch
from support.host_syncs import HostSyncs, all_accept

import implicitcore as ic
from implicitcore.backends.torch import TORCH
from implicitcore.ode_solvers.adams import PredictedStep
from implicitcore.root_solvers.krylov import krylov_space
from implicitcore.system.memory import Memory

BATCH, N = 3, 8
FEW, MANY = 21, 61
PAGE = Path(__file__).parents[2] / "docs" / "benchmarks" / "launches.md"
TABLE = {  # launches of the torch backend, and waits, an iteration (GMRES: a product)
    "picard": (3.25, 0.25),
    "anderson": (24.2, 0.25),
    "broyden": (17.8, 0.25),
    "gmres": (21.6, 0.25),
}
SOLVERS = {"picard": ic.Picard, "anderson": ic.Anderson, "broyden": ic.Broyden}
STEPS = {  # launches of a step by torch alone, by a backend that fuses all it may, and waits
    "Tsit5": (36, 9, 1),
    "RK4": (7, 4, 0),
    "Adams": (47, 4, 1),
}
STEPPERS = {
    "Tsit5": lambda steps: ic.Tsit5(max_steps=steps),
    "RK4": lambda steps: ic.RK4(dt=1 / steps),
    "Adams": lambda steps: ic.Adams(max_order=3, max_steps=steps),
}


def meta(*shape):
    return torch.zeros(shape, device="meta")


def usual(tensor):
    """What the host reads where nothing happens: residuals that stay as they are."""
    return torch.ones(tensor.shape, dtype=tensor.dtype)


class Fused(ic.Backend):
    """A backend that does each thing that it is asked for in one launch."""

    device_types = ("meta",)
    dtypes = (torch.float32,)
    differentiable = True

    def __init__(self, syncs: HostSyncs) -> None:
        self.syncs = syncs

    def unavailable_reason(self) -> str | None:
        return None

    def _one(self, name, *arguments, **options):
        self.syncs.launches[name] += 1
        self.syncs.aside = True
        found = getattr(TORCH, name)(*arguments, **options)
        if name == "step_control" and arguments[1].clock.target is not None:
            # A kernel says how the next step goes too.
            remaining = arguments[1].clock.target - found.t
            dt = remaining.clamp(-found.size, found.size)
            found = found._replace(ahead=(dt, found.t + dt, dt == remaining))
        self.syncs.aside = False
        return found

    def residual(self, fz, z, out=None):
        return self._one("residual", fz, z, out)

    def inner_products(self, history, row):
        return self._one("inner_products", history, row)

    def axpy_history(self, row, weights, history, scale=1.0, *, out=None):
        return self._one("axpy_history", row, weights, history, scale, out=out)

    def stage_combination(self, z, dt, stages, weights):
        return self._one("stage_combination", z, dt, stages, weights)

    def error_norm(self, error, z, z_next, rtol, atol):
        return self._one("error_norm", error, z, z_next, rtol, atol)

    def adams_step(self, attempt):
        max_order, z, dt, past, (rtol, atol) = attempt
        solver = ic.Adams(max_order=max_order, rtol=rtol, atol=atol)
        return _AdamsStep(self.syncs, solver, z, dt, past)

    def step_control(self, rule, taken):
        return self._one("step_control", rule, taken)


class _AdamsStep:
    """One launch before the evaluation and one behind it."""

    def __init__(self, syncs, *arguments):
        self.syncs = syncs
        self.step = self._one("predict", PredictedStep, TORCH, *arguments)
        self.z = self.step.z

    def correct(self, velocity):
        return self._one("correct", self.step.correct, velocity)

    def _one(self, name, function, *arguments):
        self.syncs.launches[name] += 1
        self.syncs.aside = True
        found = function(*arguments)
        self.syncs.aside = False
        return found


def aside(syncs):
    """A cell whose own launches are not counted."""

    def cell(z, x):
        syncs.aside = True
        value = torch.tanh(z @ x)
        syncs.aside = False
        return value

    return cell


def counted(name, steps):
    """Launches, the cell's own left out, and waits."""
    with HostSyncs(usual) as syncs, torch.no_grad():
        cell, z, x = aside(syncs), meta(BATCH, N), ic.shared(meta(N, N))
        if name == "gmres":
            limit, g = meta(BATCH), meta(BATCH, N)
            krylov_space(TORCH, lambda v: cell(v, x.value), g, limit, steps).minimise()
        else:
            ic.fixed_point(cell, z, x, solver=SOLVERS[name](max_steps=steps), on_failure="ignore")
    return syncs.launches, syncs.counts.total()


def counted_steps(name, steps, *, fused):
    """The same of a trajectory."""
    with HostSyncs(all_accept(BATCH)) as syncs, torch.no_grad():
        cell, z, x = aside(syncs), meta(BATCH, N), ic.shared(meta(N, N))
        solver, times = STEPPERS[name](steps), torch.tensor([0.0, 1.0])
        field, backend = (lambda t, z, x: cell(z, x)), Fused(syncs) if fused else None
        ic.integrate(field, z, x, times=times, solver=solver, backend=backend, on_failure="ignore")
    return syncs.launches, syncs.counts.total()


def own(monkeypatch):
    # Tensors without memory all look like one that f returns again, and would be copied.
    monkeypatch.setattr(Memory, "own", lambda self, result: result)


@pytest.mark.parametrize("name", TABLE)
def test_an_iteration_launches_no_more_than_the_table_says(name, monkeypatch):
    own(monkeypatch)
    (some, few), (more, many) = counted(name, FEW), counted(name, MANY)
    launches, waits = TABLE[name]
    ours = more - some
    assert ours.total() <= launches * (MANY - FEW), ours
    assert many - few <= waits * (MANY - FEW)


@pytest.mark.parametrize("fused", [False, True], ids=["torch", "fused"])
@pytest.mark.parametrize("name", STEPS)
def test_a_step_launches_what_the_page_says(name, fused, monkeypatch):
    own(monkeypatch)
    (some, few), (more, many) = (
        counted_steps(name, steps, fused=fused) for steps in (FEW, FEW + 64)
    )
    torch_alone, with_kernels, waits = STEPS[name]
    launches: Counter[str] = more - some
    assert round(launches.total() / 64) == (with_kernels if fused else torch_alone), launches
    assert many - few <= waits * 64 + 2
    row = f"| `{name}`, a step | {torch_alone} | {with_kernels} |"
    assert row in PAGE.read_text()
