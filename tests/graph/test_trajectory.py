"""The gradient of a compiled trajectory against those of the eager layer, and a dense one."""

from __future__ import annotations

import pytest
import torch
from support.trajectories import inputs, layer, same
from torch import nn

import implicitcore as ic
from implicitcore.graph import integration, kept

SLOW = pytest.mark.slow
SOLVERS = [
    ic.Euler(),
    pytest.param(ic.RK4(max_steps=3), marks=SLOW),
    ic.Bosh3(controller="pid"),
    pytest.param(ic.Tsit5(max_steps=5), marks=SLOW),
    pytest.param(ic.Fehlberg45(), marks=SLOW),
    pytest.param(ic.DOP853(), marks=SLOW),
    ic.Adams(),
]


def solved(module, x: torch.Tensor, wrt, v=None):
    """The result for x, and the gradients of x and of some tensors."""
    leaf = x.clone().requires_grad_()
    found = module.solve(leaf)
    v = torch.linspace(-1, 2, x.numel(), dtype=x.dtype).view_as(x) if v is None else v
    return found, torch.autograd.grad(found.z, [leaf, *wrt], v)


@pytest.mark.usefixtures("plainly")
@pytest.mark.parametrize("solver", SOLVERS, ids=str)
def test_the_gradient_is_that_of_the_steps(solver):
    eager = layer(solver)
    compiled = ic.compile(eager)
    for batch in (1, 5):
        x = inputs(batch)
        found, expected = solved(eager, x, eager.parameters())
        graph, gradient = solved(compiled, x, eager.parameters())
        assert torch.equal(graph.steps, found.steps) and torch.equal(graph.status, found.status)
        same([found.z, *expected], [graph.z, *gradient], rtol=1e-11, atol=1e-12)
        steps, cost = int(found.steps.max()), integration.evaluations_of(solver)
        anew = integration.begins_anew(solver)
        assert graph.backward.vjps == graph.backward.evaluations
        assert graph.backward.vjps == steps * (cost + anew) + (not anew)
    assert len(compiled.plans) == 1


@pytest.mark.usefixtures("plainly")
@pytest.mark.parametrize("solver", [ic.Euler(), ic.Bosh3(), ic.Adams()], ids=str)
def test_an_empty_batch_has_a_gradient_of_zero(solver):
    eager = layer(solver)
    found, gradient = solved(ic.compile(eager), inputs(4)[:0], eager.parameters())
    assert found.z.shape == inputs(4)[:0].shape and not found.failed
    assert all(torch.equal(g, torch.zeros_like(g)) for g in gradient)


@pytest.mark.usefixtures("plainly")
@pytest.mark.parametrize("solver", [ic.Heun(), ic.Adams()], ids=str)
def test_large_steps_are_stacked_by_the_loop(solver, monkeypatch):
    eager = layer(solver)
    _, *expected = solved(eager, inputs(3), eager.parameters())
    for largest in (kept.LARGEST, 0):
        monkeypatch.setattr(kept, "LARGEST", largest)
        compiled = ic.compile(eager)
        _, *gradient = solved(compiled, inputs(3), eager.parameters())
        (graphs,) = compiled.plans.values()
        assert ("_stacking" in graphs.__dict__) == (largest == 0)
        same(*expected, *gradient, rtol=1e-11, atol=1e-12)


@pytest.mark.usefixtures("plainly")
@pytest.mark.parametrize("times", [None, torch.linspace(0, 2, 5, dtype=torch.float64)])
def test_steps_without_room_for_the_next_are_taken_anew_with_more(times, monkeypatch):
    """And what the first ones have cost is counted."""
    monkeypatch.setattr(kept, "_LEAST", 1)
    monkeypatch.setattr(kept, "_MEMORY", 0)
    eager = layer(ic.Euler(dt=0.1))
    compiled, results = ic.compile(eager), []
    for module in (eager, compiled, compiled):
        leaf = inputs(2).requires_grad_()
        found = module.solve(leaf, times=times)
        results.append((found, torch.autograd.grad(found.z.sum(), [leaf, *eager.parameters()])))
    (plain, expected), (grown, first), (again, second) = results
    same(expected, first, rtol=1e-11, atol=1e-12)
    same(expected, second, rtol=1e-11, atol=1e-12)
    # Of 20 steps 1, 4 and 16 in vain, and what each of these began with.
    begun = int(again.evaluations) - 20
    assert int(grown.evaluations - again.evaluations) == 1 + 4 + 16 + 3 * begun
    assert torch.equal(plain.steps, again.steps)


