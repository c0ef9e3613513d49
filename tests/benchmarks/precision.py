"""Work against precision: what each library takes for an error of the last state
(``make bench-curves``).

Each problem is integrated forward in float64 at tolerances from 1e-3 to 1e-9, relative and
absolute; the error is the worst sample's, relative to the state, against SciPy's Radau or DOP853 at
1e-12.
"""

from __future__ import annotations

import dataclasses
import importlib
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from importlib.util import find_spec
from typing import Any

import numpy as np
import torch
from scipy.integrate import solve_ivp
from torch import Tensor

import implicitcore as ic
from benchmarks import jax_peers
from benchmarks.curves import COLOURS, Curves, Panel, Picture, Point, Style, Timing
from benchmarks.ode_contenders import TORCHDIFFEQ, TORCHODE
from benchmarks.problem import sample_norm
from benchmarks.timing import keep_memory

STEPS = 200_000
DIFFRAX = "diffrax"
TOLERANCES = tuple(10.0**-k for k in range(3, 10))
EXPLICIT = {"tsit5": ic.Tsit5, "dopri5": ic.Dopri5, "dop853": ic.DOP853}
IMPLICIT = {"esdirk": ic.ESDIRK, "kvaerno5": ic.Kvaerno5, "radau_iia5": ic.RadauIIA5}


@dataclass(frozen=True)
class Task:
    """dz/dt = v(z) from z0 to ``end``, and whether it is stiff.

    Attributes:
        field: the name of v in JAX, where it is there.
        tensors: what that v is made of.
    """

    v: Callable[[Tensor], Tensor]
    z0: Tensor
    end: float
    stiff: bool = False
    field: str = ""
    tensors: Mapping[str, Tensor] = dataclasses.field(default_factory=dict)


def predators(z: Tensor) -> Tensor:
    """Lotka and Volterra's."""
    prey, hunters = z.unbind(-1)
    return torch.stack((1.5 * prey - prey * hunters, prey * hunters - 3 * hunters), -1)


def oscillators(z0: Tensor, end: float, mu: float) -> Task:
    """Van der Pol's."""

    def v(z: Tensor) -> Tensor:
        x, y = z.unbind(-1)
        return torch.stack((y, mu * (1 - x * x) * y - x), -1)

    return Task(v, z0, end, field="oscillator", tensors={"mu": torch.tensor(mu, dtype=z0.dtype)})


def mlp_field(batch: int, n: int) -> Task:
    """A field of n, 2n and n units, for one unit of time."""
    generator = torch.Generator().manual_seed(0)
    inner, outer, z0 = (
        torch.randn(*shape, generator=generator, dtype=torch.float64)
        for shape in ((2 * n, n), (n, 2 * n), (batch, n))
    )
    narrow, wide = (n / 2) ** 0.5, (2 * n) ** 0.5
    return Task(
        lambda z: torch.tanh(z @ inner.T / narrow) @ outer.T / wide,
        z0,
        1.0,
        field="perceptron",
        tensors={"inner": inner / narrow, "outer": outer / wide},
    )


def kinetics(z: Tensor) -> Tensor:
    """Robertson's."""
    a, b, c = z.unbind(-1)
    slow, middle, fast = 0.04 * a, 1e4 * b * c, 3e7 * b * b
    return torch.stack((middle - slow, slow - middle - fast, fast), -1)


def tasks() -> dict[str, Task]:
    """By the name of the sweep."""
    pairs = torch.linspace(0.5, 2.0, 16, dtype=torch.float64)
    several = torch.stack((pairs, pairs.flip(0)), -1)
    return {
        "Lotka-Volterra, 16 samples": Task(predators, several, 10.0, field="predators"),
        "van der Pol, mu = 5, 16 samples": oscillators(several, 10.0, 5.0),
        "MLP field, 64 samples": mlp_field(64, 32),
        "Robertson": Task(
            kinetics,
            torch.tensor([[1.0, 0.0, 0.0]], dtype=torch.float64),
            100.0,
            stiff=True,
            field="kinetics",
        ),
    }


class Counted:
    """v, with its evaluations counted in whole batches."""

    def __init__(self, task: Task) -> None:
        self.v, self.samples, self.evaluations = task.v, len(task.z0), 0.0

    def __call__(self, z: Tensor) -> Tensor:
        self.evaluations += z.numel() / z.shape[-1] / self.samples
        return self.v(z)


Solve = Callable[[float], Tensor]
"""The last state, at a tolerance."""


def contenders(task: Task, v: Counted) -> dict[str, Solve]:
    """By the name of the curve. Where the problem is stiff, those that can do it."""
    names = IMPLICIT if task.stiff else EXPLICIT
    found: dict[str, Solve] = {
        name: partial(_ours, task, v, solver) for name, solver in names.items()
    }
    for method in ("Radau", "LSODA") if task.stiff else ("RK45", "DOP853"):
        found[f"scipy {method}"] = partial(_scipy, task, v, method)
    if find_spec(TORCHDIFFEQ) and not task.stiff:
        for method in ("dopri5", "dopri8"):
            found[f"{TORCHDIFFEQ} {method}"] = partial(_torchdiffeq, task, v, method)
    if find_spec(TORCHODE) and not task.stiff:
        for method in ("dopri5", "tsit5"):
            found[f"{TORCHODE} {method}"] = partial(_torchode, task, v, method)
    if jax_peers.python() and task.field:
        given = task.field, task.z0, task.tensors, task.end, STEPS
        for method in ("kvaerno5",) if task.stiff else ("dopri5", "tsit5", "dopri8"):
            found[f"{DIFFRAX} {method}"] = jax_peers.LastState(method, *given)
    return found


