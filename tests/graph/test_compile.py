"""Compiled layers against the eager ones: the same solutions and the same gradients."""

from __future__ import annotations

import pickle
from copy import copy

import pytest
import torch
from torch import nn

import implicitcore as ic
from implicitcore.backends.torch import TORCH
from implicitcore.graph import history, system, trace

PAIRS = [
    (ic.Picard(tol=1e-9, max_steps=100), ic.Picard(tol=1e-9, max_steps=100)),
    (ic.Anderson(tol=1e-9), ic.GMRES(tol=1e-9)),
    (ic.Anderson(tol=1e-9), ic.GMRES(tol=1e-9, restart=4)),
    (ic.Broyden(tol=1e-9), ic.Anderson(tol=1e-9)),
    (ic.Broyden(tol=1e-9, variant="bad"), ic.Broyden(tol=1e-9)),
    (ic.Anderson(tol=1e-9), None),
]


class Cell(nn.Module):
    """tanh(W z + U x), where half of the input is weighed by what belongs to all samples."""

    def __init__(self, n: int = 8) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.w, self.u = nn.Linear(n, n), nn.Linear(n, n, bias=False)
        self.register_buffer("offset", torch.randn(n))
        self.act = torch.tanh

    def forward(self, z, x):
        x, scale = x
        return self.act(self.w(z) + self.u(x) * scale + self.offset)


def layer(solver=PAIRS[1][0], adjoint=PAIRS[1][1], **options) -> ic.ImplicitLayer:
    cell = ic.FixedPoint(Cell())
    gradient = ic.Implicit(adjoint)
    start = ic.Zeros((8,))
    return ic.ImplicitLayer(cell, solver=solver, gradient=gradient, start=start, **options).double()


def inputs(batch: int) -> tuple[torch.Tensor, torch.Tensor]:
    x = torch.randn(batch, 8, dtype=torch.float64, requires_grad=True)
    return x, torch.rand(8, dtype=torch.float64, requires_grad=True)


def compare(eager: ic.ImplicitLayer, compiled, batch: int) -> None:
    x, scale = inputs(batch)
    leaves = [x, scale, *(p for p in eager.parameters() if p.requires_grad)]
    v = torch.randn(batch, 8, dtype=torch.float64)
    found, solutions = [], []
    for module in (eager, compiled):
        solution = module.solve((x, ic.shared(scale)))
        found.append(torch.autograd.grad(solution.z, leaves, v))
        solutions.append(solution)
    one, other = solutions
    assert torch.equal(one.status, other.status) and torch.equal(one.steps, other.steps)
    torch.testing.assert_close(other.z, one.z)
    torch.testing.assert_close(other.residual, one.residual, rtol=1e-3, atol=1e-12)
    for expected, gradient in zip(*found, strict=True):
        torch.testing.assert_close(gradient, expected, rtol=1e-7, atol=1e-8)
    assert other.backward.vjps == one.backward.vjps
    assert other.backward.status.tolist() == one.backward.status.tolist()
    # What the eager layer evaluates once more, for its graph, is here a part of the backward pass.
    assert other.evaluations == one.evaluations - 1


@pytest.mark.usefixtures("plainly")
@pytest.mark.parametrize(("solver", "adjoint"), PAIRS, ids=str)
def test_the_solution_and_its_gradient_are_those_of_the_layer(solver, adjoint):
    eager = layer(solver, adjoint)
    compiled = ic.compile(eager)
    for batch in (1, 3, 8):
        compare(eager, compiled, batch)
    assert len(compiled.plans) == 1


@pytest.mark.slow(40)
@pytest.mark.filterwarnings("ignore")
@pytest.mark.timeout(1500)  # the compiler's, on a machine that is busy
@pytest.mark.parametrize(
    ("solver", "adjoint", "compiled_for"),
    [(*PAIRS[1], "one size, then any"), (*PAIRS[3], "any size")],
    ids=["Anderson", "Broyden"],
)
def test_one_graph_each_serves_every_batch(solver, adjoint, compiled_for, request):
    if compiled_for == "any size":
        request.getfixturevalue("only_for_any_size")
    torch._dynamo.reset()
    eager = layer(solver, adjoint)
    compiled = ic.compile(eager)
    for batch in (3, 8, 5):
        compare(eager, compiled, batch)


