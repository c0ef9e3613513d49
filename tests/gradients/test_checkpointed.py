"""Checkpointed against unrolled, the bound on its steps, and its memory."""

from __future__ import annotations

from functools import cache, lru_cache
from math import comb

import pytest
import torch
from support.trajectory_solvers import BlackBox, stepwise
from torch import nn
from torch.nn.utils import parametrizations

import implicitcore as ic
from implicitcore.gradients.checkpoints import Checkpoints, split
from implicitcore.testing.dense import relative_error
from implicitcore.testing.problems import Cell, inputs
from implicitcore.testing.trajectories import driven, linear, logistic
from implicitcore_lab.memory import peak_bytes

BUDGETS = [None, 1, 3]
each_budget = pytest.mark.parametrize("budget", BUDGETS)
each_solver = pytest.mark.parametrize("solver", stepwise(), ids=str)
GRID = torch.tensor([0.0, 0.35, 0.5, 1.0], dtype=torch.float64)


def solved(field, z0, x, wrt, *, solver, gradient, grid=GRID):  # noqa: PLR0913
    """A solution, and the gradient of a loss on every output time."""
    solution = ic.integrate(
        field, z0, x, times=grid, solver=solver, gradient=gradient, on_failure="ignore"
    )
    weights = torch.linspace(-1, 2, solution.z.numel(), dtype=solution.z.dtype).reshape(
        solution.z.shape
    )
    gradients = torch.autograd.grad(
        (solution.z * weights).real.sum(), wrt, allow_unused=True, retain_graph=True
    )
    return solution, gradients, weights


def same_states(found):
    assert torch.equal(*(solution.z.detach().nan_to_num() for solution, _, _ in found))
    assert torch.equal(found[0][0].steps, found[1][0].steps)
    return found


def both(field, z0, x, wrt, *, solver, grid=GRID, budget=None):  # noqa: PLR0913
    """That of unrolling and that by checkpoints."""
    strategies = ic.Unrolled(), ic.Checkpointed(budget)
    given = {"solver": solver, "grid": grid}
    return same_states([solved(field, z0, x, wrt, gradient=each, **given) for each in strategies])


@lru_cache(maxsize=1)  # the budgets of a solver come one after the other
def unrolled(solver):
    """Rates from 1 to 30 in one batch, so that its samples take unlike steps and reject unlike
    ones; several output times."""
    problem = logistic(fastest=30.0)
    given = problem.field, problem.z0, problem.x, problem.leaves
    return given, solved(*given, solver=solver, gradient=ic.Unrolled())


@each_budget
@each_solver
def test_the_gradient_is_that_of_unrolled(solver, budget):
    given, reference = unrolled(solver)
    by_checkpoints = solved(*given, solver=solver, gradient=ic.Checkpointed(budget))
    (whole, expected, _), (solution, found, _) = same_states([reference, by_checkpoints])
    assert relative_error(found, expected) < 1e-12
    assert whole.backward.vjps == 0 < solution.backward.vjps <= solution.backward.evaluations
    # One finds what the field depends on, and one may ask whether it mixes samples.
    assert solution.evaluations <= whole.evaluations + 2


@each_solver
@pytest.mark.parametrize("problem", [driven(), linear()], ids=str)
def test_backwards_in_time(problem, solver):
    grid = torch.tensor([0.0, -0.2, -0.5], dtype=torch.float64)
    (_, expected, _), (_, found, _) = both(
        problem.field, problem.z0, problem.x, problem.leaves, solver=solver, grid=grid, budget=2
    )
    assert relative_error(found, expected) < 1e-12


@pytest.mark.parametrize("solver", [ic.Tsit5(rtol=1e-6), ic.RK4()], ids=str)
def test_a_module_a_pytree_and_what_the_field_captured(solver):
    """x made of a leaf and a computed value; a captured value that was computed before, whose own
    graph is still whole afterwards."""
    net, a = Cell(), inputs(seed=3).requires_grad_()
    shift = torch.tanh(inputs(seed=4).requires_grad_() @ net.weight)
    start = inputs(seed=2).requires_grad_()

    def field(t, z, x):
        return {
            "p": net(z["q"], x["in"]) * torch.cos(t),
            "q": shift - z["p"] * x["scale"],
        }

    found = []
    for gradient in (ic.Unrolled(), ic.Checkpointed(2)):
        x, z0 = {"in": a, "scale": a[:, :1].exp()}, {"p": start, "q": start * 2}
        z = ic.integrate(field, z0, x, times=GRID, solver=solver, gradient=gradient).z
        loss = z["p"].square().sum() + z["q"][1].sum() + shift.sum()
        found.append(torch.autograd.grad(loss, [start, a, *net.parameters()], retain_graph=True))
    assert relative_error(found[1], found[0]) < 1e-12


