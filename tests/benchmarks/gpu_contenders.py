"""The contenders on a GPU: each solver with each backend that can run, TorchDEQ and plain loops;
all with a compiled cell besides."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from importlib.util import find_spec

import torch

import implicitcore as ic
from benchmarks import plain
from benchmarks.harness import OURS
from benchmarks.problem import Contender, Outcome, Prepare, Problem
from benchmarks.root_contenders import METHODS, PLAIN, TORCHDEQ, torchdeq
from implicitcore.registry.registry import REGISTRY

COMPILED = "compiled cell"


def contenders(problem: Problem, quick: bool) -> list[Contender]:
    """All that can run on the problem's device; the backward solve uses the forward method.
    Compiling takes minutes: no quick run does."""
    found = []
    for method in METHODS:
        steps = {
            (OURS, name): partial(_implicitcore, backend, method)
            for name, backend in backends(problem.z0.device.type).items()
        }
        if hasattr(plain, method):
            steps[PLAIN, "torch"] = partial(plain.implicit, getattr(plain, method))
        if find_spec(TORCHDEQ):
            steps[TORCHDEQ, "torch"] = partial(torchdeq, method)
        for (library, backend), prepare in steps.items():
            found.append(Contender(library, f"{method}, {backend}", f"implicit {method}", prepare))
            if not quick:
                found.append(
                    _compiled(
                        library, f"{method}, {backend}, {COMPILED}", f"implicit {method}", prepare
                    )
                )
    return found


def backends(device: str) -> dict[str, ic.Backend]:
    """Those that can run on the device, torch first: what the others are compared with."""
    found = {part.name: part.load()() for part in REGISTRY.parts("backend")}
    able = [
        name
        for name, backend in found.items()
        if device in backend.device_types and backend.unavailable_reason() is None
    ]
    return {name: found[name] for name in sorted(able, key=lambda name: name != "torch")}


def _implicitcore(
    backend: ic.Backend, method: str, problem: Problem, tol: float
) -> Callable[[], Outcome]:
    solver = METHODS[method](tol=tol, max_steps=problem.budget)
    layer = ic.ImplicitLayer(
        ic.FixedPoint(problem.f), solver=solver, gradient=ic.Implicit(solver), backend=backend
    )

    def step() -> Outcome:
        solution = layer.solve(problem.x, problem.z0)
        return Outcome(solution.z, problem.gradients(solution.z), solution.steps)

    return step


def _compiled(library: str, method: str, gradient: str, prepare: Prepare) -> Contender:
    """Counts and memory are those of the eager run: neither shows in compiled code."""

    def with_compiled_cell(problem: Problem, tol: float) -> Callable[[], Outcome]:
        torch._dynamo.config.recompile_limit = (
            64  # else the third problem would run eagerly, with a warning
        )
        return prepare(replace(problem, f=_Compiled(problem.f)), tol)

    return Contender(library, method, gradient, with_compiled_cell, counts=prepare)


class _Compiled(torch.nn.Module):
    """A cell's parameters, and its compiled form."""

    def __init__(self, cell: torch.nn.Module) -> None:
        super().__init__()
        self.cell = torch.compile(cell)

    def forward(self, *arguments: object) -> torch.Tensor:
        return self.cell(*arguments)
