"""The steps of an integration, and whether stability or accuracy chose them."""

from __future__ import annotations

from dataclasses import dataclass, field, fields, is_dataclass, replace
from typing import Any

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from implicitcore import (
    ESDIRK,
    ImplicitCoreError,
    ODESolver,
    SolveResult,
    Status,
    SteadyState,
    Unrolled,
)
from implicitcore.extend import Adaptive, ImplicitMethod, StepwiseODESolver
from implicitcore_lab.diagnosis.record import Record
from implicitcore_lab.diagnosis.start import steepness
from implicitcore_lab.diagnosis.subject import Subject, rows, share

MOST = 2000
"""So many steps are watched."""

MANY, GAIN = 20, 3.0
"""A field is stiff where an explicit method takes at least ``MANY`` steps, ``GAIN`` times those of
an implicit one, at the bound of its stability."""

STABLE = 0.8
"""Step times spectral radius, from which on stability may be what bounds the steps."""


@dataclass
class _Watch:
    """The accepted states of an integration, until it stands still."""

    tol: float
    times: list[Tensor] = field(default_factory=list)
    states: list[Tensor] = field(default_factory=list)

    def __call__(self, t: Tensor, z: Tensor, velocity: Tensor) -> Tensor:
        self.times.append(t.clone())
        self.states.append(z.clone())
        moving = velocity.norm(dim=1) > self.tol * (z + velocity).norm(dim=1)
        return moving & (len(self.times) <= MOST)


@torch.no_grad()
def check_steps(subject: Subject, own: SolveResult, record: Record) -> None:
    """Watch the steps of a layer that integrates; find a stiff field."""
    solver = subject.layer.solver
    stops = isinstance(solver, SteadyState)
    method = solver.ode_solver if isinstance(solver, SteadyState) else solver
    if not isinstance(method, StepwiseODESolver):
        return
    end = torch.inf if stops else subject.layer.horizon
    tol = solver.tol if isinstance(solver, SteadyState) else -1.0
    limit = solver.max_steps if isinstance(solver, SteadyState) else None
    watch = _run(subject, _limited(method, limit), end, tol)
    times, states = torch.stack(watch.times), torch.stack(watch.states)
    sizes = times.diff(dim=0).abs()
    record.curves |= {"step_times": times[:-1], "step_sizes": sizes, "path": states[:, 0]}
    taken = (sizes > 0).sum(0)
    record.figures["ode_steps"] = taken.float().mean().item()
    if not stops:
        record.curves["steps"] = taken
    failed = ~own.converged & (own.status != Status.NON_FINITE)
    stiff = _stiffness(subject, (states, sizes), record)
    slow = bool(failed.any()) or taken.float().mean() >= MANY
    if stiff and slow and not isinstance(method, ImplicitMethod):
        _compare(subject, method, (end, tol), (taken, failed, stiff), record)
    if not stops and bool(failed.any()) and not record.found("stiff field"):
        _tell_out_of_steps(method, failed, record)


def _run(subject: Subject, method: ODESolver, end: float, tol: float) -> _Watch:
    state = subject.start()
    system, watch = subject.system(state), _Watch(tol)
    z0 = system.packing.pack(state)
    dtype = torch.float64 if z0.dtype == torch.float64 else torch.float32
    method.solve(system, z0, torch.tensor([0.0, end], dtype=dtype, device=z0.device), watch)
    return watch


def _limited(method: ODESolver, steps: int | None) -> ODESolver:
    """The method with the steps that its layer allows it, or those that are watched."""
    if not is_dataclass(method) or "max_steps" not in {it.name for it in fields(method)}:
        return method
    return replace(method, max_steps=min(steps or method.max_steps, MOST))  # pyright: ignore


def _stiffness(subject: Subject, way: tuple[Tensor, Tensor], record: Record) -> float | None:
    """The median over the way of step size times the spectral radius of dv/dz.

    None where the samples are coupled.
    """
    if subject.layer.coupled or not len(way[1]):
        return None
    states, sizes = way
    packing = subject.packing(subject.start())
    products = []
    for index in torch.linspace(0, len(sizes) - 1, min(len(sizes), 6)).long().tolist():
        state = packing.unpack(states[index])
        size, radius = sizes[index], steepness(subject, state)
        products.append((size * radius)[(size > 0) & radius.isfinite()])
    found = torch.cat(products)
    if not found.numel():
        return None
    record.figures["step_times_radius"] = found.median().item()
    return found.median().item()


def _compare(
    subject: Subject,
    method: ODESolver,
    span: tuple[float, float],
    counts: tuple[Tensor, Tensor, float],
    record: Record,
) -> None:
    """Integrate by an implicit method at the same tolerances: is it that much shorter?"""
    taken, failed, product = counts
    if product < STABLE:
        return
    rtol, atol = getattr(method, "rtol", 1e-4), getattr(method, "atol", 1e-4)
    watch = _run(subject, ESDIRK(rtol=rtol, atol=atol, max_steps=MOST), *span)
    times = torch.stack(watch.times)
    implicit = (times.diff(dim=0).abs() > 0).sum(0).float().mean().item()
    record.figures["esdirk_steps"] = implicit
    explicit = taken.float().mean().item()
    adaptive = isinstance(getattr(method, "step_size", None), Adaptive)
    if adaptive and explicit < GAIN * implicit:
        return
    outcome = f"; {share(failed)} did not reach the end" if bool(failed.any()) else ""
    record.find(
        "stiff field",
        f"{type(method).__name__} takes {explicit:.0f} steps whose size times the spectral radius "
        f"of dv/dz is {product:.2g}: stability bounds them and not accuracy; ESDIRK takes "
        f"{implicit:.0f}{outcome}",
        "Take an implicit method (esdirk), or a root solver where an equilibrium is sought",
    )


def _tell_out_of_steps(method: ODESolver, failed: Tensor, record: Record) -> None:
    record.find(
        "out of steps",
        f"{share(failed)} did not reach the last time with {method}",
        "Raise max_steps or the tolerance",
    )


@torch.no_grad()
def record_path(subject: Subject, record: Record) -> None:
    """The iterates of the first sample, where a stepwise root solver gives them."""
    if "path" in record.curves or subject.layer.coupled:
        return
    steps = tuple(range(1, 41))
    one = subject.rows(slice(1)).changed(gradient=Unrolled(iterates=steps))
    try:
        found = one.solve()
    except ImplicitCoreError:  # no stepwise solver: there is no path to draw
        return
    iterates: Any = getattr(found, "iterates", None)
    if iterates is not None:
        packing = one.packing(one.start())
        points = [
            packing.pack(pytree.tree_map(lambda leaf, k=k: leaf[k], iterates)) for k in range(40)
        ]
        record.curves["path"] = torch.cat([packing.pack(rows(one.start(), slice(1))), *points])