def test_the_room_for_steps_follows_their_number():
    room = kept.Room(8)
    assert room.steps == kept._MOST
    for _ in range(9):
        room.used(10)
    assert room.steps == 64
    for _ in range(2):  # two threads, each with no room for its steps
        room.grow(64)
        assert room.steps == 256
    assert kept.Room(2**30).steps == kept._LEAST


@pytest.mark.usefixtures("plainly")
def test_another_thread_may_change_the_room_while_stacks_are_made():
    class Shared(kept.Room):
        reads = 0

        @property
        def steps(self):
            self.reads += 1
            return 64 >> self.reads % 2

        @steps.setter
        def steps(self, steps):
            pass

    eager = layer(ic.Euler(dt=0.1))
    compiled = ic.compile(eager)
    _, expected = solved(eager, inputs(2), eager.parameters())
    solved(compiled, inputs(2), eager.parameters())
    (graphs,) = compiled.plans.values()
    graphs.__dict__["_rooms"][2] = Shared(8)
    _, gradient = solved(compiled, inputs(2), eager.parameters())
    same(expected, gradient, rtol=1e-11, atol=1e-12)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")  # of torch, about its own parts
@pytest.mark.usefixtures("only_for_any_size")
@pytest.mark.parametrize("solver", [ic.RK4(), ic.Tsit5()], ids=["rk4", "tsit5"])
def test_a_field_that_ends_in_a_product_is_summed_with_the_weights_of_its_stages(solver):
    """Compiled, not as traced: a compiler may take the product and the sum together."""
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(4, 64), nn.Tanh(), nn.Linear(64, 4))
    eager = layer(solver, lambda t, z, x: net(z))
    net.double()
    compiled = ic.compile(eager)
    for batch in (3, 5):
        (found, expected), (graph, gradient) = (
            solved(module, inputs(batch) / 5, net.parameters()) for module in (eager, compiled)
        )
        same([found.z, *expected], [graph.z, *gradient], rtol=1e-10, atol=1e-11)


