"""Trajectories as they are met in practice: many output times, equal steps, small states, stiff
fields (``make bench-curves``)."""

from __future__ import annotations

import importlib
import time
from collections.abc import Callable, Iterator
from functools import partial
from importlib.util import find_spec
from typing import Any

import numpy as np
import torch
from scipy.integrate import solve_ivp
from torch import Tensor

import implicitcore as ic
from benchmarks import jax_peers
from benchmarks.curves import Curves, Point, Timing
from benchmarks.ode_contenders import TORCHDIFFEQ
from benchmarks.ode_problems import perceptron
from benchmarks.precision import (
    DIFFRAX,
    STEPS,
    Counted,
    Task,
    kinetics,
    mlp_field,
    oscillators,
    predators,
)
from benchmarks.root_contenders import CPP, runs
from benchmarks.timing import keep_memory

Work = Callable[[], Tensor | tuple[Tensor, ...]]
GRADIENTS = {"unrolled": ic.Unrolled, "checkpointed": ic.Checkpointed, "adjoint": ic.Adjoint}
FIXED = {"euler": ic.Euler, "rk4": ic.RK4}
STIFF = {"esdirk": ic.ESDIRK, "kvaerno5": ic.Kvaerno5, "radau_iia5": ic.RadauIIA5}
DOUBLE = torch.float64


def measured(
    name: str, works: dict[str, Work], v: Counted, exact: tuple[Tensor, ...], timing: Timing
) -> Iterator[Point]:
    """Milliseconds of the processor, evaluations where they can be counted, and the largest
    relative error of what is returned."""
    found = {}
    for curve, work in works.items():
        v.evaluations = 0.0
        errors = [
            ((a.double() - b).norm() / b.norm()).item()
            for a, b in zip(_several(work()), exact, strict=True)
        ]
        counts = {"evaluations": v.evaluations} if v.evaluations else {}
        found[curve] = {**counts, "error": max(errors)}
    for curve, seconds in timing(works, time.process_time).items():
        yield Point(name, curve, 0.0, {"milliseconds": 1e3 * seconds, **found[curve]})


