"""A compiled trajectory of large states with Unrolled: its steps save what their products need."""

from __future__ import annotations

import pytest
import torch
from support.trajectories import inputs, layer, same
from torch import nn

import implicitcore as ic
from implicitcore.graph import integration, trajectory

TIMES = torch.linspace(0, 2, 7, dtype=torch.float64)
SLOW = pytest.mark.slow
SOLVERS = [
    ic.Euler(),
    pytest.param(ic.RK4(max_steps=3), marks=SLOW),
    ic.Bosh3(controller="pid"),
    pytest.param(ic.Tsit5(max_steps=5), marks=SLOW),
    ic.Fehlberg45(),
    pytest.param(ic.DOP853(), marks=SLOW),
    ic.Adams(),
]


@pytest.fixture
def large(monkeypatch: pytest.MonkeyPatch, plainly: None) -> None:
    """All states are large."""
    monkeypatch.setattr(trajectory, "LARGE", 0)


def unrolled(solver, field=None, **options) -> ic.ImplicitLayer:
    return layer(solver, field, gradient=ic.Unrolled(), **options)


def results(modules, x, parameters, times=None):
    """What each module finds, and the gradients."""
    found = []
    for module in modules:
        leaf = x.clone().requires_grad_()
        solution = module.solve(leaf, times=times)
        wanted = [leaf, *parameters]
        gradient = torch.autograd.grad(solution.z.sin().sum(), wanted, materialize_grads=True)
        found.append((solution, [solution.z, *gradient]))
    return found


def plan_of(compiled) -> trajectory.TrajectoryPlan:
    (found,) = compiled.plans.values()
    assert isinstance(found, trajectory.TrajectoryPlan)
    return found


@pytest.mark.usefixtures("large")
@pytest.mark.parametrize("times", [None, TIMES, TIMES[[0, 3]]], ids=["horizon", "times", "ends"])
@pytest.mark.parametrize("solver", SOLVERS, ids=str)
def test_the_gradient_is_that_of_the_steps_and_no_step_is_taken_again(solver, times):
    eager = unrolled(solver)
    compiled = ic.compile(eager)
    for batch in (1, 5):
        (one, expected), (other, found) = results(
            (eager, compiled), inputs(batch), [*eager.parameters()], times
        )
        assert torch.equal(one.steps, other.steps) and torch.equal(one.status, other.status)
        same(expected, found, rtol=1e-10, atol=1e-12)
        plan = plan_of(compiled)
        cost = integration.evaluations_of(solver, between=plan.between) + plan.anew
        # A step that every sample refused moves nothing, and has no product.
        spared = int(one.steps.max()) * cost + (not plan.anew) - other.backward.vjps
        assert spared >= 0 and spared % cost == 0
        assert not spared or isinstance(solver, ic.Adams) or batch == 1
        assert other.backward.evaluations == (not plan.anew)  # for the first velocity


