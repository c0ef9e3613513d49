"""A compiled layer at several output times against the layer: states, statuses, gradients."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from support.output_times import TIMES, cotangent, filled, of_each
from support.trajectories import inputs, layer, same
from torch import nn

import implicitcore as ic
from implicitcore.graph import integration

# torch's own: Dynamo looks at the .grad of what is no leaf.
pytestmark = [
    pytest.mark.usefixtures("plainly"),
    pytest.mark.filterwarnings(
        "ignore:The .grad attribute of a Tensor that is not a leaf:UserWarning"
    ),
]
SLOW = pytest.mark.slow
SOLVERS = [
    ic.Euler(),
    pytest.param(ic.RK4(dt=0.3), marks=SLOW),
    ic.Bosh3(controller="pid"),
    pytest.param(ic.Tsit5(), marks=SLOW),
    ic.Bosh3(max_steps=5),
    ic.Fehlberg45(),
    ic.DOP853(),
    ic.Adams(),
]


def reference(eager: ic.ImplicitLayer, x: torch.Tensor, times: torch.Tensor):
    """The trajectory, and its states at the times: with equal steps those of the whole span."""
    if isinstance(eager.solver, ic.Euler | ic.RK4):
        field: Any = eager.dynamics.field
        options = {"solver": eager.solver, "dense": True, "gradient": ic.Unrolled()}
        found = ic.integrate(field, x, x, times=times[..., [0, -1]], **options, on_failure="ignore")
        return found, found.interpolate(times)
    found = eager.solve(x, times=times)
    return found, found.z


def compare(eager: ic.ImplicitLayer, compiled, x: torch.Tensor, times: torch.Tensor) -> None:
    leaf, other = x.clone().requires_grad_(), x.clone().requires_grad_()
    found, z = reference(eager, leaf, times)
    graph = compiled.solve(other, times=times)
    with torch.no_grad():
        inlined = compiled.inlined[0].solve(x, times=times)
    for one in (graph, inlined):
        assert isinstance(one, ic.Trajectory)
        assert torch.equal(one.steps, found.steps) and torch.equal(one.status, found.status)
        assert torch.equal(one.times, times)
        torch.testing.assert_close(one.z, z, rtol=1e-11, atol=1e-12)
    weights = [*eager.parameters()]
    expected = torch.autograd.grad(z, [leaf, *weights], cotangent(z))
    gradient = torch.autograd.grad(graph.z, [other, *weights], cotangent(z))
    same(expected, gradient, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("solver", SOLVERS, ids=str)
def test_the_states_and_their_gradient_are_those_of_the_layer(solver):
    eager = layer(solver)
    compiled = ic.compile(eager)
    compare(eager, compiled, inputs(5), TIMES)
    compare(eager, compiled, inputs(3), of_each(3))
    compare(eager, compiled, inputs(1), TIMES[:4].flip(0))
    assert len(compiled.plans) == 1  # of any number of times


@pytest.mark.parametrize("solver", [ic.Bosh3(), ic.Fehlberg45(), ic.DOP853(), ic.Adams()], ids=str)
def test_evaluations_are_counted_as_the_layer_counts_them(solver):
    eager = layer(solver)
    compiled, x = ic.compile(eager), inputs(3)
    found, graph = (module.solve(x, times=TIMES) for module in (eager, compiled))
    steps, more = int(found.steps.max()), len(solver.tableau.more_a) if solver != ic.Adams() else 0
    # The eager layer asks once whether f mixes samples, begins a method without a last velocity
    # once more, and extends only the steps that pass times.
    assert -1 - more * steps <= found.evaluations - graph.evaluations <= 2
    cost = integration.evaluations_of(solver, between=True)
    assert (
        graph.evaluations == 2 + steps * cost
    )  # the first, and one for the size of the first step
    graph.z.sum().backward()
    assert graph.backward.vjps == graph.backward.evaluations == 1 + steps * cost


def test_the_gradient_is_that_of_a_dense_computation():
    matrix = torch.tensor([[-1.0, 2.0], [-0.5, -0.3]], dtype=torch.float64, requires_grad=True)
    field = nn.Module()
    field.a = nn.Parameter(matrix.detach())
    eager = ic.ImplicitLayer(
        ic.VectorField(lambda t, z, x: z @ field.a.T),
        solver=ic.Tsit5(rtol=1e-11, atol=1e-12),
        start=ic.Identity(),
        gradient=ic.Checkpointed(),
    )
    leaf = torch.randn(3, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    leaf.requires_grad_()
    z = ic.compile(eager)(leaf, times=TIMES)
    exact = torch.stack([leaf @ torch.linalg.matrix_exp(t * matrix).T for t in TIMES])
    torch.testing.assert_close(z, exact, rtol=1e-8, atol=1e-8)
    found = torch.autograd.grad(z, [leaf, field.a], cotangent(z))
    same(torch.autograd.grad(exact, [leaf, matrix], cotangent(z)), found, rtol=1e-7, atol=1e-7)


def test_two_times_need_no_extension_of_the_steps():
    eager = layer(ic.Fehlberg45())
    compiled, x = ic.compile(eager), inputs(3)
    compare(eager, compiled, x, TIMES[[0, -1]])
    graph = compiled.solve(x, times=[0.0, 2.0])
    steps = int(graph.steps.max())
    assert graph.evaluations == 2 + 6 * steps
    torch.testing.assert_close(graph.z[-1], compiled(x))


@pytest.mark.parametrize("exact", [False, True])
def test_times_keep_a_finer_dtype_than_the_state(exact):
    seen = set()

    def field(t, z, x):
        seen.add(t.dtype)
        return torch.sin(t).to(z.dtype) * z + x

    dynamics = ic.VectorField(field, exact_time=exact)
    eager = ic.ImplicitLayer(
        dynamics, solver=ic.Bosh3(), start=ic.Identity(), gradient=ic.Checkpointed()
    )
    x, times = torch.tensor([[0.5], [2.0]]), 1e6 + TIMES
    results = []
    for module in (eager, ic.compile(eager)):
        leaf = x.clone().requires_grad_()
        found = module.solve(leaf, times=times)
        assert isinstance(found, ic.Trajectory)
        assert found.times.dtype == torch.float64 and found.z.dtype == torch.float32
        results.append((found.z, *torch.autograd.grad(found.z.sum(), leaf)))
    assert seen == {torch.float64 if exact else torch.float32}
    same(*results, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("failed", [[1], [0, 1, 2]])
@pytest.mark.parametrize("on_failure", ["ignore", "mask"])
def test_a_sample_that_is_not_finite_leaves_no_nan_in_the_others(on_failure, failed):
    holder = nn.Module()
    holder.weight = nn.Parameter(torch.eye(4, dtype=torch.float64))

    def field(t, z, x):
        return torch.where((x > 5) & (t > 1), torch.nan, z @ holder.weight) + 0.1 * x

    eager = layer(ic.Bosh3(), field, on_failure=on_failure)
    x = inputs(3).clamp(max=4)
    x[failed, 2] = 9.0
    results = []
    for module in (eager, ic.compile(eager)):
        leaf = x.clone().requires_grad_()
        found = module.solve(leaf, times=TIMES)
        assert found.status.nonzero().flatten().tolist() == failed
        gradient = torch.zeros_like(leaf), torch.zeros_like(holder.weight)
        if found.z.requires_grad:
            gradient = torch.autograd.grad(
                found.z, [leaf, holder.weight], cotangent(found.z), materialize_grads=True
            )
        assert all(tensor.isfinite().all() for tensor in gradient)
        results.append([found.z, *gradient])
    same(*results, rtol=1e-10, atol=1e-12)


def test_a_coupled_batch_has_one_clock():
    eager = layer(ic.Bosh3(), lambda t, z, x: (z.mean(0) - z) * x, coupled=True)
    compiled = ic.compile(eager)
    compare(eager, compiled, inputs(4), TIMES)
    for module in (eager, compiled):
        with pytest.raises(ic.InputError, match="a coupled batch has one clock"):
            module(inputs(4), times=of_each(4))


def test_a_state_of_several_tensors_has_them_all_at_each_time():
    def field(t, z, x):
        a, b = z
        return b.flatten(1)[:, :4] - 0.1 * a, torch.sin(t).unsqueeze(2) * b + a.reshape(-1, 2, 2)

    eager = layer(ic.Bosh3(), field)
    z0 = (inputs(3), torch.ones(3, 2, 2, dtype=torch.float64))
    compiled = ic.compile(eager)
    found = []
    for call in (eager, compiled):
        leaves = [leaf.clone().requires_grad_() for leaf in z0]
        z = call(leaves[0].detach(), tuple(leaves), times=TIMES)
        assert [leaf.shape for leaf in z] == [(7, 3, 4), (7, 3, 2, 2)]
        loss = z[0].square().sum() + z[1].sin().sum()
        found.append([*z, *torch.autograd.grad(loss, leaves)])
    same(*found, rtol=1e-10, atol=1e-12)


class Flow(nn.Module):
    def __init__(self, inner) -> None:
        super().__init__()
        torch.manual_seed(1)
        self.first, self.layer = nn.Linear(4, 4).double(), inner

    def forward(self, x, times):
        return self.layer(self.first(x), times=times).sin()

    def solve(self, x, times):
        found = self.layer.solve(self.first(x), times=times)
        return found.z, found.status, found.steps, found.times


@pytest.mark.parametrize("solver", [ic.Bosh3(), ic.Adams()], ids=str)
def test_a_model_in_one_graph_has_the_states_and_the_gradients_of_the_layer(solver):
    torch._dynamo.reset()
    eager = Flow(layer(solver))
    fast = Flow(ic.compile(eager.layer))
    whole = torch.compile(fast, fullgraph=True, backend="aot_eager")
    given = (3, TIMES), (5, TIMES[:5]), (4, of_each(4)), (2, of_each(2)), (3, TIMES[[0, 1, 1, 4]])
    for batch, times in (*given, (3, filled())):
        found = []
        for call, model in ((eager, eager), (whole, fast)):
            leaf = inputs(batch).requires_grad_()
            z = call(leaf, times)
            found.append([z, *torch.autograd.grad(z, [leaf, *model.parameters()], cotangent(z))])
        same(*found, rtol=1e-10, atol=1e-12)
    solve = torch.compile(fast.solve, fullgraph=True, backend="aot_eager")
    for one, other in zip(eager.solve(inputs(3), TIMES), solve(inputs(3), TIMES), strict=True):
        torch.testing.assert_close(other, one)
    with pytest.raises(ic.InputError, match="times: expected increasing or decreasing values"):
        whole(inputs(3), TIMES[[0, 2, 1]])
    torch._dynamo.reset()


@pytest.mark.parametrize("times", [TIMES[[0, 2, 1]], TIMES[:1], TIMES.expand(2, -1), [[0.0]], "ab"])
def test_what_are_no_times_is_refused_in_the_words_of_the_layer(times):
    eager = layer(ic.Bosh3())
    messages = []
    for module in (eager, ic.compile(eager)):
        with pytest.raises(ic.InputError, match="times: ") as caught:
            module(inputs(3), times=times)
        messages.append(str(caught.value))
    assert messages[0] == messages[1]


def test_times_that_are_out_of_order_have_no_states_in_a_graph():
    inlined = ic.compile(layer(ic.Bosh3())).inlined[0]
    times = of_each(3)
    times[1, 3] = times[1, 1]
    times[2, 4] = torch.nan
    with torch.no_grad():
        z = inlined(inputs(3), times=times)
    assert z.isnan().flatten(2).all(2).any(0).tolist() == [False, True, True]
    with pytest.raises(ic.InputError, match=r"shape \[T\] with T >= 2, or \[batch, T\]"):
        inlined(inputs(3), times=torch.ones(1))


def test_a_layer_in_a_graph_that_is_not_compiled_refuses_a_gradient_of_times():
    inlined = ic.compile(layer(ic.Bosh3())).inlined[0]
    with pytest.raises(ic.GradientError, match=r"compile the layer: ic\.compile"):
        inlined(inputs(3), times=TIMES.clone().requires_grad_())


def test_an_equilibrium_has_no_times():
    compiled = ic.compile(
        ic.ImplicitLayer(ic.FixedPoint(lambda z, x: 0.5 * z + x), solver="picard")
    )
    for call in (compiled, compiled.inlined[0]):
        with pytest.raises(ic.InputError, match="an equilibrium, which has none"):
            call(torch.ones(2, 3), times=TIMES)
