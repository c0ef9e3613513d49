"""What every gradient strategy promises to autograd."""

from __future__ import annotations

import torch

from implicitcore.errors import GradientError
from implicitcore.gradients.base import GradientStrategy
from implicitcore.testing.check import contract
from implicitcore.testing.expect import NotApplicable, expect, expect_close
from implicitcore.testing.gradients import make_case, relative, served, served_solvers

# A strategy is exact up to the tolerances of its own backward solve.
EXACT = 1e-3


@contract("gradient")
def leaves_grad_alone(gradient: GradientStrategy) -> None:
    """``autograd.grad`` writes no ``.grad``; ``backward()`` adds the same gradient to it, once."""
    for case in served(gradient):
        found = case.gradients(case.leaves)
        for leaf in case.leaves:
            expect(
                leaf.grad is None,
                f"{case.name}, called autograd.grad",
                "a .grad",
                "none: never call .backward() in a strategy",
            )
        case.z().backward(case.v)
        for leaf, expected in zip(case.leaves, found, strict=True):
            value = torch.zeros_like(leaf) if leaf.grad is None else leaf.grad
            expect_close(
                value,
                expected,
                f"{case.name}, compared .grad after backward() with autograd.grad",
                1e-9,
            )


@contract("gradient")
def repeated_backward(gradient: GradientStrategy) -> None:
    """With ``retain_graph`` a second backward pass gives the same."""
    for case in served(gradient):
        z = case.z()
        first, second = (
            torch.autograd.grad(z, case.leaves, case.v, retain_graph=True, allow_unused=True)
            for _ in range(2)
        )
        for a, b in zip(first, second, strict=True):
            if a is not None and b is not None:
                expect_close(b, a, f"{case.name}, called backward a second time", 1e-9)
            expect(
                (a is None) == (b is None),
                f"{case.name}, called backward a second time",
                "None",
                "the same gradient",
            )


@contract("gradient")
def solution_unchanged(gradient: GradientStrategy) -> None:
    """The value of z is that of the solver."""
    for case in served(gradient):
        expect_close(
            case.z().detach(),
            case.problem.solve(case.solver).z,
            f"{case.name}, compared z with the solver's",
            1e-12,
        )


@contract("gradient")
def gives_the_second_derivative_or_refuses(gradient: GradientStrategy) -> None:
    """With ``create_graph`` the second derivative is right, or a GradientError."""
    refused = []
    for case in served(gradient):
        try:
            found = _second(case.z(), case.leaves, case.v)
        except GradientError as refusal:
            refused.append(str(refusal))
            continue
        expected = _second(case.problem.exact(), case.leaves, case.v)
        error = max(map(relative, found, expected))
        expect(
            error <= EXACT,
            f"{case.name} twice",
            f"an error of {error:.2g}",
            f"at most {EXACT:g}, or a GradientError",
        )
    if refused:
        raise NotApplicable(f"it refuses second derivatives: {refused[0]}")


@contract("gradient")
def no_grad_mode(gradient: GradientStrategy) -> None:
    """Under no_grad the result has no graph, and the same value."""
    for case in served(gradient):
        with torch.no_grad():
            z = case.problem.attach(case.solver, gradient).z
        expect(
            not z.requires_grad,
            f"{case.name} under no_grad",
            "a z that requires a gradient",
            "none",
        )
        expect_close(z, case.z().detach(), f"{case.name} under no_grad, compared z", 1e-12)


@contract("gradient")
def preserves_dtype(gradient: GradientStrategy) -> None:
    """In float32 the gradients are float32 and finite."""
    for case in served(gradient, dtype=torch.float32):
        for leaf, found in zip(case.leaves, case.gradients(case.leaves), strict=True):
            expect(found.dtype == leaf.dtype, f"{case.name} in float32", found.dtype, leaf.dtype)
            expect(
                bool(found.isfinite().all()),
                f"{case.name} in float32",
                "a gradient that is not finite",
                "a finite one",
            )


@contract("gradient")
def zero_gradient_without_samples(gradient: GradientStrategy) -> None:
    """An empty batch gives gradients of zero."""
    for case in served(gradient, 0):
        for found in case.gradients(case.leaves):
            expect(
                not bool(found.any()),
                f"{case.name}, no samples",
                "a gradient that is not zero",
                "zero",
            )


@contract("gradient")
def takes_inputs_without_a_gradient(gradient: GradientStrategy) -> None:
    """Parameters get their gradient where x and z0 require none, and x where they require none."""
    for solver in served_solvers(gradient):
        whole, without = (
            make_case(gradient, solver),
            make_case(gradient, solver, x_requires_grad=False),
        )
        for found, expected in zip(
            without.gradients(without.parameters), whole.gradients(whole.parameters), strict=True
        ):
            expect_close(
                found,
                expected,
                f"{whole.name}, x needs no gradient, looked at the parameters",
                1e-9,
            )
        frozen = make_case(gradient, solver)
        for parameter in frozen.parameters:
            parameter.requires_grad_(False)
        (found,) = frozen.gradients([frozen.problem.x])
        (expected,) = whole.gradients([whole.problem.x])
        expect_close(
            found, expected, f"{whole.name}, the parameters need no gradient, looked at x", 1e-9
        )


def _second(z: torch.Tensor, wrt: list[torch.Tensor], v: torch.Tensor) -> list[torch.Tensor]:
    first = torch.autograd.grad(z, wrt, v, create_graph=True, allow_unused=True)
    total = torch.stack([g.square().sum() for g in first if g is not None]).sum()
    expect(
        total.requires_grad,
        "asked for a graph of the gradient",
        "none",
        "a graph, or a GradientError",
    )
    found = torch.autograd.grad(total, wrt, allow_unused=True)
    return [torch.zeros_like(leaf) if g is None else g for leaf, g in zip(wrt, found, strict=True)]
