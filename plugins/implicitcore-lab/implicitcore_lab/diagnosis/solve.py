"""Why the solve of an equilibrium failed: rate, rounding, or steps."""

from __future__ import annotations

from collections import Counter
from typing import cast

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from implicitcore import Picard, Solution, Status, SteadyState, spectral_radius
from implicitcore_lab.diagnosis.record import Record
from implicitcore_lab.diagnosis.reference import Reference
from implicitcore_lab.diagnosis.subject import Subject, share
from implicitcore_lab.measures import norms

FLOOR = 1e4
"""A relative residual of so many units of the dtype may be rounding."""


def check_solve(subject: Subject, own: Solution, exact: Reference | None, record: Record) -> None:
    """Say what the samples that did not converge have in common."""
    relative = own.residual / norms(own.z)
    record.figures["relative_residual"] = relative.max().item()
    record.figures["unconverged"] = (~own.converged).float().mean().item()
    record.curves["steps"] = own.steps
    if own.trace is not None:
        record.curves["trace"] = own.trace / norms(own.z)
    if exact is None:
        return
    radius = _radius(exact, record)
    failed = ~own.converged & (own.status != Status.NON_FINITE)
    if radius is None or not bool(failed.any()) or record.found("stiff field"):
        return
    floor = failed & _rounding(subject, own, relative)
    over = failed & ~floor & exact.trusted & (radius > 1)
    slow = failed & ~floor & ~over & exact.trusted
    ended = _ended(own)
    if bool(floor.any()):
        _tell_precision(subject, relative[floor], floor, record)
    if bool(over.any()):
        _tell_radius(subject, radius[over], over, f"{_solver(subject)} {ended}", record)
    if bool(slow.any()):
        _tell_slow(subject, radius[slow], slow, ended, record)
    if bool((failed & ~floor & ~exact.trusted).any()):
        _tell_none(failed & ~floor & ~exact.trusted, ended, record)


def _radius(exact: Reference, record: Record) -> Tensor | None:
    """The spectral radius of each sample at the reference's equilibria."""
    if exact.subject.layer.coupled:
        record.unmeasured.append("the spectral radius of each sample (they are coupled)")
        return None
    radius = spectral_radius(exact.subject.layer, exact.solution.z, exact.subject.x)
    trusted = radius[exact.trusted]
    record.curves["spectral_radius"] = trusted
    if trusted.numel():
        record.figures["spectral_radius"] = trusted.max().item()
        above = (trusted > 1).float().mean().item()
        record.figures["expanding"] = above
        record.remarks.append(
            f"spectral radius at the equilibria: median {trusted.median():.2f}, largest "
            f"{trusted.max():.2f}, above 1 on {above:.0%} of samples"
        )
    return radius


def _rounding(subject: Subject, own: Solution, relative: Tensor) -> Tensor:
    """Which samples the same solver solves in float64, and came near to in their own dtype."""
    eps = torch.finfo(own.residual.dtype).eps
    near = relative < FLOOR * max(eps, _eps(own))
    if not bool((near & ~own.converged).any()) or _eps(own) < torch.finfo(torch.float32).eps:
        return torch.zeros_like(near)
    return near & subject.double().solve().converged


def _eps(own: Solution) -> float:
    return torch.finfo(pytree.tree_leaves(own.z)[0].dtype).eps


def _tell_precision(subject: Subject, relative: Tensor, floor: Tensor, record: Record) -> None:
    dtype = str(pytree.tree_leaves(subject.start())[0].dtype).removeprefix("torch.")
    asked = getattr(subject.layer.solver, "tol", None)
    record.find(
        "precision",
        f"the residual of {share(floor)} stands at {relative.max():.1e} in {dtype}, above the "
        f"tolerance {asked}; in float64 the same solver meets it",
        f"Rounding is the floor: ask for no less than {10 * relative.max():.0e}, or solve in "
        "float64",
    )


def _tell_radius(
    subject: Subject, radius: Tensor, over: Tensor, ended: str, record: Record
) -> None:
    solver = subject.layer.solver
    if isinstance(solver, Picard):
        advice = "Picard diverges there: take Anderson or Broyden"
    elif isinstance(solver, SteadyState):
        advice = "An eigenvalue beyond 1 makes the equilibrium unstable for a flow: take Broyden"
    else:
        advice = "Take Broyden, or a Chain that ends with Newton or Homotopy"
    record.find(
        "spectral radius",
        f"radius {radius.median():.2g} (up to {radius.max():.2g}) on {share(over)}, where {ended}",
        f"{advice}; or add implicitcore.jacobian_regularizer to the loss, with weight 1",
    )


def _tell_slow(subject: Subject, radius: Tensor, slow: Tensor, ended: str, record: Record) -> None:
    steps = getattr(subject.layer.solver, "max_steps", None)
    record.find(
        "too few steps",
        f"radius {radius.max():.3g} is below 1 on {share(slow)}, and {_solver(subject)} {ended} "
        f"with max_steps={steps}",
        "It converges, slowly: raise max_steps, or take Anderson; a loss with "
        "jacobian_regularizer makes the rate better",
    )


def _tell_none(none: Tensor, ended: str, record: Record) -> None:
    record.find(
        "no equilibrium",
        f"on {share(none)} the solver {ended}, and neither Anderson, Broyden nor Newton in float64 "
        "found a fixed point",
        "The cell may have none there: take a ContractiveCell or MonotoneCell, or train with "
        "jacobian_regularizer",
    )


def _solver(subject: Subject) -> str:
    return type(subject.layer.solver).__name__


def _ended(own: Solution) -> str:
    counts = Counter(cast(list[int], own.status[~own.converged].tolist()))
    ends = ", ".join(f"{Status(status).name} on {n}" for status, n in counts.items())
    return f"ended {ends} of {len(own.status)} samples"