def test_one_f_in_a_solve_and_its_way_back():
    """Dropout masks and a spectral norm: drawn and computed once, and replayed."""

    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.drop = ic.VariationalDropout(0.5)
            self.linear = parametrizations.spectral_norm(nn.Linear(6, 6, dtype=torch.float64))

        def forward(self, t, z, x):
            return self.drop(torch.tanh(self.linear(z))) - z

    z0, net = inputs().requires_grad_(), Net()
    found = []
    for gradient in (ic.Unrolled(), ic.Checkpointed(2)):
        torch.manual_seed(3)
        # the power iteration of a training module moves from one solve to the next
        net.linear.eval()
        z = ic.integrate(net, z0, times=GRID, solver=ic.Tsit5(), gradient=gradient).z
        found.append([z, *torch.autograd.grad(z.square().sum(), [z0, *net.parameters()])])
    assert relative_error(found[1], found[0]) < 1e-12


@each_budget
def test_samples_that_do_not_arrive(budget):
    """One runs out of steps, one is not finite: the gradient is that of the states which are
    returned."""
    problem = driven()
    z0 = problem.z0.detach().clone()
    z0[3, 0] = torch.nan
    z0.requires_grad_()

    def field(t, z, x):
        return torch.where(t < 0.8, z * x, z * x * 1e3)

    few = ic.Tsit5(rtol=1e-8, max_steps=12)
    (_, expected, _), (solution, found, _) = both(
        field, z0, problem.x, [z0, problem.x], solver=few, budget=budget
    )
    assert set(solution.status.tolist()) == {ic.Status.MAX_STEPS, ic.Status.NON_FINITE}
    for a, b in zip(found, expected, strict=True):
        assert torch.allclose(a, b, rtol=1e-12, equal_nan=True)


def test_nothing_but_nan_and_an_empty_batch():
    for z0 in (torch.full((2, 3), torch.nan), torch.zeros(0, 3)):
        z0.requires_grad_()
        z = ic.integrate(
            lambda t, z, x: -z, z0, times=GRID, gradient=ic.Checkpointed(), on_failure="ignore"
        ).z
        (found,) = torch.autograd.grad(z.sum(), z0)
        assert torch.equal(found, torch.zeros_like(z0))  # as that of a NaN among other samples


@pytest.mark.parametrize("times", [[0.0, 1.0], [1.0, 1.0]])
@pytest.mark.parametrize("gradient", ["unrolled", "checkpointed", "adjoint"])
def test_an_empty_batch_has_a_gradient_of_zero(gradient, times):
    z0, x = (torch.zeros(0, 3, requires_grad=True) for _ in range(2))
    weight, cell = torch.ones(3, requires_grad=True), nn.Linear(3, 3)
    z = ic.integrate(lambda t, z, x: cell(z) * weight + x, z0, x, times=times, gradient=gradient).z
    wrt = [z0, x, weight, *cell.parameters()]
    for found, tensor in zip(torch.autograd.grad(z.sum(), wrt), wrt, strict=True):
        assert torch.equal(found, torch.zeros_like(tensor))


def test_two_backward_passes_and_a_second_derivative():
    problem = linear()
    _, (solution, found, weights) = both(
        problem.field, problem.z0, problem.x, problem.leaves, solver=ic.Tsit5(), budget=2
    )
    before = solution.backward.evaluations
    again = torch.autograd.grad((solution.z * weights).sum(), problem.leaves, retain_graph=True)
    assert all(torch.equal(a, b) for a, b in zip(found, again, strict=True))
    assert (
        solution.backward.evaluations > 2 * before
    )  # the states are gone: the first advance is taken again
    with pytest.raises(ic.GradientError, match="Unrolled"):
        torch.autograd.grad(solution.z.sum(), problem.x, create_graph=True)


def test_no_graph():
    problem = linear()
    with torch.no_grad():
        assert not ic.integrate(
            problem.field, problem.z0, problem.x, times=GRID, gradient=ic.Checkpointed()
        ).z.requires_grad


def test_a_complex_state():
    z0 = torch.tensor([[1 + 1j], [2j]], dtype=torch.complex128, requires_grad=True)
    rate = torch.tensor(0.5 + 2j, dtype=torch.complex128, requires_grad=True)
    (_, expected, _), (_, found, _) = both(
        lambda t, z, x: rate * z, z0, None, [z0, rate], solver=ic.Tsit5(), budget=2
    )
    assert all(torch.allclose(a, b, rtol=1e-12) for a, b in zip(found, expected, strict=True))


def test_what_has_no_steps_is_refused():
    x = inputs().requires_grad_()
    with pytest.raises(ic.GradientError, match="Anderson finds an equilibrium; use Implicit"):
        ic.fixed_point(
            Cell(), torch.zeros_like(x), x, solver=ic.Anderson(), gradient=ic.Checkpointed()
        )
    with pytest.raises(ic.GradientError, match="BlackBox shows none"):
        ic.integrate(
            lambda t, z, x: -z, x, times=GRID, solver=BlackBox(), gradient=ic.Checkpointed()
        )


