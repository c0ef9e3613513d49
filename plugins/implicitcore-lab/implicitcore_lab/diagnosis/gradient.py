"""The gradient that the layer gives, against a tight reference."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from implicitcore import (
    Adjoint,
    Implicit,
    Neumann,
    Phantom,
    Picard,
    Shine,
    SolveResult,
    Unrolled,
)
from implicitcore.extend import ApproximateGradient
from implicitcore_lab.diagnosis.record import Record
from implicitcore_lab.diagnosis.reference import BACKWARD, Reference
from implicitcore_lab.diagnosis.subject import Subject, double, per_sample, rows, share
from implicitcore_lab.measures import norms, start_distance

INEXACT = 0.05
"""A relative gradient error above it is a fault of a strategy that is meant to be exact."""

ALIKE = 0.9
"""An approximate gradient is to have at least this cosine with the exact one."""

SAME_PLACE = 0.5
"""The layer and the reference are at the same solution where they differ by less."""

_Gradients = tuple[list[Tensor], list[Tensor]]


def check_gradient(
    subject: Subject, own: SolveResult, exact: Reference | None, record: Record
) -> None:
    """Compare the gradients of one random loss with respect to the weights and x."""
    if exact is None:
        return
    good = own.converged & exact.trusted & _same_place(own, exact)
    if not bool(good.any()) or (subject.layer.coupled and not bool(good.all())):
        record.unmeasured.append("the gradient error (no sample was solved by both)")
        return
    if not subject.layer.coupled:
        subject, exact = subject.rows(good), Reference(exact.subject.rows(good), exact.solution)
    z0 = rows(exact.solution.z, good) if subject.is_root else None
    loss = _loss(own.z, good, subject)
    found, expected = _gradient(subject, None, loss), _gradient(exact.subject, z0, loss)
    if not any(bool(it.any()) for it in (*expected[0], *expected[1])):
        record.unmeasured.append("the gradient error (the exact gradient is 0)")
        return
    error, cosine = _compare(found, expected)
    record.figures |= {"gradient_error": error, "gradient_cosine": cosine}
    if found[1] and not subject.layer.coupled:
        record.curves["gradient_error"] = _each(found[1], expected[1])
    record.remarks.append(
        f"gradient error of {type(subject.layer.gradient).__name__}: {error:.1e} against a tight "
        f"solve in float64 (cosine {cosine:.3f})"
    )
    _judge(subject, _forward_error(subject, loss, expected), good, record)


def _judge(subject: Subject, forward: float, good: Tensor, record: Record) -> None:
    """Say whether the strategy, its solver or the forward solve is to blame."""
    error, cosine = record.figures["gradient_error"], record.figures["gradient_cosine"]
    strategy, name = subject.layer.gradient, type(subject.layer.gradient).__name__
    if isinstance(strategy, Phantom | Neumann | Shine | ApproximateGradient):
        if cosine < ALIKE:
            record.find(
                "approximate gradient",
                f"the gradient of {strategy} has a cosine of {cosine:.2f} with the exact one "
                f"(error {error:.0%})",
                "Take more steps, or gradient='implicit'",
            )
    elif error > INEXACT and forward < error / 2:
        measured = (
            f"gradient error {error:.0%} of {name} on {share(good)} that converged, and "
            f"{forward:.1%} with an exact backward pass from the same solution"
        )
        record.find("loose backward", measured, _advice(strategy, subject.layer.solver))
    elif error > INEXACT:
        tol = getattr(subject.layer.solver, "tol", getattr(subject.layer.solver, "rtol", None))
        record.find(
            "loose solve",
            f"gradient error {error:.0%}, of which {forward:.0%} is that of the forward solve "
            f"(tolerance {tol})",
            "Tighten the tolerance of the solver by the factor that the error is to fall by",
        )


def _advice(strategy: Any, forward: Any) -> str:
    if isinstance(strategy, Adjoint):
        return "Tighten the tolerances of the adjoint's solver, or take gradient='checkpointed'"
    if isinstance(strategy, Implicit) and strategy.solver is None:
        tol = forward.relative_tolerance()
        return f"Tighten the layer's solver, whose tol is {tol}: the backward solve follows it"
    tol = getattr(getattr(strategy, "solver", None), "tol", None)
    given = "" if tol is None else f" ({type(strategy.solver).__name__}, whose tol is {tol})"
    return f"Tighten the backward solver{given}: gmres with tol 1e-4"


def _forward_error(subject: Subject, loss: Any, expected: _Gradients) -> float:
    """The error that an exact backward pass has from the layer's own solution."""
    exact = subject.double()
    if subject.is_root:
        z0 = double(subject.solve().z)
        # A loose tolerance and no step: the point stays where the layer's own solve left it.
        here = exact.changed(solver=Picard(tol=0.5, max_steps=1), gradient=BACKWARD)
        return _compare(_gradient(here, z0, loss), expected)[0]
    return _compare(_gradient(exact.changed(gradient=Unrolled()), None, loss), expected)[0]