STARTS = [
    ic.Zeros((8,)),
    ic.OneStep(lambda z, x: torch.tanh(z + x[0]), (8,)),
    ic.Predictor(lambda x: 0.1 * x[0]),
]


@pytest.mark.usefixtures("plainly")
@pytest.mark.parametrize("start", STARTS, ids=lambda start: type(start).__name__)
@pytest.mark.parametrize("given", [False, True])
def test_a_large_state_with_a_history_is_solved_by_the_layer(monkeypatch, start, given):
    monkeypatch.setattr(history, "LARGEST", 3 * 8 * 8)
    eager = layer()
    eager.start = start
    compiled = ic.compile(eager)
    for batch, is_compiled in ((3, True), (4, False)):
        x, scale = inputs(batch)
        z0 = torch.randn(batch, 8, dtype=torch.float64) if given else None
        found = []
        for module in (eager, compiled):
            solution = module.solve((x, ic.shared(scale)), z0)
            loss = solution.z.square().sum()
            found.append((solution, torch.autograd.grad(loss, [x, scale, *eager.parameters()])))
        (one, gradients), (other, others) = found
        # A graph counts one evaluation less: the one for the gradient.
        assert other.evaluations == one.evaluations - is_compiled
        torch.testing.assert_close(other.start, one.start)
        torch.testing.assert_close(other.z, one.z)
        torch.testing.assert_close(others, gradients, rtol=1e-7, atol=1e-8)
    assert len(compiled.plans) == 1


def test_a_history_is_kept_by_the_loop_of_a_large_state_and_by_kernels():
    fits, large, kernels = torch.zeros(64, 256), torch.zeros(65, 256), copy(TORCH)
    for solver in (ic.Anderson(), ic.Broyden(), ic.GMRES()):
        assert history.keeps_loop(large, solver, TORCH)
        assert not history.keeps_loop(fits, solver, TORCH)
        assert history.keeps_loop(fits, solver, kernels)
        assert history.keeps_loop(fits.double(), solver, TORCH)
        assert not history.keeps_loop(large.to("meta"), solver, kernels)
    for solver in (ic.Picard(), ic.SteadyState(), None):
        assert not history.keeps_loop(large, solver, kernels)


ADJOINTS = [
    ic.GMRES(tol=1e-9),
    ic.GMRES(tol=1e-9, restart=4),
    ic.Anderson(tol=1e-9, compact=True),
    ic.Broyden(tol=1e-9),
]


@pytest.mark.usefixtures("plainly")
@pytest.mark.parametrize("coupled", [False, True])
@pytest.mark.parametrize("adjoint", ADJOINTS, ids=str)
def test_the_linear_solve_of_a_large_state_has_the_loop_of_its_solver(
    monkeypatch, adjoint, coupled
):
    monkeypatch.setattr(history, "LARGEST", 0)
    eager = layer(PAIRS[0][0], adjoint, coupled=coupled)
    compiled = ic.compile(eager)
    for batch in (1, 8):
        compare(eager, compiled, batch)
    for known in compiled.plans.values():
        assert "forward" in vars(known) and "backward" not in vars(known)


@pytest.mark.usefixtures("plainly")
def test_the_loop_of_a_linear_solve_leaves_out_what_is_not_finite(monkeypatch):
    eager = layer(PAIRS[0][0], ADJOINTS[0])
    x, scale = inputs(4)
    v = torch.randn(4, 8, dtype=torch.float64)
    v[1], v[2, 3] = 0, torch.nan
    found = []
    for largest in (2**16, 0):
        monkeypatch.setattr(history, "LARGEST", largest)
        solution = ic.compile(eager).solve((x, ic.shared(scale)))
        found.append(torch.autograd.grad(solution.z, x, v)[0])
        status, residual = solution.backward.status, solution.backward.residual
        assert status is not None and status.tolist() == [0] * 4
        assert residual is not None and residual.isfinite().all()
    one, other = found
    assert other[2].isnan().all() and not other[1].any()
    torch.testing.assert_close(other, one, rtol=1e-7, atol=1e-9, equal_nan=True)


