"""The adjoint against closed forms and against unrolled, for every ODE solver; its honesty where it
cannot be exact."""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from typing import Literal

import pytest
import torch
from support.trajectory_solvers import BlackBox
from torch import Tensor, nn

import implicitcore as ic
from implicitcore.extend import EqualSteps, Step, System
from implicitcore.testing.dense import relative_error
from implicitcore.testing.expect import known
from implicitcore.testing.problems import Cell, inputs
from implicitcore.testing.trajectories import driven, linear, logistic, trajectories

TIGHT = {"rtol": 1e-10, "atol": 1e-12, "max_steps": 20000}
EXACT = [
    ic.Tsit5(**TIGHT),
    ic.Dopri5(**TIGHT),
    ic.Bosh3(rtol=1e-8, atol=1e-10, max_steps=20000),
    ic.RK4(dt=0.01),
    ic.DOP853(**TIGHT),
]
LOW_ORDER = [ic.Heun(dt=5e-4), ic.Midpoint(dt=5e-4)]
each_problem = pytest.mark.parametrize("problem", trajectories(), ids=str)
GRID = torch.tensor([0.0, 0.4, 0.5, 1.2], dtype=torch.float64)


def gradients(problem, solver, gradient, weights, grid=GRID):
    solution = ic.integrate(
        problem.field,
        problem.z0,
        problem.x,
        times=grid,
        solver=solver,
        gradient=gradient,
        on_failure="ignore",
    ).raise_if_failed()
    return solution, torch.autograd.grad((solution.z * weights).sum(), problem.leaves)


def weights_like(problem, grid=GRID):
    return torch.randn(
        len(grid),
        *problem.z0.shape,
        dtype=torch.float64,
        generator=torch.Generator().manual_seed(5),
    )


@each_problem
@pytest.mark.parametrize("solver", EXACT + LOW_ORDER, ids=lambda s: type(s).__name__)
def test_the_gradient_is_that_of_the_closed_form(problem, solver):
    """z0, x and what the field captured, from a loss on every output time."""
    grid = GRID / 4 if solver in LOW_ORDER else GRID
    weights = weights_like(problem)
    expected = torch.autograd.grad((problem.trajectory(grid) * weights).sum(), problem.leaves)
    solution, found = gradients(problem, solver, ic.Adjoint(), weights, grid)
    assert relative_error(found, expected) < 1e-6
    assert solution.backward.vjps > 0
    assert known(solution.backward.status).tolist() == [ic.Status.CONVERGED] * 8


@pytest.mark.parametrize("problem", [driven(), linear()], ids=str)
def test_euler_agrees_to_its_order(problem):
    weights = weights_like(problem)
    expected = torch.autograd.grad((problem.trajectory(GRID) * weights).sum(), problem.leaves)
    errors = [
        relative_error(gradients(problem, ic.Euler(dt=dt), ic.Adjoint(), weights)[1], expected)
        for dt in (0.01, 0.005, 0.0025)
    ]
    assert errors[0] / errors[1] == pytest.approx(2, abs=0.3)
    assert errors[1] / errors[2] == pytest.approx(2, abs=0.2)


@each_problem
def test_backwards_in_time_the_adjoint_goes_forward(problem):
    grid = torch.tensor([0.0, -0.2, -0.5], dtype=torch.float64)
    weights = weights_like(problem, grid)
    expected = torch.autograd.grad((problem.trajectory(grid) * weights).sum(), problem.leaves)
    _, found = gradients(problem, ic.Tsit5(**TIGHT), ic.Adjoint(), weights, grid)
    assert relative_error(found, expected) < 1e-6


def test_another_solver_may_integrate_backwards():
    problem = driven()
    weights = weights_like(problem)
    expected = torch.autograd.grad((problem.trajectory(GRID) * weights).sum(), problem.leaves)
    solution, found = gradients(problem, ic.Tsit5(**TIGHT), ic.Adjoint(ic.RK4(dt=0.01)), weights)
    assert relative_error(found, expected) < 1e-6
    assert solution.backward.evaluations == 4 * 120 + 2  # at both ends, whether f is the same


class Net(nn.Module):
    """Two layers on (z, x) and the time, with parameters that the field uses late or never."""

    def __init__(self) -> None:
        super().__init__()
        self.cell = Cell()
        self.out = nn.Linear(6, 6, dtype=torch.float64)
        self.late = nn.Parameter(torch.full((6,), 0.3, dtype=torch.float64))
        self.never = nn.Parameter(torch.ones(6, dtype=torch.float64))
        self.still = nn.Parameter(torch.ones(6, dtype=torch.float64), requires_grad=False)

    def forward(self, t: Tensor, z: Tensor, x: tuple[Tensor, Tensor]) -> Tensor:
        value = self.out(self.cell(z, x[0])) * torch.cos(t) - z * self.still
        if not bool((t > 0.3).any()):
            return value
        return value + torch.where(t > 0.3, self.late * x[1], 0)


