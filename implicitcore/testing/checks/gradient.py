"""What every gradient strategy promises."""

from __future__ import annotations

from dataclasses import replace

import torch

from implicitcore.errors import GradientError, describe_error
from implicitcore.gradients.base import GradientStrategy
from implicitcore.ode_solvers.adams import Adams
from implicitcore.ode_solvers.base import ODESolver
from implicitcore.ode_solvers.implicit_runge_kutta import Trapezoid
from implicitcore.ode_solvers.runge_kutta import RK4
from implicitcore.root_solvers.anderson import Anderson
from implicitcore.root_solvers.base import RootSolver
from implicitcore.root_solvers.newton import Newton
from implicitcore.root_solvers.picard import Picard
from implicitcore.root_solvers.steady_state import SteadyState
from implicitcore.testing.check import contract
from implicitcore.testing.expect import ContractError, NotApplicable, expect, expect_close
from implicitcore.testing.gradients import SOLVERS, case, refusal, relative, served, serves

OTHERS = (
    Picard(tol=1e-10),
    Anderson(tol=1e-10),
    Newton(tol=1e-10),
    SteadyState(tol=1e-6),
    RK4(dt=0.05),
    Adams(rtol=1e-4, atol=1e-6),
    Trapezoid(dt=0.05),
)
# A strategy is exact up to the tolerances of its own backward solve.
EXACT = 1e-3


@contract("gradient")
def serves_a_root_or_a_trajectory(gradient: GradientStrategy) -> None:
    """Differentiates an equilibrium, a trajectory or both, and refuses the other with a GradientError."""
    errors = [_allowed(gradient, solver) for solver in SOLVERS]
    expect(
        None in errors,
        "gave it Broyden and Tsit5",
        " and ".join(map(str, errors)),
        "one GradientError at most",
    )


@contract("gradient")
def gives_the_gradient_of_the_parameters(gradient: GradientStrategy) -> None:
    """For each parameter of the cell it agrees with the gradient by dense matrices, or of the closed form."""
    for made in served(gradient):
        for found, expected in zip(
            made.take(made.parameters), made.expected(made.parameters), strict=True
        ):
            error = relative(found, expected)
            did = f"{made.name}, looked at a parameter of shape {list(found.shape)}"
            expect(error <= EXACT, did, f"an error of {error:.2g}", f"at most {EXACT:g}")


@contract("gradient")
def gives_the_gradient_of_the_input(gradient: GradientStrategy) -> None:
    """For x it agrees with the gradient by dense matrices, or of the closed form."""
    for made in served(gradient):
        error = relative(*made.take([made.problem.x]), *made.expected([made.problem.x]))
        expect(
            error <= EXACT,
            f"{made.name}, looked at x",
            f"an error of {error:.2g}",
            f"at most {EXACT:g}",
        )


@contract("gradient")
def gives_the_gradient_of_the_start(gradient: GradientStrategy) -> None:
    """For the z0 of a trajectory it agrees with the gradient of the closed form."""
    if not serves(gradient, SOLVERS[1]):
        raise NotApplicable("it is not for trajectories")
    made = case(gradient, SOLVERS[1])
    error = relative(*made.take([made.problem.z0]), *made.expected([made.problem.z0]))
    expect(
        error <= EXACT,
        f"{made.name}, looked at z0",
        f"an error of {error:.2g}",
        f"at most {EXACT:g}",
    )


@contract("gradient")
def points_downhill(gradient: GradientStrategy) -> None:
    """Also an approximation is within 60 degrees of the exact gradient, for every tensor that gets one."""
    for made in served(gradient):
        for found, expected in zip(made.take(made.leaves), made.expected(made.leaves), strict=True):
            if bool(found.any()):
                cosine = torch.nn.functional.cosine_similarity(
                    found.flatten(), expected.flatten(), 0
                ).item()
                did = (
                    f"{made.name}, compared the direction for a tensor of shape {list(found.shape)}"
                )
                expect(cosine > 0.5, did, f"a cosine of {cosine:.2g}", "more than 0.5")