def test_a_large_state_does_not_let_through_what_is_refused(monkeypatch):
    monkeypatch.setattr(history, "LARGEST", 0)
    cell = ic.FixedPoint(lambda z, x: 0.5 * z + x * torch.rand_like(x))
    compiled = ic.compile(ic.ImplicitLayer(cell, solver=ic.Anderson()))
    with pytest.raises(ic.InputError, match="f draws random numbers"):
        compiled(torch.ones(2, 3))


def test_the_loop_of_a_gradient_makes_no_gradient_of_weights():
    conv = nn.Conv2d(2, 2, 3, padding=1)
    eager = ic.ImplicitLayer(
        ic.FixedPoint(lambda z, x: torch.tanh(0.4 * conv(z) + x)),
        solver=ic.Picard(),
        gradient=ic.Implicit(ic.Picard()),
    )
    compiled, x = ic.compile(eager), torch.randn(3, 2, 4, 4)
    made, _ = compiled._plan(x, system.Layout.of(x), x.flatten(1))
    backward = torch.ops.aten.convolution_backward.default
    wanted = [
        [node.args[-1] for node in part.inside.graph.nodes if node.target is backward]
        for part in made._products
    ]
    assert wanted == [[[True, False, False]], [[False, True, True]]]


@pytest.mark.usefixtures("plainly")
def test_a_sample_that_is_not_finite_leaves_no_nan_in_the_others():
    holder = nn.Module()
    holder.weight = nn.Linear(4, 4).weight
    eager = ic.ImplicitLayer(
        ic.FixedPoint(lambda z, x: torch.where(x > 5, torch.nan, 0.3 * (z @ holder.weight) + x)),
        solver=ic.Anderson(tol=1e-6),
        gradient=ic.Implicit(ic.Anderson(tol=1e-6)),
        on_failure="ignore",
    )
    x = torch.randn(3, 4)
    x[1, 2] = 9.0
    found = []
    for module in (eager, ic.compile(eager)):
        leaf = x.clone().requires_grad_()
        solution = module.solve(leaf)
        assert solution.status.tolist() == [0, 3, 0]
        loss = solution.z[solution.converged].square().sum()
        found.append(torch.autograd.grad(loss, [leaf, holder.weight]))
    for expected, gradient in zip(*found, strict=True):
        assert gradient.isfinite().all()
        torch.testing.assert_close(gradient, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.usefixtures("plainly")
def test_an_incoming_nan_is_its_samples_alone():
    compiled = ic.compile(layer())
    x, scale = inputs(3)
    z = compiled((x, ic.shared(scale)))
    v = torch.ones_like(z)
    v[1, 0] = torch.nan
    (gradient,) = torch.autograd.grad(z, x, v)
    assert gradient.isnan().all(1).tolist() == [False, True, False]


@pytest.mark.usefixtures("plainly")
@pytest.mark.parametrize("scale", [1e-30, 1e30])
def test_a_scaled_loss_has_an_equally_accurate_gradient(scale):
    eager = layer(ic.Anderson(tol=1e-5), ic.GMRES(tol=1e-5)).float()
    x, shared = (leaf.detach().float() for leaf in inputs(4))
    found = []
    for module, size in ((eager, 1.0), (ic.compile(eager), scale)):
        leaf = x.clone().requires_grad_()
        z = module((leaf, ic.shared(shared)))
        found.append(torch.autograd.grad(z, leaf, torch.full_like(z, size))[0] / size)
    torch.testing.assert_close(found[1], found[0], rtol=1e-3, atol=1e-4)


@pytest.mark.usefixtures("plainly")
@pytest.mark.parametrize("coupled", [False, True])
def test_parameters_are_read_at_each_call(coupled):
    conv = nn.Conv2d(2, 2, 3, padding=1).double()
    eager = ic.ImplicitLayer(
        ic.FixedPoint(lambda z, x: torch.tanh(0.4 * conv(z) + x)),
        solver=ic.Anderson(tol=1e-8),
        coupled=coupled,
    )
    compiled = ic.compile(eager)
    for _ in range(2):
        x = torch.randn(3, 2, 5, 5, dtype=torch.float64)
        torch.testing.assert_close(compiled(x), eager(x), rtol=1e-6, atol=1e-7)
        conv.weight = nn.Parameter(conv.weight.detach() * 1.3)


def _half(value):
    return 0.5 * value.sin()


def _tanh(value):
    return value.tanh()


def _another_dynamics(eager):
    eager.dynamics = ic.FixedPoint(lambda z, x: 0.2 * z + x[0] * x[1])


def _another_cell(eager):
    eager.dynamics.cell = Cell().double().requires_grad_(False)


def _another_function(eager, act=_half):
    eager.dynamics.cell.act = act


def _another_module(eager):
    eager.dynamics.cell.w = nn.Linear(8, 8).double()


def _a_hook(eager):
    eager.dynamics.cell.w.register_forward_hook(lambda module, args, output: 0.5 * output)


CHANGES = [_another_dynamics, _another_cell, _another_function, _another_module, _a_hook]


@pytest.mark.usefixtures("plainly")
@pytest.mark.parametrize("change", CHANGES)
def test_what_takes_the_place_of_a_part_is_what_is_solved(change):
    eager = layer()
    _another_function(eager, _tanh)  # of python, as the one that takes its place
    compiled = ic.compile(eager)
    compare(eager, compiled, 3)
    change(eager)
    for _ in range(2):
        compare(eager, compiled, 3)
    assert len(compiled.plans) == 1


class Ordered(nn.Module):
    """What goes through its parts and its parameters in their order."""

    def __init__(self) -> None:
        super().__init__()
        self.parts = nn.ModuleDict({"linear": nn.Linear(4, 4), "tanh": nn.Tanh()})
        self.factors = nn.ParameterDict({"a": torch.full((4,), 0.3), "b": torch.full((4,), 0.6)})

    def forward(self, z, x):
        for part in self.parts.values():
            z = part(z)
        first, second = self.factors.values()
        return 0.3 * z + first * x + second


def _last(parts, name):
    part = parts[name]
    del parts[name]
    parts[name] = part


@pytest.mark.usefixtures("plainly")
@pytest.mark.parametrize(
    "change", [lambda cell: _last(cell.parts, "linear"), lambda cell: _last(cell.factors, "a")]
)
def test_the_order_of_parts_is_that_of_now(change):
    torch.manual_seed(0)
    eager = ic.ImplicitLayer(ic.FixedPoint(Ordered()), solver=ic.Picard(tol=1e-12)).double()
    compiled, x = ic.compile(eager), torch.randn(3, 4, dtype=torch.float64)
    for _ in range(2):
        torch.testing.assert_close(compiled(x), eager(x), rtol=1e-9, atol=1e-9)
    change(eager.dynamics.cell)
    for _ in range(2):
        torch.testing.assert_close(compiled(x), eager(x), rtol=1e-9, atol=1e-9)


def _by_name(z, x, *, rate=0.5):
    return rate * torch.tanh(z) + x


def _coded(z, x):
    return 0.5 * torch.tanh(z) + x


def _other_code(z, x):
    return 0.1 * torch.tanh(z) + x


class Owner(nn.Module):
    """A model, of which a function takes a part."""

    def __init__(self) -> None:
        super().__init__()
        self.cell = nn.Linear(4, 4, bias=False, dtype=torch.float64)


_OWNER = Owner()


def _by_part(z, x):
    return torch.tanh(_OWNER.cell(z)) + x


def _another_part(seed):
    torch.manual_seed(seed)
    cell = nn.Linear(4, 4, bias=False, dtype=torch.float64)
    cell.weight.data *= 0.3
    _OWNER.cell = cell


FUNCTIONS = [
    (_by_name, lambda patch: patch.setattr(_by_name, "__kwdefaults__", {"rate": 0.1})),
    (_by_name, lambda patch: patch.setitem(_by_name.__kwdefaults__, "rate", 0.1)),
    (_coded, lambda patch: patch.setattr(_coded, "__code__", _other_code.__code__)),
    (_by_part, lambda _: _another_part(1)),
]


@pytest.mark.usefixtures("plainly")
@pytest.mark.parametrize(("function", "change"), FUNCTIONS)
def test_what_a_function_is_made_of_is_that_of_now(monkeypatch, function, change):
    _another_part(0)
    eager = ic.ImplicitLayer(ic.FixedPoint(function), solver=ic.Picard(tol=1e-12))
    compiled, x = ic.compile(eager), torch.randn(3, 4, dtype=torch.float64)
    before = compiled(x)
    change(monkeypatch)
    for _ in range(2):
        torch.testing.assert_close(compiled(x), eager(x), rtol=1e-9, atol=1e-9)
    assert not torch.allclose(compiled(x), before)


@pytest.mark.usefixtures("plainly")
def test_a_change_that_a_graph_around_it_has_seen_is_one_for_its_own_calls():
    eager = ic.ImplicitLayer(ic.FixedPoint(lambda z, x: 0.5 * z + x), solver=ic.Picard(tol=1e-12))
    compiled = ic.compile(eager)
    x = torch.randn(3, 4, dtype=torch.float64, requires_grad=True)
    model = torch.compile(lambda x: compiled(x), fullgraph=True, backend="eager")
    for _ in range(2):
        model(x)
        torch.testing.assert_close(compiled(x), 2 * x)
    eager.solver = ic.Picard(tol=0.5)
    expected = eager(x)
    assert not torch.allclose(expected, 2 * x)
    for module in (model, compiled):
        torch.testing.assert_close(module(x), expected)


class Weighed(nn.Module):
    """A cell with a number, which counts its calls."""

    def __init__(self) -> None:
        super().__init__()
        self.weight, self.calls = 0.5, 0

    def forward(self, z, x):
        self.calls += 1
        return torch.tanh(self.weight * z + x)


@pytest.mark.usefixtures("plainly")
def test_a_number_that_is_changed_is_what_is_solved_with():
    cell = Weighed()
    eager = ic.ImplicitLayer(
        ic.FixedPoint(cell), solver=ic.Picard(tol=1e-12), gradient=ic.Implicit(ic.GMRES(tol=1e-12))
    )
    compiled, plans = ic.compile(eager), []
    for weight in (0.5, 0.5, 0.25, 0.25):
        cell.weight = weight
        x = torch.randn(3, 4, dtype=torch.float64, requires_grad=True)
        found = [torch.autograd.grad(m(x).sum(), x)[0] for m in (compiled, eager)]
        torch.testing.assert_close(*found, rtol=1e-9, atol=1e-9)
        plans.append(next(iter(compiled.plans.values())))
        cell.calls = 0 if weight == 0.5 else cell.calls
    assert plans[0] is plans[1] and plans[1] is not plans[2] and plans[2] is plans[3]


@pytest.mark.usefixtures("plainly")
@pytest.mark.parametrize("given", [False, True])
def test_a_call_of_a_kind_that_was_met_is_prepared_no_second_time(monkeypatch, given):
    eager = layer()
    compiled, seen = ic.compile(eager), []
    prepared = compiled._prepared
    monkeypatch.setattr(compiled, "_prepared", lambda *of: seen.append(1) or prepared(*of))

    def call(batch: int, double: bool = True, marks: bool = True) -> int:
        """Solve, compare, and count what was prepared."""
        seen.clear()
        x, scale = (leaf if double else leaf.detach().float() for leaf in inputs(batch))
        z0 = torch.randn_like(x) if given else None
        tree = (x, ic.shared(scale) if marks else scale.expand(batch, 8))
        found, expected = (module.solve(tree, z0) for module in (compiled, eager))
        torch.testing.assert_close(found.z, expected.z, rtol=1e-5, atol=1e-5)
        assert found.z.requires_grad == expected.z.requires_grad
        return len(seen)

    assert [call(3), call(3), call(3)] == [1, 0, 0]
    assert [call(4), call(4)] == [1, 0]
    assert [call(8), call(8), call(8, marks=False), call(8, marks=False)] == [1, 0, 1, 0]
    cell = eager.dynamics.get_submodule("cell")
    cell.get_parameter("w.weight").requires_grad_(False)  # in place
    assert [call(8, marks=False), call(8, marks=False)] == [1, 0]
    eager.float()  # the parameters in place
    assert [call(8, double=False), call(8, double=False)] == [1, 0]
    cell.register_buffer("offset", torch.zeros(8))
    assert [call(8, double=False), call(8, double=False)] == [1, 0]
    eager.solver = ic.Picard(tol=1e-3)
    assert [call(8, double=False), call(8, double=False)] == [1, 0]


@pytest.mark.usefixtures("plainly")
def test_numbers_that_are_equal_are_told_apart():
    class Angle(nn.Module):
        number: float = 0.0

        def forward(self, z, x):
            return z / 2 + x + torch.atan2(torch.zeros_like(z), torch.full_like(z, self.number))

    cell = Angle()
    eager = ic.ImplicitLayer(ic.FixedPoint(cell), solver=ic.Picard(tol=1e-12))
    compiled, x = ic.compile(eager), torch.randn(2, 3, dtype=torch.float64)
    for number in (0.0, -0.0, 0, -0.0):
        cell.number = number
        for _ in range(2):
            torch.testing.assert_close(compiled(x), eager(x), rtol=1e-9, atol=1e-9)


@pytest.mark.usefixtures("plainly")
def test_a_cell_may_broadcast():
    w = nn.Parameter(torch.randn(1, 3, dtype=torch.float64))
    holder = nn.ParameterList([w])
    eager = ic.ImplicitLayer(
        ic.FixedPoint(lambda z, x: torch.addcmul(x, z, holder[0], value=0.1)),
        solver=ic.Anderson(tol=1e-10),
        gradient=ic.Implicit(ic.GMRES(tol=1e-10)),
    )
    x = torch.randn(4, 3, dtype=torch.float64)
    found = [torch.autograd.grad(m(x).sum(), w)[0] for m in (eager, ic.compile(eager))]
    torch.testing.assert_close(*found, rtol=1e-8, atol=1e-8)


def test_a_loop_is_given_no_two_views_of_one_tensor():
    def f(z, w):
        first, second = (w.exp() @ w).split(2, 1)
        return (torch.tanh(z @ w) @ w.T + first.sum() + second[0, 0],)

    kinds = [trace.Kind((3, 4), torch.float32, torch.device("cpu"), False, False)] * 2
    kinds[1] = kinds[1]._replace(shape=(4, 4))
    parts = trace.split(trace.traced(f, kinds), 1, [0])
    z, w = torch.randn(3, 4), torch.randn(4, 4)
    known = parts.before(w)
    assert len({t.untyped_storage().data_ptr() for t in known}) == len(known) == 3
    torch.testing.assert_close(parts.inside(z, *known)[0], f(z, w)[0])


@pytest.mark.usefixtures("plainly")
def test_all_samples_may_fail():
    holder = nn.Module()
    holder.w = nn.Parameter(torch.ones(3))
    eager = ic.ImplicitLayer(
        ic.FixedPoint(lambda z, x: (z - 1).sqrt() * holder.w + x),
        solver=ic.Picard(),
        on_failure="ignore",
    )
    z = ic.compile(eager)(torch.zeros(2, 3))
    assert torch.equal(torch.autograd.grad(z.sum(), holder.w)[0], torch.zeros(3))


@pytest.mark.usefixtures("plainly")
def test_a_second_derivative_is_refused():
    x, scale = inputs(2)
    z = ic.compile(layer())((x, ic.shared(scale)))
    with pytest.raises(ic.GradientError, match="first derivatives"):
        torch.autograd.grad(z.sum(), x, create_graph=True)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"solver": ic.Newton()}, "solver: Newton has no loop in a graph; use Picard, Anderson"),
        ({"gradient": ic.Phantom()}, "gradient: a compiled layer takes Implicit"),
        ({"gradient": ic.Implicit(clip=2.0)}, "takes Implicit without clip and iterates"),
        ({"gradient": ic.Implicit(iterates=(1,))}, "takes Implicit without clip and iterates"),
        ({"gradient": ic.Implicit(ic.Newton())}, r"gradient.solver: Newton .*, GMRES"),
    ],
)
def test_what_has_no_loop_in_a_graph_is_named(change, message):
    eager = layer()
    for name, value in change.items():
        setattr(eager, name, value)
    with pytest.raises(ic.ConfigError, match=message):
        ic.compile(eager)


