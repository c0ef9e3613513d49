"""What every gradient strategy promises for the values of its gradients."""

from __future__ import annotations

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
from implicitcore.testing.gradients import SOLVERS, make_case, refusal, relative, served, serves

OTHERS = (
    Picard(tol=1e-10),
    Anderson(tol=1e-10),
    Newton(tol=1e-10),
    SteadyState(tol=1e-6),
    RK4(dt=0.05),
    Adams(rtol=1e-4, atol=1e-6),
    Trapezoid(dt=0.05),
)
# An exact strategy is exact up to the tolerances of its backward solve.
EXACT = 1e-3


@contract("gradient")
def serves_a_root_or_a_trajectory(gradient: GradientStrategy) -> None:
    """Differentiates a root, a trajectory or both, and refuses the other with a GradientError.

    A strategy for one solver serves ``Reversible``, or refuses it too.
    """
    errors = [_allowed(gradient, solver) for solver in SOLVERS]
    expect(
        None in errors,
        "gave it Broyden, Tsit5 and Reversible",
        " and ".join(map(str, errors)),
        "a gradient with one of them",
    )


@contract("gradient")
def gives_the_gradient_of_the_parameters(gradient: GradientStrategy) -> None:
    """The gradient of each parameter is that of the dense reference, or of the closed form."""
    for case in served(gradient):
        for found, expected in zip(
            case.gradients(case.parameters), case.expected(case.parameters), strict=True
        ):
            error = relative(found, expected)
            did = f"{case.name}, looked at a parameter of shape {list(found.shape)}"
            expect(error <= EXACT, did, f"an error of {error:.2g}", f"at most {EXACT:g}")


@contract("gradient")
def gives_the_gradient_of_the_input(gradient: GradientStrategy) -> None:
    """The gradient of x is that of the dense reference, or of the closed form."""
    for case in served(gradient):
        error = relative(*case.gradients([case.problem.x]), *case.expected([case.problem.x]))
        expect(
            error <= EXACT,
            f"{case.name}, looked at x",
            f"an error of {error:.2g}",
            f"at most {EXACT:g}",
        )


@contract("gradient")
def gives_the_gradient_of_z0(gradient: GradientStrategy) -> None:
    """The gradient of the z0 of a trajectory is that of the closed form."""
    if not serves(gradient, SOLVERS[1]):
        raise NotApplicable("it is not for trajectories")
    case = make_case(gradient, SOLVERS[1])
    error = relative(*case.gradients([case.problem.z0]), *case.expected([case.problem.z0]))
    expect(
        error <= EXACT,
        f"{case.name}, looked at z0",
        f"an error of {error:.2g}",
        f"at most {EXACT:g}",
    )


@contract("gradient")
def descent_direction(gradient: GradientStrategy) -> None:
    """Each gradient, approximate ones included, is within 60 degrees of the exact one."""
    for case in served(gradient):
        for found, expected in zip(
            case.gradients(case.leaves), case.expected(case.leaves), strict=True
        ):
            if bool(found.any()):
                cosine = torch.nn.functional.cosine_similarity(
                    found.flatten(), expected.flatten(), 0
                ).item()
                did = (
                    f"{case.name}, compared the direction for a tensor of shape {list(found.shape)}"
                )
                expect(cosine > 0.5, did, f"a cosine of {cosine:.2g}", "more than 0.5")


@contract("gradient")
def serves_or_refuses_every_solver(gradient: GradientStrategy) -> None:
    """With any solver the gradient is that with Broyden or Tsit5, or a GradientError."""
    for solver in OTHERS:
        if _allowed(gradient, solver) is None:
            case = make_case(gradient, solver)
            reference = make_case(
                gradient, SOLVERS[0] if case.problem.times is None else SOLVERS[1]
            )
            found = case.gradients(case.leaves[1:])
            expected = reference.gradients(reference.leaves[1:])
            error = max(map(relative, found, expected))
            expect(
                error <= 1e-2,
                f"{case.name}, compared with {type(reference.solver).__name__}",
                f"an error of {error:.2g}",
                "at most 1e-2",
            )


@contract("gradient")
def scales_with_the_loss(gradient: GradientStrategy) -> None:
    """A loss times 1e-6 has a gradient times 1e-6: tolerances are relative."""
    for case in served(gradient):
        for found, whole in zip(
            case.gradients(case.leaves, 1e-6), case.gradients(case.leaves), strict=True
        ):
            expect_close(
                found * 1e6,
                whole,
                f"{case.name}, scaled the loss by 1e-6 and the gradient by 1e6",
                1e-4,
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
