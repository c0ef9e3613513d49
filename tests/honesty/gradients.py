"""Gradients: where a sample converged its gradient is finite, whatever happened beside it."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

import implicitcore as ic
from honesty.problems import Problem, problem
from honesty.solvers import parts, root_solver
from honesty.tally import Row, Tally, answer

SOLVERS = ("picard", "anderson", "broyden", "newton", "steady_state", "chain", "pseudo_transient")
BACKWARD = ("gmres", "bicgstab", "picard", "anderson", "broyden", "newton")
BEYOND = ("units",)
"""Second derivatives of f, of which a Newton step has a graph, leave the range of float32 there."""
TRAJECTORIES_ONLY = ("adjoint", "checkpointed")


@dataclass(frozen=True)
class Scaled:
    """The problem with a parameter of all samples: f(z, (factor, ...))."""

    problem: Problem

    def __call__(self, z: Tensor, x: Any) -> Tensor:
        factor, parameters = x
        return factor * self.problem.f(z, parameters)


def sweep(seed: int) -> Tally:
    """The problem of a seed through every gradient strategy, by a solver drawn for each."""
    tally: Tally = {}
    names = [name for name in parts("gradient") if name not in TRAJECTORIES_ONLY]
    for number, name in enumerate(names):
        choose = random.Random(seed * 1013 + number)
        subject = problem(seed, choose.choice((torch.float32, torch.float64)))
        if subject.family.singular or (name == "unrolled" and subject.family.name in BEYOND):
            continue
        row = tally.setdefault(("gradients", name), Row())
        solver = "broyden" if name == "shine" else choose.choice(SOLVERS)
        gradient = {"name": name}
        if name == "implicit":
            gradient["solver"] = choose.choice(BACKWARD)
        _train(subject, root_solver(solver, 1e-4, 0.0, choose), gradient, row, f"seed {seed}")
    return tally


def _train(
    subject: Problem, solver: ic.RootSolver, gradient: dict[str, str], row: Row, told: str
) -> None:
    """One backward pass of the samples that converged."""
    factor = torch.ones((), dtype=subject.z0.dtype, requires_grad=True)
    leaves = [each.clone().requires_grad_() for each in subject.parameters]
    text = f"{told}, {subject}, {solver}, {gradient}"
    row.calls += 1
    row.samples += len(subject.z0)
    call = ic.fixed_point if subject.call == "fixed_point" else ic.find_root
    x = (ic.shared(factor), tuple(leaves))

    def train() -> tuple[ic.Solution, Sequence[Tensor | None]] | None:
        solution = call(
            Scaled(subject), subject.z0, x, solver=solver, gradient=gradient, on_failure="ignore"
        )
        row.statuses.update(ic.Status(one).name.lower() for one in solution.status.tolist())
        wanted = solution.z[solution.converged]
        if not wanted.numel() or not wanted.requires_grad:
            return None
        wrt = [factor, *leaves]
        return solution, torch.autograd.grad(wanted.sum(), wrt, allow_unused=True)

    trained = answer(row, text, train)
    if trained is None:
        return
    solution, found = trained
    names = ("the parameter of all samples", *(f"x[{index}]" for index in range(len(leaves))))
    for name, value in zip(names, found, strict=True):
        if value is not None and not bool(value.isfinite().all()):
            row.find("a gradient that is not finite", text, f"of {name}, {solution.status}")