def _several(found: Tensor | tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    return (found,) if isinstance(found, Tensor) else found


def integrated(v: Counted, z0: Tensor, times: Tensor, solver: Any, **options: Any) -> Tensor:
    """By ours, the states at the times."""
    field = lambda t, z, x: v(z)  # noqa: E731 - as a user writes it
    return ic.integrate(field, z0, times=times, solver=solver, **options).z


def by_scipy(
    v: Counted, z0: Tensor, times: Tensor, method: str, rtol: float, atol: float
) -> Tensor:
    """Each sample by itself."""

    def field(t: float, z: np.ndarray) -> np.ndarray:
        return v(torch.from_numpy(z)[None])[0].numpy()

    span = times[0].item(), times[-1].item()
    at = {"method": method, "rtol": rtol, "atol": atol, "t_eval": times.numpy()}
    found = [solve_ivp(field, span, start.numpy(), **at).y.T for start in z0]
    return torch.from_numpy(np.stack(found, 1))


@torch.no_grad()
def output_times(count: int, name: str, timing: Timing) -> Iterator[Point]:
    """Lotka and Volterra's field at 1e-3."""
    z0, times = torch.tensor([[1.0, 1.0]], dtype=DOUBLE), torch.linspace(0, 10, count, dtype=DOUBLE)
    v = Counted(Task(predators, z0, 10.0))
    tols = dict[str, Any](rtol=1e-3, atol=1e-3)
    works: dict[str, Work] = {
        method: lambda solver=solver: (integrated(v, z0, times, solver),)
        for method, solver in {"dopri5": ic.Dopri5(**tols), "tsit5": ic.Tsit5(**tols)}.items()
    }
    if find_spec(TORCHDIFFEQ):
        odeint = importlib.import_module(TORCHDIFFEQ).odeint
        solve = partial(odeint, lambda t, z: v(z), z0, times, method="dopri5", **tols)
        works[f"{TORCHDIFFEQ}, dopri5"] = lambda: (solve(),)
    works["scipy, RK45"] = lambda: (by_scipy(v, z0, times, "RK45", 1e-3, 1e-3),)
    yield from measured(name, works, v, (by_scipy(v, z0, times, "DOP853", 1e-12, 1e-12),), timing)


def latent(name: str, timing: Timing) -> Iterator[Point]:
    """The gradient of the sum of squares at 100 times, of a field with 20 - 50 - 20 units."""
    f = perceptron(20, 50, 1.0)
    generator = torch.Generator().manual_seed(1)
    z0 = torch.randn(4 if timing.quick else 64, 20, generator=generator).requires_grad_()
    v = Counted(Task(f, z0, 1.0))
    times, tols = torch.linspace(0, 1, 100), dict[str, Any](rtol=1e-3, atol=1e-3)

    def gradients(solve: Callable[[], Tensor]) -> tuple[Tensor, ...]:
        return torch.autograd.grad(solve().square().sum(), [z0, *f.parameters()])

    works: dict[str, Work] = {}
    for way, kind in GRADIENTS.items():
        solver = partial(integrated, v, z0, times, ic.Dopri5(**tols), gradient=kind())
        works[f"dopri5, {way}"] = partial(gradients, solver)
    if find_spec(TORCHDIFFEQ):
        library = importlib.import_module(TORCHDIFFEQ)
        for way, odeint, more in (
            ("unrolled", library.odeint, {}),
            ("adjoint", library.odeint_adjoint, {"adjoint_params": tuple(f.parameters())}),
        ):
            solve = partial(odeint, lambda t, z: v(z), z0, times, method="dopri5", **tols, **more)
            works[f"{TORCHDIFFEQ}, dopri5, {way}"] = partial(gradients, solve)
    yield from measured(name, works, v, _exact_gradients(f, z0, times), timing)


def _exact_gradients(f: torch.nn.Module, z0: Tensor, times: Tensor) -> tuple[Tensor, ...]:
    """In float64 at 1e-10, of the same problem."""
    exact = perceptron(20, 50, 1.0).double()
    exact.load_state_dict(f.state_dict())
    start = z0.detach().double().requires_grad_()
    solver = ic.Tsit5(rtol=1e-10, atol=1e-10, max_steps=STEPS)
    v = Counted(Task(exact, start, 1.0))
    z = integrated(v, start, times.double(), solver, gradient=ic.Unrolled())
    return torch.autograd.grad(z.square().sum(), [start, *exact.parameters()])


@torch.no_grad()
def equal_steps(batch: int, n: int, name: str, timing: Timing) -> Iterator[Point]:
    """100 steps of an MLP field, to the last state; the loop by hand is what they are held
    against."""
    f = perceptron(n, 2 * n, 1.0).requires_grad_(False)
    z0 = torch.randn(batch, n, generator=torch.Generator().manual_seed(1))
    v, times, steps = Counted(Task(f, z0, 1.0)), torch.tensor([0.0, 1.0]), 100
    works: dict[str, Work] = {}
    for method, kind in FIXED.items():
        solver = kind(dt=1 / steps, max_steps=steps + 1)
        works[method] = lambda solver=solver: integrated(v, z0, times, solver)[-1]
        works[f"loop by hand, {method}"] = partial(_by_hand, v, z0, method, steps)
        if find_spec(TORCHDIFFEQ):
            odeint = importlib.import_module(TORCHDIFFEQ).odeint
            size = {"method": method, "options": {"step_size": 1 / steps}}
            solve = partial(odeint, lambda t, z: v(z), z0, times, **size)
            works[f"{TORCHDIFFEQ}, {method}"] = lambda solve=solve: (solve()[-1],)
    solver = ic.Tsit5(rtol=1e-10, atol=1e-10, max_steps=STEPS)
    exact = Counted(Task(f.double(), z0, 1.0))
    last = integrated(exact, z0.double(), times.double(), solver)[-1]
    f.float()
    yield from measured(name, works, v, (last,), timing)


def _by_hand(v: Counted, z: Tensor, method: str, steps: int) -> tuple[Tensor]:
    dt = 1 / steps
    for _ in range(steps):
        k = v(z)
        if method == "rk4":
            k2 = v(z + dt / 2 * k)
            k3 = v(z + dt / 2 * k2)
            k = (k + 2 * k2 + 2 * k3 + v(z + dt * k3)) / 6
        z = z + dt * k
    return (z,)


@torch.no_grad()
def small(task: Task, name: str, timing: Timing) -> Iterator[Point]:
    """At 1e-5, to the last state: nothing but calls counts. Compiled code shows no evaluations."""
    v, times = Counted(task), torch.tensor([0.0, task.end], dtype=DOUBLE)
    solver = ic.Tsit5(rtol=1e-5, atol=1e-5, max_steps=STEPS)

    def ours(**options: Any) -> Work:
        return lambda: (integrated(v, task.z0, times, solver, **options)[-1],)

    works = {"tsit5": ours(), **({f"tsit5, {CPP}": ours(backend=CPP)} if runs(CPP) else {})}
    if not timing.quick:
        layer = ic.build("neural_ode", lambda z, x: task.v(z), ode_solver=solver, horizon=task.end)
        compiled = ic.compile(layer)
        works["tsit5, compiled"] = lambda: (compiled(task.z0),)
    if find_spec(TORCHDIFFEQ):
        odeint = importlib.import_module(TORCHDIFFEQ).odeint
        tols = {"method": "dopri5", "rtol": 1e-5, "atol": 1e-5}
        solve = partial(odeint, lambda t, z: v(z), task.z0, times, **tols)
        works[f"{TORCHDIFFEQ}, dopri5"] = lambda: (solve()[-1],)
    works |= by_diffrax(task, "tsit5", 1e-5, 1e-5)
    yield from measured(
        name, works, v, (by_scipy(v, task.z0, times, "DOP853", 1e-12, 1e-12)[-1],), timing
    )


def by_diffrax(task: Task, method: str, rtol: float, atol: float) -> dict[str, Work]:
    """Nothing without its environment."""
    if jax_peers.python() is None:
        return {}
    last = jax_peers.LastState(method, task.field, task.z0, task.tensors, task.end, STEPS)
    return {f"{DIFFRAX}, {method}": last.at(rtol, atol)}


@torch.no_grad()
def stiff(task: Task, name: str, timing: Timing) -> Iterator[Point]:
    """At 1e-4 relative and 1e-8 absolute, by implicit methods."""
    v, times = Counted(task), torch.tensor([0.0, task.end], dtype=DOUBLE)
    works: dict[str, Work] = {}
    for method, kind in STIFF.items():
        solver = kind(rtol=1e-4, atol=1e-8, max_steps=STEPS)
        works[method] = lambda solver=solver: (integrated(v, task.z0, times, solver)[-1],)
    works["scipy, Radau, one by one"] = lambda: (
        by_scipy(v, task.z0, times, "Radau", 1e-4, 1e-8)[-1],
    )
    works |= by_diffrax(task, "kvaerno5", 1e-4, 1e-8)
    exact = by_scipy(v, task.z0, times, "LSODA", 1e-10, 1e-12)[-1]
    yield from measured(name, works, v, (exact,), timing)


def _many(timing: Timing) -> Task:
    """Van der Pol's, mu = 100, from 200 starts."""
    starts = torch.linspace(1.5, 2.5, 2 if timing.quick else 200, dtype=DOUBLE)
    return oscillators(torch.stack((starts, torch.zeros_like(starts)), -1), 100.0, 100.0)


def _pairs(timing: Timing) -> Task:
    starts = torch.linspace(0.5, 2.0, 2 if timing.quick else 100, dtype=DOUBLE)
    return Task(predators, torch.stack((starts, starts.flip(0)), -1), 10.0, field="predators")


ROBERTSON = Task(kinetics, torch.tensor([[1.0, 0.0, 0.0]], dtype=DOUBLE), 100.0, field="kinetics")
MLP, LOTKA = "MLP field, 1 x 2, at 1e-5", "100 Lotka-Volterras, at 1e-5"
TIMES = "Lotka-Volterra, {} output times"
LATENT, POLS = "latent ODE, 64 x 20, 100 output times, gradient", "200 van der Pols, mu = 100"
CASES: dict[str, Callable[[Timing], Iterator[Point]]] = {
    **{TIMES.format(k): partial(output_times, k, TIMES.format(k)) for k in (2, 100, 1000)},
    LATENT: partial(latent, LATENT),
    "100 equal steps, 1 x 2": partial(equal_steps, 1, 2, "100 equal steps, 1 x 2"),
    "100 equal steps, 256 x 64": partial(equal_steps, 256, 64, "100 equal steps, 256 x 64"),
    MLP: partial(small, mlp_field(1, 2), MLP),
    LOTKA: lambda timing: small(_pairs(timing), LOTKA, timing),
    "Robertson": partial(stiff, ROBERTSON, "Robertson"),
    POLS: lambda timing: stiff(_many(timing), POLS, timing),
}
LIBRARIES = ("implicitcore", "scipy", "torch", TORCHDIFFEQ, DIFFRAX)
CURVES = Curves("ode_cases", __doc__, CASES, None, LIBRARIES, threads=1)
main = CURVES.main

if __name__ == "__main__":
    keep_memory("benchmarks.ode_cases")
    main()