@contract("gradient")
def serves_or_refuses_every_solver(gradient: GradientStrategy) -> None:
    """With another solver the gradient is that with Broyden or Tsit5, or a GradientError."""
    for solver in OTHERS:
        if _allowed(gradient, solver) is None:
            made = case(gradient, solver)
            reference = case(gradient, SOLVERS[0] if made.problem.times is None else SOLVERS[1])
            error = max(
                map(relative, made.take(made.leaves[1:]), reference.take(reference.leaves[1:]))
            )
            expect(
                error <= 1e-2,
                f"{made.name}, compared with {type(reference.solver).__name__}",
                f"an error of {error:.2g}",
                "at most 1e-2",
            )


@contract("gradient")
def scales_with_the_loss(gradient: GradientStrategy) -> None:
    """A loss times 1e-6 has a gradient times 1e-6.

    Tolerances are relative to the incoming gradient.
    """
    for made in served(gradient):
        for found, whole in zip(made.take(made.leaves, 1e-6), made.take(made.leaves), strict=True):
            expect_close(
                found * 1e6,
                whole,
                f"{made.name}, scaled the loss by 1e-6 and the gradient by 1e6",
                1e-4,
            )


@contract("gradient")
def leaves_grad_to_the_caller(gradient: GradientStrategy) -> None:
    """``autograd.grad`` leaves every ``.grad`` empty, and ``backward()`` fills it with the same, once."""
    for made in served(gradient):
        found = made.take(made.leaves)
        for leaf in made.leaves:
            expect(
                leaf.grad is None,
                f"{made.name}, called autograd.grad",
                "a .grad",
                "none: never call .backward() in a strategy",
            )
        made.z().backward(made.v)
        for leaf, expected in zip(made.leaves, found, strict=True):
            value = torch.zeros_like(leaf) if leaf.grad is None else leaf.grad
            expect_close(
                value,
                expected,
                f"{made.name}, compared .grad after backward() with autograd.grad",
                1e-9,
            )


@contract("gradient")
def can_be_taken_again(gradient: GradientStrategy) -> None:
    """With ``retain_graph`` a second backward pass gives the same."""
    for made in served(gradient):
        z = made.z()
        first, second = (
            torch.autograd.grad(z, made.leaves, made.v, retain_graph=True, allow_unused=True)
            for _ in range(2)
        )
        for a, b in zip(first, second, strict=True):
            if a is not None and b is not None:
                expect_close(b, a, f"{made.name}, went back a second time", 1e-9)
            expect(
                (a is None) == (b is None),
                f"{made.name}, went back a second time",
                "None",
                "the same gradient",
            )


@contract("gradient")
def keeps_the_solution(gradient: GradientStrategy) -> None:
    """The value of z is that of the solver."""
    for made in served(gradient):
        expect_close(
            made.z().detach(),
            made.problem.solve(made.solver).z,
            f"{made.name}, compared z with the solver's",
            1e-12,
        )


@contract("gradient")
def gives_the_second_derivative_or_refuses(gradient: GradientStrategy) -> None:
    """With ``create_graph`` the second derivative is right, or a GradientError.

    Never a wrong one.
    """
    refused = []
    for made in served(gradient):
        try:
            found = _second(made.z(), made.leaves, made.v)
        except GradientError as refusal:
            refused.append(str(refusal))
            continue
        expected = _second(made.problem.exact(), made.leaves, made.v)
        error = max(map(relative, found, expected))
        expect(
            error <= EXACT,
            f"{made.name} twice",
            f"an error of {error:.2g}",
            f"at most {EXACT:g}, or a GradientError",
        )
    if refused:
        raise NotApplicable(f"it refuses second derivatives: {refused[0]}")