def _gradient(subject: Subject, z0: Any, loss: Any) -> _Gradients:
    """The gradients with respect to the dynamics' parameters, and to what of x is per sample."""
    x = pytree.tree_map_only(Tensor, _leaf, subject.x)
    weights = [it for it in subject.layer.dynamics.parameters() if it.requires_grad]
    inputs = [leaf for leaf in per_sample(x) if leaf.requires_grad]
    if not weights and not inputs:
        return [], []
    with torch.enable_grad():
        z = subject.layer.solve(x, z0).z
        grads = torch.autograd.grad(
            loss(z), [*weights, *inputs], allow_unused=True, materialize_grads=True
        )
    found = [grad.double() for grad in grads]
    return found[: len(weights)], found[len(weights) :]


def _leaf(tensor: Tensor) -> Tensor:
    return tensor.detach().requires_grad_(tensor.is_floating_point() or tensor.is_complex())


def _loss(state: Any, good: Tensor, subject: Subject) -> Any:
    """A random linear function of a state of the good samples."""
    kept = state if subject.layer.coupled else rows(state, good)
    weights = [torch.randn(leaf.shape, dtype=torch.float64) for leaf in pytree.tree_leaves(kept)]

    def loss(z: Any) -> Tensor:
        leaves = pytree.tree_leaves(z)
        parts = [
            (leaf.real * w.to(leaf.real)).sum() for leaf, w in zip(leaves, weights, strict=True)
        ]
        return torch.stack(parts).sum()

    return loss


def _compare(found: _Gradients, expected: _Gradients) -> tuple[float, float]:
    """The relative error and the cosine over everything together."""
    a, b = _flat(found), _flat(expected)
    size = b.abs().norm()
    cosine = (a.conj() * b).real.sum() / (size * a.abs().norm()).clamp(min=1e-300)
    return ((a - b).abs().norm() / size).item(), cosine.item()


def _flat(gradients: _Gradients) -> Tensor:
    return torch.cat([it.flatten() for it in (*gradients[0], *gradients[1])])


def _each(found: list[Tensor], expected: list[Tensor]) -> Tensor:
    """The relative error of each sample's own gradient, ``[batch]``."""
    difference = [a - b for a, b in zip(found, expected, strict=True)]
    return norms(difference, floor=False) / norms(expected)


def _same_place(own: SolveResult, exact: Reference) -> Tensor:
    moved = pytree.tree_map(lambda a, b: a.to(b) - b, own.z, exact.solution.z)
    far = norms(moved, floor=False) / norms(exact.solution.z)
    return far < SAME_PLACE


@torch.no_grad()
def remark_explicit(own: SolveResult, readout: Any, labels: Tensor | None, record: Record) -> None:
    """How far the solve goes from its start, and what the start alone would say."""
    distance = start_distance(own)
    record.figures["start_distance"] = distance.mean().item()
    record.curves["start_distance"] = distance
    text = f"|z* - z0| / |z*| is {distance.mean():.3g} on average"
    if readout is not None and labels is not None:
        solved, explicit = (
            (readout(state).argmax(1) == labels).float().mean().item()
            for state in (own.z, own.start)
        )
        record.figures |= {"accuracy": solved, "explicit_accuracy": explicit}
        text += f"; accuracy {solved:.1%}, of the start alone {explicit:.1%}"
    if distance.mean() < 0.05:
        text += ": the model is nearly explicit, and layer.explicit(x) may do"
    record.remarks.append(text)