@pytest.mark.parametrize("solver", EXACT, ids=lambda s: type(s).__name__)
@pytest.mark.slow
def test_a_module_and_a_pytree_input_agree_with_unrolled(solver):
    """Parameters used on a part of the way only; x made of leaves and of values computed before."""
    net, z0, a = Net(), inputs(seed=2).requires_grad_(), inputs(seed=3).requires_grad_()
    grid = torch.tensor([0.0, 0.3, 1.0], dtype=torch.float64)  # the field jumps at 0.3
    found = {}
    for gradient in (ic.Unrolled(), ic.Adjoint()):
        x = (torch.sin(a), a[:, :1].exp())
        solution = ic.integrate(net, z0, x, times=grid, solver=solver, gradient=gradient)
        tensors = [
            z0,
            a,
            *(p for name, p in net.named_parameters() if name not in ("never", "still")),
        ]
        found[gradient] = torch.autograd.grad(solution.z.square().sum(), tensors, retain_graph=True)
        (unused,) = torch.autograd.grad(solution.z.sum(), net.never, allow_unused=True)
        assert unused is None or not unused.any()
    assert relative_error(found[ic.Adjoint()], found[ic.Unrolled()]) < 1e-6


def test_what_the_field_captured_gets_its_gradient():
    """A leaf; a value computed before the solve, whose own graph is still whole afterwards; x
    captured besides being given."""
    weight = torch.eye(6, dtype=torch.float64).mul(0.5).requires_grad_()
    x = inputs().requires_grad_()
    found = []
    for gradient in (ic.Unrolled(), ic.Adjoint()):
        shift = torch.tanh(x @ weight)
        field = lambda t, z, u, shift=shift: torch.tanh(z @ weight) + shift - x * u  # noqa: E731
        z0 = torch.zeros_like(x)
        solution = ic.integrate(
            field, z0, x, times=GRID, solver=ic.Tsit5(**TIGHT), gradient=gradient
        )
        loss = solution.z.square().sum() + shift.sum()
        found.append(torch.autograd.grad(loss, [weight, x]))
    assert relative_error(found[1], found[0]) < 1e-6


@pytest.mark.parametrize(
    "solver", [ic.Tsit5(rtol=1e-5, atol=1e-7), ic.RK4()], ids=lambda s: type(s).__name__
)
def test_a_scaled_loss_has_the_same_relative_gradient_error(solver):
    problem = logistic()
    weights = weights_like(problem)
    expected = torch.autograd.grad((problem.trajectory(GRID) * weights).sum(), problem.leaves)
    errors = []
    for scale in (1.0, 1e-6, 1e6):
        _, found = gradients(problem, solver, ic.Adjoint(), weights * scale)
        errors.append(relative_error([g / scale for g in found], expected))
    assert errors[0] < 1e-3
    assert errors == pytest.approx([errors[0]] * 3, rel=1e-6)


@pytest.mark.parametrize("solver", [ic.Tsit5(), ic.RK4()], ids=lambda s: type(s).__name__)
def test_the_record_counts_one_product_of_the_batch_per_stage(solver):
    """Counted in the field: one evaluation a stage for the whole batch, and no more than two
    products of it."""
    seen = []

    def field(t, z, x):
        seen.append(len(z))
        return torch.tanh(z) * x

    x = inputs().requires_grad_()
    solution = ic.integrate(
        field, inputs(seed=4), x, times=GRID, solver=solver, gradient=ic.Adjoint()
    )
    forward = len(seen)
    assert solution.evaluations == forward
    torch.autograd.grad(solution.z.sum(), x)
    assert solution.backward.evaluations == len(seen) - forward
    assert set(seen) == {8}
    assert (
        solution.backward.evaluations <= solution.backward.vjps <= 2 * solution.backward.evaluations
    )


def test_memory_does_not_grow_with_the_steps():
    saved = []
    problem = linear()
    for dt in (0.1, 0.001):
        held: list[int] = []

        def pack(tensor, held=held):
            held.append(tensor.numel())
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
            ic.integrate(
                problem.field,
                problem.z0,
                problem.x,
                times=GRID,
                solver=ic.RK4(dt=dt, max_steps=5000),
                gradient=ic.Adjoint(),
            )
        saved.append(sum(held))
    assert saved[0] == saved[1] > 0