@contract("gradient")
def records_nothing_under_no_grad(gradient: GradientStrategy) -> None:
    """Under no_grad the solution has no graph, and is the same."""
    for made in served(gradient):
        with torch.no_grad():
            z = made.problem.attach(made.solver, gradient).z
        expect(
            not z.requires_grad,
            f"{made.name} under no_grad",
            "a z that requires a gradient",
            "none",
        )
        expect_close(z, made.z().detach(), f"{made.name} under no_grad, compared z", 1e-12)


@contract("gradient")
def keeps_the_dtype(gradient: GradientStrategy) -> None:
    """In float32 the gradients are in float32, and finite."""
    for made in served(gradient, dtype=torch.float32):
        for leaf, found in zip(made.leaves, made.take(made.leaves), strict=True):
            expect(found.dtype == leaf.dtype, f"{made.name} in float32", found.dtype, leaf.dtype)
            expect(
                bool(found.isfinite().all()),
                f"{made.name} in float32",
                "a gradient that is not finite",
                "a finite one",
            )


@contract("gradient")
def differentiates_an_empty_batch(gradient: GradientStrategy) -> None:
    """No samples give gradients of zero."""
    for made in served(gradient, 0):
        for found in made.take(made.leaves):
            expect(
                not bool(found.any()),
                f"{made.name}, no samples",
                "a gradient that is not zero",
                "zero",
            )


@contract("gradient")
def per_sample(gradient: GradientStrategy) -> None:
    """The gradient of the x of a sample is the one that the sample has alone."""
    for made in served(gradient):
        (together,) = made.take([made.problem.x])
        for i in (0, 5):
            rows = slice(i, i + 1)
            part = replace(
                made.problem.rows(rows), x=made.problem.x[rows].detach().requires_grad_()
            )
            alone = replace(made, problem=part, v=made.v[..., rows, :])
            expect_close(
                together[rows],
                alone.take([part.x])[0],
                f"{made.name}, compared sample {i} of 8 with the same sample alone",
                1e-6,
            )


@contract("gradient")
def keeps_a_nan_in_its_sample(gradient: GradientStrategy) -> None:
    """A NaN in the input of one sample leaves the gradients of the x of the others as they are."""
    others = [0, 1, 2, 4, 5, 6, 7]
    for made in served(gradient):
        x = made.problem.x.detach().clone()
        x[3, 2] = torch.nan
        broken = replace(made, problem=replace(made.problem, x=x.requires_grad_()))
        (found,), (clean,) = broken.take([x]), made.take([made.problem.x])
        expect_close(
            found[others],
            clean[others],
            f"{made.name}, put a NaN into sample 3 of 8, compared the others",
            1e-6,
        )


@contract("gradient")
def takes_inputs_without_a_gradient(gradient: GradientStrategy) -> None:
    """Where x and z0 need no gradient, the parameters get theirs.

    And where the parameters need none, x does.
    """
    for solver in filter(lambda solver: serves(gradient, solver), SOLVERS):
        whole, without = case(gradient, solver), case(gradient, solver, x_learns=False)
        for found, expected in zip(
            without.take(without.parameters), whole.take(whole.parameters), strict=True
        ):
            expect_close(
                found,
                expected,
                f"{whole.name}, x needs no gradient, looked at the parameters",
                1e-9,
            )
        frozen = case(gradient, solver)
        for parameter in frozen.parameters:
            parameter.requires_grad_(False)
        (found,), (expected,) = frozen.take([frozen.problem.x]), whole.take([whole.problem.x])
        expect_close(
            found, expected, f"{whole.name}, the parameters need no gradient, looked at x", 1e-9
        )


def _allowed(gradient: GradientStrategy, solver: RootSolver | ODESolver) -> GradientError | None:
    """The error with which the strategy refuses a solver; None where it serves it."""
    error = refusal(gradient, solver)
    if error is None or isinstance(error, GradientError):
        return error
    raise ContractError(
        f"gave it {type(solver).__name__}: received {describe_error(error)}, expected a "
        "gradient or a GradientError"
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