def _ours(task: Task, v: Counted, kind: Any, tol: float) -> Tensor:
    solver = kind(rtol=tol, atol=tol, max_steps=STEPS)
    field = lambda t, z, x: v(z)  # noqa: E731 - as a user writes it
    return ic.integrate(field, task.z0, times=[0.0, task.end], solver=solver).z[-1]


def _scipy(task: Task, v: Counted, method: str, tol: float) -> Tensor:
    """The batch as one state."""
    shape = task.z0.shape

    def field(t: float, z: np.ndarray) -> np.ndarray:
        return v(torch.from_numpy(z).reshape(shape)).flatten().numpy()

    start = task.z0.flatten().numpy()
    found = solve_ivp(field, (0.0, task.end), start, method=method, rtol=tol, atol=tol)
    return torch.from_numpy(found.y[:, -1].copy()).reshape(shape)


def _torchdiffeq(task: Task, v: Counted, method: str, tol: float) -> Tensor:
    odeint = importlib.import_module(TORCHDIFFEQ).odeint
    times = torch.tensor([0.0, task.end], dtype=torch.float64)
    return odeint(lambda t, z: v(z), task.z0, times, rtol=tol, atol=tol, method=method)[-1]


def _torchode(task: Task, v: Counted, method: str, tol: float) -> Tensor:
    library = importlib.import_module(TORCHODE)
    term = library.ODETerm(lambda t, z: v(z))
    control = library.IntegralController(atol=tol, rtol=tol, term=term)
    solver = library.AutoDiffAdjoint(getattr(library, method.capitalize())(term=term), control)
    begin = torch.zeros(len(task.z0), dtype=torch.float64)
    start = library.InitialValueProblem(task.z0, begin, begin + task.end)
    return solver.solve(start).ys[:, -1]


def reference(task: Task) -> Tensor:
    """Far more exact than what is asked for."""
    return _scipy(task, Counted(task), "Radau" if task.stiff else "DOP853", 1e-12)


@torch.no_grad()
def sweep(name: str, timing: Timing) -> Iterator[Point]:
    """Milliseconds of processor time and evaluations, against the error; ``x`` is the tolerance."""
    task = tasks()[name]
    v, exact = Counted(task), reference(task)
    for tol in TOLERANCES[: 1 if timing.quick else None]:
        works: dict[str, Callable[[], object]] = {}
        found: dict[str, dict[str, float]] = {}
        for curve, solve in contenders(task, v).items():
            v.evaluations = 0.0
            elsewhere = isinstance(solve, jax_peers.LastState)
            work = solve.at(tol, tol) if elsewhere else partial(solve, tol)
            z = timing.first(name, curve, work)
            if z is None:
                continue
            error = (sample_norm(z - exact) / sample_norm(exact)).max().item()
            if 0 < error < 1:  # else it failed, and no time is its price
                counts = {} if elsewhere else {"evaluations": v.evaluations}
                found[curve] = {"error": error, **counts}
                works[curve] = work
        for curve, seconds in timing(works, time.process_time).items():
            yield Point(name, curve, tol, {**found[curve], "milliseconds": 1e3 * seconds})


LOOPS = {
    "": ("-", "o"),
    "scipy": ("-.", "D"),
    TORCHDIFFEQ: (":", "^"),
    TORCHODE: ("--", "s"),
    DIFFRAX: ((0, (5, 1, 1, 1, 1, 1)), "v"),
}
HUES: Sequence[Sequence[str]] = (
    ("tsit5", "radau_iia5", "Radau"),
    ("dopri5", "RK45", "kvaerno5"),
    ("dop853", "DOP853", "dopri8", "LSODA", "esdirk"),
)
"""Methods of one colour: alike, or of about the same order."""


def style(curve: str) -> Style:
    """Colour by method, line by library."""
    library, _, method = curve.rpartition(" ")
    hue = next(i for i, methods in enumerate(HUES) if method in methods)
    return Style(COLOURS[hue], *LOOPS[library])


PICTURE = Picture(
    [
        Panel(name, name, "error of the last state", y, of, x="error")
        for y, of in (
            ("milliseconds of the processor", "milliseconds"),
            ("evaluations", "evaluations"),
        )
        for name in tasks()
    ],
    4,
    style,
)
CURVES = Curves(
    "precision",
    __doc__,
    {name: partial(sweep, name) for name in tasks()},
    PICTURE,
    ("implicitcore", "scipy", "torch", TORCHDIFFEQ, TORCHODE, DIFFRAX),
)
main = CURVES.main

if __name__ == "__main__":
    keep_memory("benchmarks.precision")
    main()