def test_one_nan_sample_leaves_the_others_gradients_unchanged():
    problem = driven()
    others = [0, 1, 2, 4, 5, 6, 7]
    results = []
    for broken in (False, True):
        z0, x = problem.z0.detach().clone(), problem.x.detach().clone()
        if broken:
            x[3, 1] = torch.nan
        z0.requires_grad_()
        x.requires_grad_()
        solution = ic.integrate(
            problem.field,
            z0,
            x,
            times=GRID,
            solver=ic.Tsit5(),
            gradient=ic.Adjoint(),
            on_failure="ignore",
        )
        results.append(torch.autograd.grad(solution.z.square().sum(), [z0, x]))
        assert solution.converged.tolist() == [not broken or i != 3 for i in range(8)]
        if broken:  # it has no graph, and there is nothing to warn of
            assert not any(bool(gradient[3].any()) for gradient in results[-1])
    for clean, found in zip(*results, strict=True):
        assert torch.allclose(found[others], clean[others], rtol=1e-12)


def test_a_nan_in_the_incoming_gradient_stays_in_its_sample():
    problem = driven()
    clean = gradients(problem, ic.Tsit5(), ic.Adjoint(), torch.ones_like(weights_like(problem)))[1]
    weights = torch.ones_like(weights_like(problem))
    weights[1, 3] = torch.nan
    _, found = gradients(problem, ic.Tsit5(), ic.Adjoint(), weights)
    others = [0, 1, 2, 4, 5, 6, 7]
    for a, b in zip(found[:2], clean[:2], strict=True):
        assert torch.allclose(a[others], b[others], rtol=1e-12)
    assert all(bool(gradient[3].isnan().all()) for gradient in found[:2])
    assert bool(found[2].isnan().any()), "what all samples share says that one is not finite"


@pytest.mark.parametrize(
    ("spread", "solver"),
    [(3, ic.Tsit5(rtol=1e-6)), (30, ic.Tsit5(rtol=1e-6)), (30, ic.Bosh3())],
    ids=str,
)
def test_different_time_scales_are_exact_or_said_to_be_inexact(spread, solver):
    """On such a batch the way back of every sample that contracts strongly is lost: no silence
    about it."""
    rate = torch.logspace(
        0, torch.log10(torch.tensor(float(spread))).item(), 16, dtype=torch.float64
    )[:, None]
    weight = (
        torch.randn(8, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(1)) / 8**0.5
    ).requires_grad_()
    z0, grid = inputs(16, 8).requires_grad_(), torch.tensor([0.0, 1.0], dtype=torch.float64)
    field = lambda t, z, x: rate * (torch.tanh(z @ weight) - z)  # noqa: E731
    exact = ic.integrate(field, z0, times=grid, solver=ic.Tsit5(**TIGHT), gradient=ic.Unrolled())
    expected = torch.autograd.grad(exact.z[-1].square().sum(), [weight, z0])
    solution = ic.integrate(field, z0, times=grid, solver=solver, gradient=ic.Adjoint())
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        found = torch.autograd.grad(solution.z[-1].square().sum(), [weight, z0])
    messages = [str(w.message) for w in caught]
    assert messages == [m for m in messages if "unrolled" in m or "incomplete" in m]
    assert bool(messages) == (spread == 30)
    assert messages or relative_error(found, expected) < 1e-3


def test_a_way_back_that_runs_out_of_steps_is_said():
    problem = linear()
    few = ic.Adjoint(ic.Tsit5(rtol=1e-9, max_steps=3))
    solution = ic.integrate(
        problem.field,
        problem.z0,
        problem.x,
        times=GRID,
        solver=ic.Tsit5(),
        gradient=few,
        on_failure="ignore",
    )
    with pytest.warns(ic.ConvergenceWarning, match="8 of 8 samples"):
        torch.autograd.grad(solution.z.sum(), problem.z0)
    assert known(solution.backward.status).tolist() == [ic.Status.MAX_STEPS] * 8


def test_a_way_forward_that_runs_out_of_steps_is_said_again():
    problem = linear()
    solution = ic.integrate(
        problem.field,
        problem.z0,
        problem.x,
        times=GRID,
        solver=ic.Tsit5(max_steps=2),
        gradient=ic.Adjoint(),
        on_failure="ignore",
    )
    with pytest.warns(ic.ConvergenceWarning, match="8 of 8 samples"):
        torch.autograd.grad(solution.z.sum(), problem.z0)