@cache
def fewest(steps: int, places: int) -> int:
    """The least that any schedule takes to walk back over so many steps, with so many states kept,
    the first one included."""
    if steps <= 1:
        return 0
    if places == 1:
        return steps * (steps - 1) // 2
    return min(m + fewest(steps - m, places - 1) + fewest(m, places) for m in range(1, steps))


def walk(steps: int, budget: int | None) -> tuple[int, int]:
    """What the way back over so many steps takes, and the most states kept at once. A state is its
    own index."""
    kept, taken, most = Checkpoints[int](budget), 0, 0

    def advance(state: int, step: int, ahead: int) -> int:
        nonlocal taken
        assert state == step
        taken += ahead
        return state + ahead

    for index in range(steps):
        kept.offer(index, index)
        most = max(most, len(kept.kept) - 1)
    for index in reversed(range(steps)):
        assert kept.take(index, advance) == index
        most = max(most, len(kept.kept) - 1)
    assert [state.step for state in kept.kept] == [0]
    return taken, most


def test_the_rule_for_the_way_back_is_the_best():
    for places in range(2, 7):
        for steps in range(2, 60):
            m = split(steps, places)
            assert m + fewest(steps - m, places - 1) + fewest(m, places) == fewest(steps, places)


@pytest.mark.parametrize("budget", [1, 2, 3, 5, 8, 20])
def test_the_steps_stay_within_the_binomial_bound(budget):
    """N <= C(c + r, c): no step is taken more than r times on average, though N was not known
    beforehand."""
    for steps in (1, 2, 10, 37, 100, 240):
        taken, most = walk(steps, budget)
        repetitions = next(r for r in range(steps + 1) if comb(budget + r, budget) >= steps)
        assert most <= budget
        assert steps + taken <= repetitions * steps + 1
        assert steps + taken <= 1.35 * (fewest(steps, budget + 1) + 1)


def test_without_a_budget_each_step_is_taken_about_twice_and_the_states_are_few():
    for steps in (10, 12, 100, 1000, 5000):
        taken, most = walk(steps, None)
        assert taken <= (1.3 * steps if steps > 12 else 0)
        assert most <= max(2 * steps**0.5 + 1, 12)


@pytest.mark.parametrize("budget", BUDGETS)
def test_the_record_counts_what_was_spent(budget):
    seen = []

    def field(t, z, x):
        seen.append(torch.is_grad_enabled())
        return torch.tanh(z) * x

    x = inputs().requires_grad_()
    solution = ic.integrate(
        field,
        inputs(seed=4),
        x,
        times=GRID,
        solver=ic.RK4(dt=0.01),
        gradient=ic.Checkpointed(budget),
    )
    assert solution.evaluations == len(seen) == 401
    seen.clear()
    torch.autograd.grad(solution.z.sum(), x)
    assert solution.backward.evaluations == len(seen) == 400 + 4 * walk(100, budget)[0]
    assert solution.backward.vjps == sum(seen) == 400


def spent(gradient, dt):
    """Peak bytes of a forward and a backward pass with steps of dt; a state takes 8 KiB."""
    weight = (torch.eye(64, dtype=torch.float64) * 0.1).requires_grad_()
    z0 = inputs(16, 64).requires_grad_()
    grid = torch.tensor([0.0, 1.0], dtype=torch.float64)

    def work():
        if isinstance(gradient, ic.Implicit):
            solver = ic.SteadyState(ode_solver=ic.Euler(dt=0.01), tol=0.0, max_steps=round(1 / dt))
            z = ic.fixed_point(
                lambda z, x: torch.tanh(z @ weight) + 1,
                z0,
                solver=solver,
                gradient=gradient,
                on_failure="ignore",
            ).z
        else:
            z = ic.integrate(
                lambda t, z, x: torch.tanh(z @ weight),
                z0,
                times=grid,
                solver=ic.Euler(dt=dt),
                gradient=gradient,
                on_failure="ignore",
            ).z[-1]
        torch.autograd.grad(z.square().sum(), [weight])

    return peak_bytes(work, torch.device("cpu"))


STATE = 16 * 64 * 8


@pytest.mark.parametrize("gradient", [ic.Adjoint(), ic.Implicit()], ids=lambda g: type(g).__name__)
def test_memory_does_not_grow_with_the_steps(gradient):
    few, many = spent(gradient, 0.1), spent(gradient, 0.001)
    assert many <= few + STATE


def test_memory_stays_within_the_budget():
    few, many = spent(ic.Checkpointed(1), 0.1), spent(ic.Checkpointed(16), 0.001)
    choices = 1000 * 16 * (8 + 1 + 1)  # dt, arrives and accept of each sample
    clocks = 8 * 16 * 8  # a sample's time, step size, error, counts
    assert many <= few + choices + 16 * (STATE + clocks)
    assert many < 100 * STATE