@pytest.mark.usefixtures("large")
def test_the_gradient_is_that_of_a_dense_computation():
    matrix = torch.tensor([[-1.0, 2.0], [-0.5, -0.3]], dtype=torch.float64, requires_grad=True)
    field = nn.Module()
    field.a = nn.Parameter(matrix.detach())
    module = unrolled(ic.Tsit5(rtol=1e-10, atol=1e-11), lambda t, z, x: z @ field.a.T, horizon=1.5)
    x = torch.randn(3, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    ((_, (_, *found)),) = results([ic.compile(module)], x, [field.a])
    leaf = x.clone().requires_grad_()
    exact = leaf @ torch.linalg.matrix_exp(1.5 * matrix).T
    expected = torch.autograd.grad(exact.sin().sum(), [leaf, matrix])
    same(expected, found, rtol=1e-8, atol=1e-8)


@pytest.mark.usefixtures("large")
@pytest.mark.parametrize("times", [None, TIMES])
@pytest.mark.parametrize("failed", [[1], [0, 1, 2]])
@pytest.mark.parametrize("on_failure", ["ignore", "mask"])
@pytest.mark.parametrize("solver", [ic.Heun(), ic.Bosh3()], ids=str)
def test_a_sample_that_is_not_finite_leaves_no_nan_in_the_others(solver, on_failure, failed, times):
    holder = nn.Module()
    holder.weight = nn.Parameter(torch.eye(4, dtype=torch.float64))

    def field(t, z, x):
        return torch.where(x > 5, torch.nan, torch.tanh(z @ holder.weight)) + x

    eager = unrolled(solver, field, on_failure=on_failure, start=ic.Zeros((4,)))
    x = inputs(3).clamp(max=4)
    x[failed, 2] = 9.0
    found = []
    for module in (eager, ic.compile(eager)):
        leaf = x.clone().requires_grad_()
        solution = module.solve(leaf, times=times)
        assert solution.status.nonzero().flatten().tolist() == failed
        z, wanted = solution.z, [leaf, holder.weight]
        kept = [torch.zeros_like(tensor) for tensor in wanted]
        if z.requires_grad:
            total = z.nan_to_num().sum()
            kept = torch.autograd.grad(total, wanted, materialize_grads=True)
        assert all(tensor.isfinite().all() for tensor in kept)
        found.append([z, *kept])
    same(*found, rtol=1e-11, atol=1e-12, equal_nan=True)


@pytest.mark.usefixtures("large")
@pytest.mark.parametrize("solver", [ic.Bosh3(first_step=1.5), ic.Adams(first_step=1.5)], ids=str)
def test_a_step_that_was_refused_as_it_left_the_domain_of_f_leaves_no_nan(solver):
    """What it saved is not finite, and its sample is: of one sample, and beside another."""
    scale = nn.Linear(1, 1, bias=False).double()
    nn.init.ones_(scale.weight)
    eager = unrolled(solver, lambda t, z, x: -scale(torch.sqrt(z - 0.3 * x)), horizon=1.5)
    for start in ([[1.0]], [[1.0], [100.0], [1.3]]):
        x = torch.tensor(start, dtype=torch.float64)
        (one, expected), (_, found) = results((eager, ic.compile(eager)), x, [scale.weight])
        assert not one.status.any()
        assert all(tensor.isfinite().all() for tensor in found)
        same(expected, found, rtol=1e-9, atol=1e-11)


@pytest.mark.usefixtures("large")
def test_a_coupled_batch_is_one_sample():
    eager = unrolled(ic.Bosh3(), lambda t, z, x: (z.mean(0) - z) * x, coupled=True)
    (_, expected), (_, found) = results((eager, ic.compile(eager)), inputs(4), [])
    same(expected, found, rtol=1e-10, atol=1e-12)


@pytest.mark.usefixtures("large")
@pytest.mark.parametrize("solver", [ic.Euler(), ic.Bosh3()], ids=str)
@pytest.mark.parametrize("times", [None, TIMES])
def test_what_has_no_row_for_each_sample_is_not_saved(solver, times):
    """Then the steps are taken again: heads of attention are a part of the batch there."""

    def field(t, z, x):
        rows = (z.view(-1, 2) * x.view(-1, 2)).sin()
        return torch.bmm(rows.view(-1, 1, 2), rows.exp().view(-1, 2, 1)).view(-1, 2).repeat(1, 2)

    eager = unrolled(solver, field)
    compiled = ic.compile(eager)
    (_, expected), (found, gradient) = results((eager, compiled), inputs(3) / 9, [], times)
    same(expected, gradient, rtol=1e-10, atol=1e-12)
    assert not plan_of(compiled)._loop.serves
    assert found.backward.evaluations == found.backward.vjps


@pytest.mark.usefixtures("plainly")
@pytest.mark.parametrize("gradient", [ic.Unrolled(), ic.Checkpointed()], ids=str)
def test_small_steps_and_those_of_checkpointed_are_taken_again(gradient):
    eager = layer(ic.Heun(dt=0.5), gradient=gradient)
    for batch, large in ((3, False), (2000, True)):
        compiled = ic.compile(eager)
        x = torch.ones(batch, 4, dtype=torch.float64).requires_grad_()
        found = compiled.solve(x)
        found.z.sum().backward()
        again = found.backward.evaluations == found.backward.vjps
        assert again == (not large or gradient == ic.Checkpointed())


@pytest.mark.usefixtures("large")
def test_nothing_is_saved_for_states_that_get_no_gradient():
    compiled = ic.compile(unrolled(ic.Bosh3()))
    with torch.no_grad():
        z = compiled(inputs(3), times=TIMES)
    assert "_loop" not in plan_of(compiled).__dict__
    expected = compiled(inputs(3), times=TIMES)
    torch.testing.assert_close(z, expected, rtol=1e-12, atol=1e-12)
    assert "_loop" in plan_of(compiled).__dict__


@pytest.mark.slow(60)
@pytest.mark.filterwarnings("ignore")  # of torch, about its own parts
@pytest.mark.usefixtures("only_for_any_size")
@pytest.mark.timeout(1500)  # the compiler's, on a machine that is busy
@pytest.mark.parametrize(
    ("solver", "times"), [(ic.Heun(), None), (ic.Bosh3(), TIMES), (ic.Adams(), None)], ids=str
)
def test_one_graph_each_serves_every_batch(solver, times, monkeypatch):
    monkeypatch.setattr(trajectory, "LARGE", 0)
    torch._dynamo.reset()
    eager = unrolled(solver)
    compiled = ic.compile(eager)
    for batch in (5, 3, 4):
        (one, expected), (other, found) = results(
            (eager, compiled), inputs(batch), [*eager.parameters()], times
        )
        assert torch.equal(one.steps, other.steps)
        same(expected, found, rtol=1e-8, atol=1e-9)