def test_a_second_derivative_is_an_error_not_a_wrong_number():
    problem = linear()
    solution = ic.integrate(
        problem.field, problem.z0, problem.x, times=GRID, solver=ic.RK4(), gradient=ic.Adjoint()
    )
    with pytest.raises(ic.GradientError, match="Unrolled"):
        torch.autograd.grad(solution.z.sum(), problem.x, create_graph=True)


def test_a_parameter_changed_before_the_backward_pass_is_an_error():
    problem = linear()
    solution = ic.integrate(
        problem.field, problem.z0, problem.x, times=GRID, solver=ic.RK4(), gradient=ic.Adjoint()
    )
    with torch.no_grad():
        problem.captured[0].mul_(1.1)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        torch.autograd.grad(solution.z.sum(), problem.x)


def test_a_root_solver_has_no_trajectory():
    x = inputs().requires_grad_()
    with pytest.raises(ic.GradientError, match="Implicit"):
        ic.fixed_point(
            Cell(), torch.zeros_like(x), x, solver=ic.SteadyState(), gradient=ic.Adjoint()
        )


def test_a_black_box_goes_forward_and_another_solver_back():
    problem = driven()
    weights = weights_like(problem)
    expected = torch.autograd.grad((problem.trajectory(GRID) * weights).sum(), problem.leaves)
    _, found = gradients(problem, BlackBox(), ic.Adjoint(ic.Tsit5(**TIGHT)), weights)
    assert relative_error(found, expected) < 1e-6
    with pytest.raises(ic.GradientError, match="does not show its steps"):
        gradients(problem, BlackBox(), ic.Adjoint(), weights)


@dataclass(frozen=True, kw_only=True)
class StackedHeun(EqualSteps[Tensor]):
    """Somebody's solver, which stacks its stages: those it names are not the tensors that the
    system returned."""

    names: Literal["all", "reversed", "second"] = "all"

    def step(self, system: System, t: Tensor, dt: Tensor, z: Tensor, state: Tensor) -> Step:
        width = dt[:, None]
        stages = torch.stack((state, system.velocity(t + dt, z + width * state)))
        named = {"all": stages, "reversed": stages.flip(0), "second": stages[1:]}[self.names]
        weights = [0.5] * len(named)
        return Step(z + width * stages.mean(0), stages=named.unbind(0), weights=weights)


def test_stages_may_be_copies():
    problem = driven()
    weights = weights_like(problem)
    _, expected = gradients(problem, ic.Heun(dt=0.04), ic.Adjoint(), weights)
    _, found = gradients(problem, StackedHeun(dt=0.04), ic.Adjoint(), weights)
    assert relative_error(found, expected) < 1e-12


@pytest.mark.parametrize(
    ("names", "message"),
    [
        ("reversed", "2 stages and 2 weights, and they are not the velocities of the step"),
        ("second", "1 stages and 1 weights, and 2 velocities were evaluated"),
    ],
)
def test_stages_that_are_not_those_of_the_step_are_an_error(names, message):
    problem = driven()
    with pytest.raises(ic.GradientError, match=message):
        gradients(problem, StackedHeun(names=names), ic.Adjoint(), weights_like(problem))


def test_stages_that_are_equal_keep_their_times():
    """dz/dt = sin(w t) at w = 0: all velocities are zero, and dz(1)/dw = 1/2 is not."""
    w = torch.zeros((), dtype=torch.float64, requires_grad=True)
    z0, grid = torch.zeros(2, 1, dtype=torch.float64), torch.tensor([0.0, 1.0], dtype=torch.float64)
    for solver in (StackedHeun(), ic.Tsit5(), ic.ESDIRK()):
        z = ic.integrate(
            lambda t, z, x: torch.sin(w * t) + 0 * z,
            z0,
            times=grid,
            solver=solver,
            gradient=ic.Adjoint(),
        ).z
        assert torch.autograd.grad(z[-1, 0].sum(), w)[0].item() == pytest.approx(0.5, rel=1e-12)


@pytest.mark.parametrize("gradient", [ic.Adjoint(ic.Tsit5(**TIGHT)), ic.Checkpointed()])
def test_a_tensor_that_is_in_x_twice_gets_both_gradients(gradient):
    rate = inputs(2, 3).abs().requires_grad_()
    z0, grid = torch.ones_like(rate), torch.tensor([0.0, 1.0], dtype=torch.float64)
    z = ic.integrate(
        lambda t, z, x: -(x["a"] + 2 * x["b"]) * z,
        z0,
        {"a": rate, "b": rate},
        times=grid,
        solver=ic.Tsit5(**TIGHT),
        gradient=gradient,
    ).z[-1]
    found = torch.autograd.grad(z.sum(), rate)[0]
    assert torch.allclose(found, -3 * torch.exp(-3 * rate.detach()), rtol=1e-6)


