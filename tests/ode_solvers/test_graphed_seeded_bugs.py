"""The comparison of steps by graphs with the loop finds what it is for: each change is noticed."""

from __future__ import annotations

import inspect
import textwrap
from typing import Any

import pytest
import torch
from support.torch_device import TorchDevice

import implicitcore as ic
from implicitcore.ode_solvers.graphed_grid import GraphedGrid
from implicitcore.ode_solvers.graphed_steps import GraphedSteps
from implicitcore.ode_solvers.lockstep import Lockstep
from implicitcore.ode_solvers.recorded_chunk import OutputMemory, RecordedChunk
from implicitcore.ode_solvers.watched_field import LENGTH
from implicitcore.system.kept_graphs import SolveGraphs
from implicitcore.testing import emulated_graphs

LOOP, GRAPHS = TorchDevice(), TorchDevice(cuda_graphs=True)
TIMES = [0.0, 0.2, 0.4, 1.0, 1.5]
X = torch.tensor([[0.5], [2.0], [7.0], [-3.0]], dtype=torch.float64)
Z0 = torch.tensor([[1.0, 0.2], [0.5, 1.0], [2.0, -1.0], [-0.4, 1.0]], dtype=torch.float64)


def turning(t, z, x):
    one, other = z.unbind(1)
    return torch.stack((x[:, 0].abs() * (other - one), -(one * other.square())), 1) + t


def failing(t, z, x):
    """Too fast for the least step in the end, and out of its domain, soon for some samples."""
    one = torch.sin(40 * t[:, 0].square()) * x[:, 0]
    return torch.stack((one, -4 * (z[:, 1] + x[:, 0].abs()).sqrt()), 1)


TO_EACH: dict[str, Any] = {"hit_times": True, "times": [0.0, 0.1, 0.3, 0.52, 1.5]}
RUNS: dict[str, tuple[Any, Any, dict[str, Any]]] = {
    "adaptive": (turning, ic.Bosh3(rtol=1e-3, first_step=0.5, max_steps=200), {}),
    "to each time": (turning, ic.Bosh3(first_step=0.5, max_steps=60), TO_EACH),
    "limited": (turning, ic.Bosh3(rtol=1e-4, max_steps=12), {"times": [0.0, 0.1, 0.2, 0.3, 1.5]}),
    "failing": (
        failing,
        ic.Bosh3(first_step=0.05, min_step=0.03, max_steps=40),
        {"times": [0.0, 0.5, 1.0]},
    ),
    "fixed": (turning, ic.RK4(dt=0.05), {"times": [0.0, 0.22, 0.43, 1.5]}),
    "fixed, to each time": (
        turning,
        ic.RK4(dt=0.05),
        {"hit_times": True, "times": [0.0, 0.45, 1.5]},
    ),
}