@pytest.mark.parametrize(
    ("cell", "message"),
    [
        (lambda z, x: 0.5 * z * torch.rand_like(z) + x, "draws random numbers"),
        (lambda z, x: z * 0.5 if float(z.sum()) > 0 else x, "cannot be compiled"),
    ],
)
def test_an_f_that_is_no_function_of_its_inputs_is_refused(cell, message):
    compiled = ic.compile(ic.ImplicitLayer(ic.FixedPoint(cell), solver=ic.Picard()))
    with pytest.raises(ic.InputError, match=message):
        compiled(torch.ones(2, 3))


def test_a_tensor_that_is_no_parameter_is_refused_where_it_would_lose_its_gradient():
    loose = torch.ones(3, requires_grad=True)
    compiled = ic.compile(
        ic.ImplicitLayer(ic.FixedPoint(lambda z, x: 0.1 * z * loose + x), solver=ic.Picard())
    )
    with pytest.raises(ic.GradientError, match="neither in x nor a parameter"):
        compiled(torch.ones(2, 3))


def test_statistics_that_f_writes_are_refused():
    norm = nn.BatchNorm1d(3)
    compiled = ic.compile(
        ic.ImplicitLayer(
            ic.FixedPoint(lambda z, x: 0.1 * norm(z) + x), solver=ic.Picard(), coupled=True
        )
    )
    with pytest.raises(ic.InputError, match="writes into a tensor"):
        compiled(torch.randn(4, 3))


