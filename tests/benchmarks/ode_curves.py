"""What a trajectory costs, against the batch, the size of a sample, the number of output times and
the length (``make bench-curves``).

The field is W2 tanh(W1 z + b), as on the page of trajectories; each is integrated forward, without
a gradient, to 1e-5.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import partial
from importlib.util import find_spec

import torch
from torch import Tensor

import implicitcore as ic
from benchmarks.curves import COLOURS, Curves, Panel, Picture, Point, Style, Timing
from benchmarks.ode_contenders import TORCHDIFFEQ, TORCHODE
from benchmarks.ode_problems import Perceptron, perceptron
from benchmarks.timing import keep_memory

TOL, STEPS = 1e-5, 100_000
STYLES = {
    "tsit5": Style(COLOURS[0]),
    "dopri5": Style(COLOURS[1]),
    "rk4, 50 steps a unit of time": Style(COLOURS[2]),
    f"{TORCHDIFFEQ} dopri5": Style(COLOURS[1], ":", "^"),
    f"{TORCHDIFFEQ} rk4, 50 steps a unit of time": Style(COLOURS[2], ":", "^"),
    f"{TORCHODE} tsit5": Style(COLOURS[0], "--", "s"),
}
TSIT5, DOPRI5, RK4, THEIR_DOPRI5, THEIR_RK4, THEIR_TSIT5 = STYLES
DENSITY = 50
"""Equal steps in a unit of time."""


@dataclass(frozen=True)
class Task:
    """Integrate over ``[0, length]``, and return the states at equally spaced times."""

    batch: int = 32
    n: int = 32
    times: int = 2
    length: float = 1.0

    @property
    def at(self) -> Tensor:
        return torch.linspace(0.0, self.length, self.times)


SWEEPS: dict[str, tuple[float, ...]] = {
    "batch": (1, 8, 64, 512, 4096),
    "n": (2, 8, 32, 128, 512, 2048),
    "times": (2, 10, 100, 1000),
    "length": (0.1, 1.0, 10.0, 100.0),
}


class Field(torch.nn.Module):
    """The field as a function of t and z, which counts its evaluations.

    torchode has one call for the batch too.
    """

    def __init__(self, f: Perceptron) -> None:
        super().__init__()
        self.f, self.evaluations = f, 0

    def forward(self, t: Tensor, z: Tensor) -> Tensor:
        self.evaluations += 1
        return self.f(z)


def integrations(task: Task, field: Field, z0: Tensor) -> dict[str, Callable[[], object]]:
    """Every solver on it, by the name of its curve."""
    times, adaptive = task.at, {"rtol": TOL, "atol": TOL, "max_steps": STEPS}
    steps = max(1, round(DENSITY * task.length))
    solvers = {
        TSIT5: ic.Tsit5(**adaptive),
        DOPRI5: ic.Dopri5(**adaptive),
        RK4: ic.RK4(dt=task.length / steps, max_steps=STEPS),
    }
    found: dict[str, Callable[[], object]] = {
        name: partial(_ours, field, z0, times, solver) for name, solver in solvers.items()
    }
    if find_spec(TORCHDIFFEQ):
        odeint = importlib.import_module(TORCHDIFFEQ).odeint
        size = {"method": "rk4", "options": {"step_size": task.length / steps}}
        found[THEIR_DOPRI5] = partial(odeint, field, z0, times, rtol=TOL, atol=TOL, method="dopri5")
        found[THEIR_RK4] = partial(odeint, field, z0, times, **size)
    if find_spec(TORCHODE):
        found[THEIR_TSIT5] = _torchode(task, field, z0)
    return found


def _ours(field: Field, z0: Tensor, times: Tensor, solver: ic.ODESolver) -> Tensor:
    return ic.integrate(lambda t, z, x: field(t, z), z0, times=times, solver=solver).z


def _torchode(task: Task, field: Field, z0: Tensor) -> Callable[[], object]:
    library = importlib.import_module(TORCHODE)
    term = library.ODETerm(field)
    control = library.IntegralController(atol=TOL, rtol=TOL, term=term)
    solver = library.AutoDiffAdjoint(library.Tsit5(term=term), control)
    times = task.at.expand(len(z0), -1)
    start = library.InitialValueProblem(z0, times[:, 0], times[:, -1], times)
    return lambda: solver.solve(start)


def sweep(name: str, timing: Timing) -> Iterator[Point]:
    """Milliseconds and evaluations."""
    values = SWEEPS[name][: 2 if timing.quick else None]
    for value in values:
        task = replace(Task(), **{name: value if name == "length" else int(value)})
        field = Field(perceptron(task.n, 2 * task.n, 1.5)).requires_grad_(False)
        z0 = torch.randn(task.batch, task.n, generator=torch.Generator().manual_seed(1))
        works, spent = {}, {}
        for curve, work in integrations(task, field, z0).items():
            field.evaluations = 0
            if timing.first(name, curve, work) is not None:
                spent[curve], works[curve] = field.evaluations, work
        for curve, seconds in timing(works).items():
            found = {"milliseconds": 1e3 * seconds, "evaluations": spent[curve]}
            yield Point(name, curve, value, found)


LABELS = {
    "batch": "samples, of 32 entries",
    "n": "entries of a sample, batch 32",
    "times": "output times in a unit of time",
    "length": "length of the span",
}
PICTURE = Picture(
    [
        Panel(name, "", label, y, y)
        for y in ("milliseconds", "evaluations")
        for name, label in LABELS.items()
    ],
    4,
    STYLES.__getitem__,
)
CURVES = Curves(
    "ode_curves",
    __doc__,
    {name: partial(sweep, name) for name in SWEEPS},
    PICTURE,
    ("implicitcore", "torch", TORCHDIFFEQ, TORCHODE),
)
main = CURVES.main

if __name__ == "__main__":
    keep_memory("benchmarks.ode_curves")
    main()