# What is changed: the run that tells, the method, what it says, and what it says then.
BUGS = {
    # wrong masks
    "who refuses a step takes it": (
        "to each time",
        *(RecordedChunk._keep, "column(follows)", "column(follows | ~resting)"),
    ),
    "and its time": (
        "to each time",
        *(RecordedChunk._step, "torch.where(accept, attempt.end, samples.t)", "attempt.end"),
    ),
    "and its first stage": (
        "to each time",
        *(RecordedChunk._keep, "chosen(follows | resting,", "chosen(follows | ~follows,"),
    ),
    "who is done keeps an old velocity": (
        "limited",
        *(RecordedChunk._keep, "chosen(follows | resting,", "chosen(~resting & ~follows,"),
    ),
    "who is done is active": (
        "to each time",
        *(RecordedChunk._arrive, "samples.active & ~samples.done", "samples.active"),
    ),
    "who gives up is active": ("failing", RecordedChunk._step, "active & ~lost", "active"),
    "who gives up is said to move": (
        "failing",
        *(RecordedChunk._step, "samples.moving & ~lost", "samples.moving"),
    ),
    "who is not finite is said to be": (
        "failing",
        *(RecordedChunk._step, "samples.finite & ~undefined", "samples.finite"),
    ),
    "a refused step passes times": (
        "adaptive",
        *(RecordedChunk._pass, "accept & self.stops.later", "self.stops.later"),
    ),
    "a refused step arrives": (
        "to each time",
        *(RecordedChunk._step, "accept & attempt.arrives, before", "attempt.arrives, before"),
    ),
    "a short step decides the next": (
        "to each time",
        *(RecordedChunk._arrive, "torch.maximum(samples.size, before)", "samples.size"),
    ),
    "the time after is the first that is reached": (
        "to each time",
        *(RecordedChunk._arrive, "came.next.unsqueeze", "(came.next + 1).unsqueeze"),
    ),
    # a step too many or too few
    "a step is counted for who is done": (
        "to each time",
        *(RecordedChunk._step, "samples.take()", "samples.whole = True; samples.take()"),
    ),
    "the limit of steps is not seen": (
        "limited",
        *(GraphedSteps._replay, "taken + LENGTH <= most", "taken < most"),
    ),
    "a step over an output time": (
        "fixed",
        *(Lockstep.free, "- (not visit.arrives)", ""),
    ),
    "a step is moved twice": (
        "fixed",
        *(Lockstep.moved, "self.chooser.index + steps", "self.chooser.index + steps - 1"),
    ),
    "evaluations of one chunk": (
        "fixed",
        *(GraphedGrid.go_on, "steps // LENGTH * self.evaluations", "self.evaluations"),
    ),
    # flags and slots
    "the flag is read too late": ("to each time", GraphedSteps._replay, "int(far > 0)", "3"),
    "the flag is not read": (
        "to each time",
        GraphedSteps._replay,
        "going, late = active > 0,",
        "late =",
    ),
    "a stale slot": (
        "limited",
        *(GraphedSteps._look, "found.pieces.clone()", "found.pieces"),
    ),
    "stale clocks": ("limited", GraphedSteps._look, "found.clocks.clone()", "found.clocks"),
    "stale places": ("limited", GraphedSteps._look, "found.passed.clone()", "found.passed"),
    "the last look is left out": ("limited", GraphedSteps._replay, "look()", "pass"),
    "each step in the first slot": (
        "limited",
        OutputMemory.keep,
        "self.pieces[place]",
        "self.pieces[0]",
    ),
    "the samples of the solve before": (
        "limited",
        GraphedSteps._fill,
        "kept.copy_(new)",
        "self.pieces or kept.copy_(new)",
    ),
    "the samples of the warm-up": ("limited", GraphedSteps.record, "self._fill()", "pass"),
    "the input of the solve before": (
        "limited",
        *(SolveGraphs.load, "kept.copy_(new)", "self.pieces or kept.copy_(new)"),
    ),
    "equal steps in the memory of the graph": (
        "fixed, to each time",
        GraphedGrid.go_on,
        "self.z.clone()",
        "self.z",
    ),
    "the times of the first chunk": (
        "fixed",
        *(GraphedGrid.go_on, "grid.t[place : place + LENGTH]", "grid.t[index : index + LENGTH]"),
    ),
    "stops of the start": ("to each time", GraphedSteps._arrived, "(stops >= came) & ", ""),
}


@pytest.fixture(autouse=True)
def graphs(monkeypatch):
    """What records graphs; it counts them, and what is launched of them."""
    return emulated_graphs.emulated(monkeypatch)


def changed(method, old, new):
    """The function with another text."""
    source = textwrap.dedent(inspect.getsource(method))
    assert old in source, "the seeded bug is no longer in the source"
    found: dict[str, object] = {}
    text = f"from __future__ import annotations\n{source.replace(old, new)}"
    exec(compile(text, "<seeded>", "exec"), method.__globals__, found)  # noqa: S102
    return found[method.__name__]


def owner_of(method):
    name = method.__qualname__.rpartition(".")[0]
    return getattr(inspect.getmodule(method), name)


@torch.no_grad()
def differences(*names):
    """Those of the runs in which a solve by graphs is not that by the loop."""
    for name in names:
        given_field, solver, options = RUNS[name]

        def field(t, z, x, own=given_field):  # another function in each run
            return own(t, z, x)

        found = []
        for scale in (1.0, 1.0, 0.7):
            given: Any = scale * Z0, scale * X
            options = {"times": TIMES} | options
            found.append(
                [
                    ic.integrate(
                        field,
                        *given,
                        solver=solver,
                        backend=backend,
                        on_failure="ignore",
                        **options,
                    )
                    for backend in (GRAPHS, LOOP)
                ]
            )
        if not all(alike(name, *pair) for pair in found[1:]):  # after all of them
            yield name


def alike(name, found, expected):
    """To the bit, and with no evaluations but those of a chunk or two behind the end."""
    same = torch.equal(found.z.nan_to_num(), expected.z.nan_to_num())
    same = same and torch.equal(found.status, expected.status)
    extra = found.evaluations - expected.evaluations
    most = 0 if name.startswith("fixed") else 2 * LENGTH * 3 - 1
    return same and torch.equal(found.steps, expected.steps) and 0 <= extra <= most


def test_without_a_bug_there_is_no_difference(graphs):
    assert list(differences(*RUNS)) == []
    assert graphs.records == len(RUNS) and graphs.replays > 12


@pytest.mark.parametrize("bug", BUGS)
def test_a_bug_is_found(monkeypatch, bug):
    run, method, old, new = BUGS[bug]
    monkeypatch.setattr(owner_of(method), method.__name__, changed(method, old, new))
    try:
        found = next(differences(run), None)
    except (
        ic.InputError,
        RuntimeError,
        IndexError,
    ) as error:  # no warning, which would say: not recorded
        found = error
    assert found is not None