@pytest.mark.usefixtures("plainly")
def test_a_backward_pass_under_autocast_keeps_the_dtype_and_takes_one_gradient():
    torch.manual_seed(0)
    net = nn.Linear(4, 4)
    cell = ic.FixedPoint(lambda z, x: torch.tanh(net(z) / 4 + x))
    options = {"solver": ic.Picard(), "gradient": ic.Implicit(ic.Picard())}
    x = torch.randn(3, 4, requires_grad=True)
    z, leaves = ic.compile(ic.ImplicitLayer(cell, **options))(x), (x, *net.parameters())
    expected = torch.autograd.grad(z.sum(), leaves, retain_graph=True)
    with torch.autocast("cpu", torch.bfloat16):
        found = torch.autograd.grad(z.sum(), leaves, retain_graph=True)
    assert all(map(torch.equal, found, expected))
    with pytest.raises(ic.GradientError, match="takes one gradient at a time"):
        torch.autograd.grad(z, x, torch.ones(2, 3, 4), is_grads_batched=True)


def test_autocast_is_refused():
    compiled = ic.compile(layer())
    with torch.autocast("cpu", torch.bfloat16), pytest.raises(ic.InputError, match="autocast"):
        compiled(inputs(2)[0])


@pytest.mark.usefixtures("plainly")
def test_a_copy_compiles_for_itself():
    compiled = ic.compile(layer())
    x, scale = inputs(2)
    expected = compiled((x, ic.shared(scale)))
    copied = pickle.loads(pickle.dumps(compiled))
    assert not copied.plans
    torch.testing.assert_close(copied((x, ic.shared(scale))), expected)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_it_is_a_part_of_a_larger_graph_in_inference():
    torch._dynamo.reset()
    linear = nn.Linear(6, 6)
    inner = ic.ImplicitLayer(
        ic.FixedPoint(lambda z, x: torch.tanh(0.5 * linear(z) + x)), solver=ic.Anderson(tol=1e-6)
    )
    model = nn.Sequential(nn.Linear(4, 6), ic.compile(inner), nn.Linear(6, 2))
    whole = torch.compile(model, fullgraph=True, backend="aot_eager")
    with torch.no_grad():
        for batch in (2, 7):
            x = torch.randn(batch, 4)
            expected = model[2](inner(model[0](x)))
            torch.testing.assert_close(whole(x), expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (lambda: nn.Sequential(nn.Linear(8, 8), layer()), r"a Sequential object; .* layer at '1'"),
        (Cell, "expected a layer, received a Cell object$"),
        (lambda: ic.compile(layer()), "received a CompiledLayer object; .* layer at 'layer'"),
        (lambda: None, "expected a layer, received None$"),
    ],
)
def test_what_is_no_layer_is_refused_and_the_layers_in_it_are_named(given, message):
    with pytest.raises(ic.ConfigError, match=message):
        ic.compile(given())