@pytest.mark.usefixtures("plainly")
def test_the_gradient_is_that_of_a_dense_computation():
    matrix = torch.tensor([[-1.0, 2.0], [-0.5, -0.3]], dtype=torch.float64, requires_grad=True)
    field = nn.Module()
    field.a = nn.Parameter(matrix.detach())
    module = ic.ImplicitLayer(
        ic.VectorField(lambda t, z, x: z @ field.a.T),
        solver=ic.Tsit5(rtol=1e-10, atol=1e-11),
        start=ic.Identity(),
        horizon=1.5,
        gradient=ic.Checkpointed(),
    )
    x = torch.randn(3, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    v = torch.ones_like(x)
    _, gradient = solved(ic.compile(module), x, [field.a], v)
    leaf = x.clone().requires_grad_()
    exact = leaf @ torch.linalg.matrix_exp(1.5 * matrix).T
    same(torch.autograd.grad(exact, [leaf, matrix], v), gradient, rtol=1e-8, atol=1e-8)


@pytest.mark.usefixtures("plainly")
@pytest.mark.parametrize("wrt", ["x", "parameters"])
def test_what_needs_no_gradient_gets_none(wrt):
    eager = layer(ic.Bosh3())
    x = inputs(3).requires_grad_(wrt == "x")
    for parameter in eager.parameters():
        parameter.requires_grad_(wrt == "parameters")
    leaves = [x] if wrt == "x" else [*eager.parameters()]
    found = [torch.autograd.grad(m(x).sum(), leaves) for m in (eager, ic.compile(eager))]
    same(*found, rtol=1e-11, atol=1e-12)


@pytest.mark.usefixtures("plainly")
@pytest.mark.parametrize("failed", [[1], [0, 1, 2]])
@pytest.mark.parametrize("on_failure", ["ignore", "mask"])
@pytest.mark.parametrize("solver", [ic.Heun(), ic.Bosh3()], ids=str)
def test_a_sample_that_is_not_finite_leaves_no_nan_in_the_others(solver, on_failure, failed):
    holder = nn.Module()
    holder.weight = nn.Parameter(torch.eye(4, dtype=torch.float64))

    def field(t, z, x):
        return torch.where(x > 5, torch.nan, z @ holder.weight) + x

    eager = layer(solver, field, on_failure=on_failure, start=ic.Zeros((4,)))
    x = inputs(3).clamp(max=4)
    x[failed, 2] = 9.0
    results = []
    for module in (eager, ic.compile(eager)):
        leaf = x.clone().requires_grad_()
        found = module.solve(leaf)
        assert found.status.nonzero().flatten().tolist() == failed
        if found.z.requires_grad:
            gradient = torch.autograd.grad(
                found.z.sum(), [leaf, holder.weight], materialize_grads=True
            )
        else:  # where all are masked
            gradient = torch.zeros_like(leaf), torch.zeros_like(holder.weight)
        assert all(tensor.isfinite().all() for tensor in gradient)
        results.append([found.z, *gradient])
    same(*results, rtol=1e-11, atol=1e-12, equal_nan=True)


@pytest.mark.usefixtures("plainly")
@pytest.mark.parametrize("solver", [ic.Bosh3(), ic.Adams()], ids=str)
def test_a_sample_at_the_edge_of_the_domain_ends_at_the_same_step(solver):
    eager = layer(
        solver,
        lambda t, z, x: -torch.sqrt(z + 0 * x),
        on_failure="ignore",
        start=ic.Identity(),
        horizon=3.0,
    )
    x = torch.tensor([[4.0], [1.0], [9.0]], dtype=torch.float64)
    expected, found = (module.solve(x) for module in (eager, ic.compile(eager)))
    assert found.status.tolist() == [0, ic.Status.NON_FINITE, 0]
    assert torch.equal(found.status, expected.status)
    assert torch.equal(found.steps, expected.steps)
    assert int(found.steps[1]) <= 120


@pytest.mark.usefixtures("plainly")
@pytest.mark.parametrize("gradient", [ic.Checkpointed(), ic.Unrolled()], ids=str)
@pytest.mark.parametrize("failed", [[0, 2], [0, 1, 2]])
def test_the_start_of_a_sample_that_is_not_finite_has_no_gradient(failed, gradient):
    def field(t, z, x):
        return torch.where(x > 5, torch.nan, z)

    eager = layer(ic.Bosh3(), field, gradient=gradient)
    x = torch.ones(3, 4, dtype=torch.float64)
    x[failed] = 9.0
    for module in (eager, ic.compile(eager)):
        leaf = x.clone().requires_grad_()
        (gradient,) = torch.autograd.grad(module.solve(leaf).z.square().sum(), leaf)
        assert gradient.any(1).logical_not().nonzero().flatten().tolist() == failed


@pytest.mark.usefixtures("plainly")
def test_a_start_that_is_fitted_by_itself_gets_no_gradient_from_the_solve():
    eager = layer(ic.Bosh3(), start=ic.LearnedInitialGuess((4,)))
    x = inputs(2)
    z = ic.compile(eager)(x)
    assert all(
        gradient is None
        for gradient in torch.autograd.grad(z.sum(), [*eager.start.parameters()], allow_unused=True)
    )


@pytest.mark.usefixtures("plainly")
def test_a_coupled_batch_is_one_sample():
    eager = layer(ic.Bosh3(), lambda t, z, x: (z.mean(0) - z) * x, coupled=True)
    x = inputs(4)
    (found, expected), (graph, gradient) = (solved(m, x, []) for m in (eager, ic.compile(eager)))
    assert torch.equal(graph.steps, found.steps)
    same(expected, gradient, rtol=1e-11, atol=1e-12)


@pytest.mark.usefixtures("plainly")
def test_another_gradient_than_that_of_the_steps_is_refused():
    compiled = ic.compile(layer(ic.Bosh3(), gradient=ic.Adjoint()))
    with torch.no_grad():
        compiled(inputs(2))
    with pytest.raises(ic.GradientError, match=r"has Adjoint\(.*gradient=Checkpointed\(\)"):
        compiled(inputs(2))


@pytest.mark.usefixtures("plainly")
def test_a_second_derivative_is_refused():
    leaf = inputs(2).requires_grad_()
    z = ic.compile(layer(ic.Euler()))(leaf)
    with pytest.raises(ic.GradientError, match="first derivatives"):
        torch.autograd.grad(z.sum(), leaf, create_graph=True)


@pytest.mark.usefixtures("only_for_any_size")
@pytest.mark.slow(25)
@pytest.mark.filterwarnings("ignore")
@pytest.mark.timeout(1500)  # the compiler's, on a machine that is busy
@pytest.mark.parametrize("solver", [ic.RK4(), ic.Tsit5()], ids=str)  # Adams with times, below
def test_one_graph_each_serves_every_batch(solver):
    torch._dynamo.reset()
    eager = layer(solver)
    compiled = ic.compile(eager)
    for batch in (5, 3, 4):
        found, expected = solved(eager, inputs(batch), eager.parameters())
        graph, gradient = solved(compiled, inputs(batch), eager.parameters())
        assert torch.equal(graph.steps, found.steps)
        same([found.z, *expected], [graph.z, *gradient], rtol=1e-8, atol=1e-9)


@pytest.mark.usefixtures("only_for_any_size")
@pytest.mark.slow(45)
@pytest.mark.filterwarnings("ignore")
@pytest.mark.timeout(1500)  # as above
@pytest.mark.parametrize(("solver", "calls"), [(ic.Bosh3(), 4), (ic.Adams(), 3)], ids=str)
def test_one_graph_each_serves_every_number_of_times(solver, calls):
    torch._dynamo.reset()
    eager = layer(solver)
    compiled, times = ic.compile(eager), torch.linspace(0, 2, 7, dtype=torch.float64)
    for batch, due in (
        (5, times),
        (5, times[:5].flip(0)),
        (3, torch.stack([times, 1 - times, -times])),
        (1, times[:4]),  # which has graphs of its own, whichever the solver
    )[:calls]:
        found = []
        for module in (eager, compiled):
            leaf = inputs(batch).requires_grad_()
            z = module(leaf, times=due)
            found.append([z, *torch.autograd.grad(z.sin().sum(), [leaf, *eager.parameters()])])
        same(*found, rtol=1e-8, atol=1e-9)
    assert len(compiled.plans) == 1


@pytest.mark.usefixtures("plainly")
def test_a_backward_pass_under_autocast_keeps_the_dtype_and_takes_one_gradient():
    torch.manual_seed(0)
    net = nn.Linear(4, 4)
    cell = ic.VectorField(lambda z, x: torch.tanh(net(z) / 4 + x))
    options = {"solver": ic.RK4(dt=0.5), "gradient": ic.Checkpointed()}
    x = torch.randn(3, 4, requires_grad=True)
    z, leaves = ic.compile(ic.ImplicitLayer(cell, **options))(x), (x, *net.parameters())
    expected = torch.autograd.grad(z.sum(), leaves, retain_graph=True)
    with torch.autocast("cpu", torch.bfloat16):
        found = torch.autograd.grad(z.sum(), leaves, retain_graph=True)
    assert all(map(torch.equal, found, expected))
    with pytest.raises(ic.GradientError, match="takes one gradient at a time"):
        torch.autograd.grad(z, x, torch.ones(2, 3, 4), is_grads_batched=True)