def test_no_graph_and_nothing_to_differentiate():
    problem = linear()
    with torch.no_grad():
        assert not ic.integrate(
            problem.field, problem.z0, problem.x, times=GRID, gradient=ic.Adjoint()
        ).z.requires_grad
    z0 = problem.z0.detach().requires_grad_()
    solution = ic.integrate(
        lambda t, z, x: torch.cos(t).expand_as(z), z0, times=GRID, gradient=ic.Adjoint()
    )
    (found,) = torch.autograd.grad(solution.z.sum(), z0)
    assert torch.equal(found, torch.full_like(z0, 4.0))
    plain = ic.integrate(lambda t, z, x: -z, z0.detach(), times=GRID, gradient=ic.Adjoint())
    assert not plain.z.requires_grad


def test_a_complex_state():
    z0 = torch.tensor([[1 + 1j], [2j]], dtype=torch.complex128, requires_grad=True)
    rate = torch.tensor(0.5 + 2j, dtype=torch.complex128, requires_grad=True)
    solution = ic.integrate(
        lambda t, z, x: rate * z, z0, times=GRID, solver=ic.Tsit5(**TIGHT), gradient=ic.Adjoint()
    )
    found = torch.autograd.grad((solution.z[-1].abs() + solution.z[1].real).sum(), [z0, rate])
    exact = z0 * torch.exp(rate * GRID)[:, None, None]
    expected = torch.autograd.grad((exact[-1].abs() + exact[1].real).sum(), [z0, rate])
    for a, b in zip(found, expected, strict=True):
        assert torch.allclose(a, b, rtol=1e-6)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_lower_precision(dtype):
    z0 = torch.tensor([[1.0, 2.0], [0.5, -1.0]], dtype=dtype, requires_grad=True)
    rate = torch.tensor([0.5, 1.0], dtype=dtype, requires_grad=True)
    solution = ic.integrate(
        lambda t, z, x: -rate * z, z0, times=GRID, solver=ic.RK4(), gradient=ic.Adjoint()
    )
    found = torch.autograd.grad(solution.z[-1].sum(), [z0, rate])
    exact = z0.double() * torch.exp(-rate.double() * 1.2)
    expected = torch.autograd.grad(exact.sum(), [z0, rate])
    assert [g.dtype for g in found] == [dtype] * 2
    assert relative_error(found, [g.double() for g in expected]) < (
        1e-5 if dtype == torch.float32 else 5e-2
    )


def test_a_pytree_state():
    start = inputs(n=4).requires_grad_()
    rate = torch.tensor(0.7, dtype=torch.float64, requires_grad=True)
    found = []
    for gradient in (ic.Unrolled(), ic.Adjoint()):
        z0 = {"p": start[:, :2, None], "q": start[:, 2:, None]}
        swing = lambda t, z, x: {"p": rate * z["q"], "q": -torch.sin(z["p"])}  # noqa: E731
        z = ic.integrate(swing, z0, times=GRID, solver=ic.Tsit5(**TIGHT), gradient=gradient).z
        found.append(torch.autograd.grad(z["p"][-1].sum() + z["q"].square().sum(), [start, rate]))
    assert relative_error(found[1], found[0]) < 1e-6


@pytest.mark.parametrize(("solver", "stages"), [(ic.Tsit5(rtol=1e-5), 7), (ic.RK4(dt=0.1), 4)])
def test_between_many_output_times_the_way_back_takes_one_step_each(solver, stages):
    """The size of the step before the jump is kept: no segment begins with a guess."""
    spent = []
    for count in (2, 201):
        problem, grid = logistic(), torch.linspace(0, 2, count, dtype=torch.float64)
        lean, exact = (
            gradients(problem, solver, gradient, torch.ones(()), grid)
            for gradient in (ic.Adjoint(), ic.Checkpointed())
        )
        for found, expected in zip(lean[1], exact[1], strict=True):
            assert relative_error([found], [expected]) < 1e-3
        spent.append((lean[0].backward.evaluations, exact[0].backward.evaluations))
    (_, few), (many, same) = spent
    assert stages * 200 <= many <= stages * 200 + 30
    assert same <= few + 5
