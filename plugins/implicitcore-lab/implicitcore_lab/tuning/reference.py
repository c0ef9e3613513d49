"""The gradient that every configuration is judged by: in float64, at a tight tolerance."""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

import implicitcore as ic
from implicitcore_lab.errors import TrainingError, first_line
from implicitcore_lab.tuning.problem import Gradients, Problem, failure

TIGHT = {torch.float64: (1e-11, 1e-9, 1e-7), torch.float32: (1e-6, 1e-5)}
STEPS, NEWTON_STEPS = 1000, 100
PRODUCTS, RESTART = 5000, 100
ODE_STEPS = 100_000
WIDE = {torch.float32: torch.float64, torch.complex64: torch.complex128}


@dataclass(frozen=True)
class Reference:
    """The right gradients.

    Attributes:
        gradients: of each leaf of the problem.
        text: how they were computed, in words.
    """

    gradients: Gradients
    text: str


def reference(problem: Problem) -> Reference:
    """Solve far more exactly than any candidate.

    In float64; a cell that keeps its weights where no module shows them cannot be converted, and is
    solved in its own dtype.

    Raises:
        TrainingError: nothing converges tightly on this batch.
    """
    tried: list[str] = []
    solved = False
    for dtype, exact in _versions(problem):
        if solved:  # what float64 does not reach, fewer digits do not either
            break
        for layer, text in _tight(exact, dtype):
            name = f"{text}, {str(dtype).removeprefix('torch.')}"
            try:
                solution, gradients = exact.seeded_step(layer)
            except (ic.ImplicitCoreError, RuntimeError) as error:
                tried.append(f"{name}: {first_line(error)}")
                continue
            solved, reason = True, failure(solution)
            if not reason:
                return Reference(gradients, name)
            tried.append(f"{name}: {reason}")
    raise TrainingError("no reference to judge gradients by: " + "; ".join(tried))


def _versions(problem: Problem) -> Iterator[tuple[torch.dtype, Problem]]:
    """The problem in float64, then as it is."""
    yield torch.float64, _double(problem)
    yield torch.float32, problem


def _double(problem: Problem) -> Problem:
    narrow = [z.dtype for z in pytree.tree_leaves(problem.x) if isinstance(z, Tensor)]
    layer = copy.deepcopy(problem.layer)
    for held in (*layer.parameters(), *layer.buffers()):
        held.data = _wide(held.data)
    x = pytree.tree_map(_wide_leaf, problem.x)
    given = any(dtype in (torch.float64, torch.complex128) for dtype in narrow)

    def loss(solution: ic.SolveResult) -> Tensor:
        """The user's loss has weights of its own, in their dtype."""
        z = solution.z if given else pytree.tree_map(_narrow, solution.z)
        return problem.loss(solution.amended(z=z))

    return Problem(layer, x, loss, problem.seed)


def _wide(value: Tensor) -> Tensor:
    return value.to(WIDE.get(value.dtype, value.dtype))


def _wide_leaf(value: Any) -> Any:
    if not isinstance(value, Tensor):
        return value
    return _wide(value.detach()).requires_grad_(value.requires_grad)


def _narrow(value: Tensor) -> Tensor:
    return value.to(torch.complex64 if value.is_complex() else torch.float32)


def _tight(problem: Problem, dtype: torch.dtype) -> Iterator[tuple[ic.ImplicitLayer, str]]:
    """The layer at tight tolerances, the tightest first."""
    solve = _equilibrium if problem.is_equilibrium else _trajectory
    for tol in TIGHT[dtype]:
        for solver, gradient in solve(problem.layer, tol):
            parts = {"solver": solver, "gradient": gradient, "backend": ic.TorchBackend()}
            yield problem.variant(parts), f"{type(solver).__name__} at {tol:g}"


def _equilibrium(
    layer: ic.ImplicitLayer, tol: float
) -> Iterator[tuple[ic.RootSolver, ic.GradientStrategy]]:
    """The layer's own solver first: where there are several equilibria it is its own that counts.

    Others go on for the samples that it leaves.
    """
    others = (ic.Anderson(tol=tol, max_steps=STEPS), ic.Newton(tol=tol, max_steps=NEWTON_STEPS))
    solver = ic.Chain(solvers=(_tightened(layer.solver, tol), *others))
    gmres = ic.GMRES(tol=tol, max_products=PRODUCTS, restart=RESTART)
    yield solver, ic.Implicit(solver=gmres)


def _tightened(solver: Any, tol: float) -> Any:
    wanted = {"tol": tol, "max_steps": STEPS, "patience": None}
    names = {field.name for field in dataclasses.fields(solver)} & wanted.keys()
    return dataclasses.replace(solver, **{name: wanted[name] for name in names})


def _trajectory(
    layer: ic.ImplicitLayer, tol: float
) -> Iterator[tuple[ic.ODESolver, ic.GradientStrategy]]:
    for method in (ic.DOP853, ic.ESDIRK):
        solver = method(rtol=tol, atol=tol * 1e-2, max_steps=ODE_STEPS)
        yield solver, ic.Checkpointed()
