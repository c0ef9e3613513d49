"""Kernels in a graph: what they are asked for, what is kept, and that nothing else is changed."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from support.operations import Operations
from support.watched import REFERENCE, Watched
from torch.autograd import forward_ad, gradcheck, gradgradcheck
from torch.utils._python_dispatch import _disable_current_modes

import implicitcore as ic
from implicitcore.backends import fused_products, fused_sums
from implicitcore.ode_solvers import tableaus
from implicitcore.ode_solvers.dop853_tableau import DOP853
from implicitcore.ode_solvers.explicit_stages import stages_of, sums_of
from implicitcore.testing.dense import relative_error
from implicitcore.testing.expect import known
from implicitcore.testing.problems import inputs

PAGE = Path(__file__).parents[2] / "docs" / "benchmarks" / "launches.md"
BATCH, N = 3, 4
LONG = {"Tsit5": tableaus.TSIT5, "Dopri5": tableaus.DOPRI5, "DOP853": DOP853}


@pytest.fixture(autouse=True)
def _small_states_too(monkeypatch):
    monkeypatch.setattr(fused_sums, "LEAST", 1)


class Step:
    """A step of a method, for a velocity w sin(z) of which each stage can be cut from the graph."""

    def __init__(self, tableau, backend, *, cut=()):
        self.tableau, self.backend, self.cut = tableau, backend, cut
        self.stages = []

    def __call__(self, z, dt, w):
        sums = sums_of(self.backend, self.tableau.rows, z, dt)
        places = list(torch.arange(1, len(self.tableau.a) + 1))
        self.stages, end = stages_of(
            self.tableau,
            lambda place, point: self._velocity(place, point, w),
            sums,
            places,
            (z, self._velocity(0, z, w)),
        )
        return end

    def _velocity(self, place, point, w):
        value = w * torch.sin(point)
        return value.detach() if int(place) in self.cut else value


def drawn(*, requires_grad=True, dtype=torch.float64):
    torch.manual_seed(0)
    z, w = torch.randn(BATCH, N, dtype=dtype), torch.randn(N, dtype=dtype)
    dt = torch.tensor([0.1, -0.2, 0.3], dtype=dtype)
    return [each.requires_grad_(requires_grad) for each in (z, dt, w)]


@pytest.mark.parametrize("tableau", LONG.values(), ids=LONG)
def test_the_derivatives_of_a_step_are_those_of_differences(tableau):
    backend = Watched()
    step = Step(tableau, backend)
    assert gradcheck(step, drawn())
    assert gradgradcheck(step, drawn())
    assert set(backend.calls) == {"stage_combination"}


@pytest.mark.parametrize("tableau", LONG.values(), ids=LONG)
def test_a_stage_is_one_call_forward_and_one_backward(tableau):
    backend, (z, dt, w) = Watched(), drawn()
    end = Step(tableau, backend)(z, dt.detach(), w)
    combinations = len(tableau.a) + (not tableau.fsal)
    assert backend.calls == ["stage_combination"] * combinations
    torch.autograd.grad(end.sum(), (z, w))
    assert len(backend.calls) == 2 * combinations + 1  # that of z


def test_short_sums_in_a_graph_are_those_of_torch():
    backend, (z, dt, w) = Watched(), drawn()
    found, expected = (Step(tableaus.RK4, each)(z, dt, w) for each in (backend, REFERENCE))
    assert not backend.calls
    assert torch.equal(found, expected)
    with torch.no_grad():
        Step(tableaus.RK4, backend)(z, dt, w)
    assert len(backend.calls) == 4


def test_in_a_graph_large_states_or_long_sums_are_the_kernels(monkeypatch):
    monkeypatch.setattr(fused_sums, "LEAST", BATCH * N + 1)
    arguments, backend = drawn(), Watched()
    Step(tableaus.TSIT5, backend)(*arguments)
    assert not backend.calls
    Step(DOP853, backend)(*arguments)
    assert len(backend.calls) == len(DOP853.a)
    monkeypatch.setattr(fused_sums, "LEAST", BATCH * N)
    Step(tableaus.TSIT5, backend)(*arguments)
    assert len(backend.calls) == len(DOP853.a) + len(tableaus.TSIT5.a)


NO_LAUNCH = {"new_empty", "unsqueeze", "view"}
LAUNCHES = {  # of a step's combinations in a graph, forward and backward: torch's, and by kernels
    "RK4": (24, 24),
    "Tsit5": (69, 15),
    "DOP853": (186, 27),
}


class OneLaunch(Watched):
    """A kernel is one operation."""

    def _stage_combination(self, z, dt, stages, weights):
        with _disable_current_modes():
            value = super()._stage_combination(z, dt, stages, weights)
        return torch.add(value, 0)


class Free(torch.autograd.Function):
    """A velocity that costs nothing."""

    @staticmethod
    def forward(ctx, point):
        return point.view_as(point)

    @staticmethod
    def backward(ctx, *grads):
        return grads[0]


@pytest.mark.parametrize("name", LAUNCHES)
def test_what_a_step_launches_in_a_graph(name):
    tableau, found = {"RK4": tableaus.RK4, **LONG}[name], []
    for backend in (REFERENCE, OneLaunch()):
        z, dt, _ = drawn()
        dt, places = dt.detach(), list(torch.arange(1, len(tableau.a) + 1))
        with Operations() as operations:
            sums = sums_of(backend, tableau.rows, z, dt)
            start = z, Free.apply(z)
            _, end = stages_of(tableau, lambda _, point: Free.apply(point), sums, places, start)
            torch.autograd.grad(end, z, torch.ones_like(z))
        found.append(sum(each not in NO_LAUNCH for each in operations.names) - 1)
    assert tuple(found) == LAUNCHES[name]
    assert f"| `{name}` | {found[0]} | {found[1]} |" in PAGE.read_text(encoding="utf-8")


def kept(step, *arguments):
    """The bytes that a graph keeps, of tensors that are not among the arguments."""
    memory = {}

    def pack(tensor):
        storage = tensor.untyped_storage()
        memory[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        step(*arguments)
    for each in arguments:
        memory.pop(each.untyped_storage().data_ptr(), None)
    return sum(memory.values())


@pytest.mark.parametrize("with_dt", [False, True])
@pytest.mark.parametrize("tableau", LONG.values(), ids=LONG)
def test_no_more_is_kept_than_by_a_graph_of_torch(tableau, with_dt):
    z, dt, w = drawn()
    dt = dt if with_dt else dt.detach()
    found, expected = (kept(Step(tableau, each), z, dt, w) for each in (Watched(), REFERENCE))
    assert 0 < found <= expected


@pytest.mark.parametrize("cut", [(0,), (1, 3), (5,), (0, 1, 2, 3, 4)], ids=str)
@pytest.mark.parametrize("fixed", [(), (0,), (2,)], ids=["all", "without z", "without w"])
def test_what_is_not_in_the_graph_has_no_part_in_it(cut, fixed):
    gradients = []
    for backend in (Watched(), REFERENCE):
        arguments = drawn()
        for place in fixed:
            arguments[place].requires_grad_(False)
        end = Step(tableaus.TSIT5, backend, cut=cut)(*arguments)
        wanted = [each for each in arguments if each.requires_grad]
        gradients.append(torch.autograd.grad(end.square().sum(), wanted, materialize_grads=True))
    assert relative_error(*gradients) < 1e-12


def test_a_loss_may_stop_at_a_stage_and_ask_for_a_stage():
    found = []
    for backend in (Watched(), REFERENCE):
        step, arguments = Step(tableaus.TSIT5, backend), drawn()
        end = step(*arguments)
        middle = step.stages[2]
        found.append(
            [
                *torch.autograd.grad(step.stages[3].sum(), arguments, retain_graph=True),
                *torch.autograd.grad(end.sum(), [middle], retain_graph=True),
                *torch.autograd.grad(middle.sum() + end.sum(), arguments, retain_graph=True),
                *torch.autograd.grad(end.sum(), arguments),
            ]
        )
    assert relative_error(*found) < 1e-12


def test_stages_of_another_dtype_or_layout():
    found = []
    for backend in (Watched(), REFERENCE):
        z, dt, w = drawn()
        sums = sums_of(backend, tableaus.TSIT5.rows, z, dt)
        stages = [w * z, (w * z.cos()).T.contiguous().T]
        points = [sums(stages[:1], 0), sums(stages, 1)]
        stages.append((w * points[1]).float())
        points.append(sums(stages, 2))
        assert points[-1].dtype == torch.float64
        found.append(torch.autograd.grad(torch.stack(points).sin().sum(), (z, dt, w)))
    assert relative_error(*found) < 1e-12


@pytest.mark.filterwarnings("ignore:.*torch.jit:DeprecationWarning")  # torch's own
def test_transforms_have_the_graph_of_torch():
    arguments, backend = drawn(requires_grad=False), Watched()
    step, reference = Step(tableaus.TSIT5, backend), Step(tableaus.TSIT5, REFERENCE)
    z, *rest = arguments
    with forward_ad.dual_level():
        dual = forward_ad.make_dual(z, torch.ones_like(z))
        ends = [forward_ad.unpack_dual(each(dual, *rest)) for each in (step, reference)]
        slopes = [known(end.tangent) for end in ends]
    assert torch.equal(*slopes)
    jacobians = [torch.func.jacrev(each, (0, 1, 2))(*arguments) for each in (step, reference)]
    assert all(map(torch.equal, *jacobians))
    assert not backend.calls
    many = [each.expand(2, *each.shape) for each in arguments]
    assert torch.equal(*(torch.func.vmap(each)(*many) for each in (step, reference)))


def test_many_gradients_at_once_are_those_of_torch():
    found = []
    for backend in (Watched(), REFERENCE):
        arguments = drawn()
        end = Step(tableaus.TSIT5, backend)(*arguments)
        many = torch.eye(BATCH * N, dtype=end.dtype).view(-1, BATCH, N)
        found.append(torch.autograd.grad(end, arguments, many, is_grads_batched=True))
    assert relative_error(*found) < 1e-12


def test_a_step_size_that_is_changed_is_an_error():
    z, dt, w = drawn()
    dt = dt.detach()
    end = Step(tableaus.TSIT5, Watched())(z, dt, w)
    dt.mul_(2)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        torch.autograd.grad(end.sum(), z)


HISTORY = 4  # rows


def factors(n, dtype=torch.float64):
    torch.manual_seed(0)
    shapes = (BATCH, HISTORY, n), (BATCH, 1, n), (BATCH, 1, HISTORY)
    return [torch.randn(shape, dtype=dtype, requires_grad=True) for shape in shapes]


def test_the_derivatives_of_products_are_those_of_differences(monkeypatch):
    monkeypatch.setattr(fused_products, "LEAST", 1)
    backend, (history, row, weights) = Watched(), factors(5)
    cases = [
        (backend.inner_products, (history, row)),
        (lambda h, r, w: backend.axpy_history(r, w, h, -0.7), (history, row, weights)),
        (lambda h, w: backend.axpy_history(None, w, h), (history, weights)),
        (lambda h: backend.axpy_history(row.detach(), weights.detach(), h), (history,)),
    ]
    for function, arguments in cases:
        assert gradcheck(function, arguments)
        assert gradgradcheck(function, arguments)
    assert set(backend.calls) == {"inner_products", "axpy_history"}


@pytest.mark.parametrize("large", [False, True])
def test_products_with_long_histories_in_a_graph_are_the_kernels(large):
    backend = Watched()
    history, row, weights = factors(fused_products.LEAST // (BATCH * HISTORY) + large)
    found = []
    for each in (backend, REFERENCE):
        mixed = each.axpy_history(row, weights, history, 0.5)
        total = mixed.square().sum() + each.inner_products(history, mixed).sum()
        found.append(torch.autograd.grad(total, (history, row, weights)))
    assert relative_error(*found) < 1e-12
    calls = ["axpy_history", "inner_products", "axpy_history", "inner_products"]
    assert backend.calls == (calls if large else [])
    history = history.detach()
    backend.axpy_history(row, weights, history)
    assert len(backend.calls) == (4 if large else 0)  # torch's product is faster where it is given


def test_products_keep_what_a_graph_of_torch_keeps(monkeypatch):
    monkeypatch.setattr(fused_products, "LEAST", 1)
    history, row, weights = factors(50)
    weights = weights.detach()

    def mix(backend):
        return lambda *arguments: backend.axpy_history(*arguments)

    arguments = row, weights, 1.0 * history
    found, expected = (kept(mix(each), *arguments) for each in (Watched(), REFERENCE))
    assert found <= expected


@pytest.mark.parametrize(
    "gradient", [ic.Unrolled(), ic.Checkpointed(), ic.Adjoint()], ids=lambda g: type(g).__name__
)
@pytest.mark.parametrize("solver", [ic.Tsit5(rtol=1e-8, atol=1e-8), ic.RK4(dt=0.25)], ids=repr)
def test_trajectories_meet_the_kernels_and_their_gradients_are_the_same(gradient, solver):
    found, backend = [], Watched()
    for each in (backend, REFERENCE):
        torch.manual_seed(0)
        net, x = torch.nn.Linear(N, N, dtype=torch.float64), inputs(BATCH, N).requires_grad_()
        times = torch.tensor([0.0, 0.4, 1.0], dtype=torch.float64)
        result = ic.integrate(
            lambda t, z, x, net=net: torch.tanh(net(z)), x, x,
            times=times, solver=solver, gradient=gradient, backend=each,
        )  # fmt: skip
        wrt = [x, *net.parameters()]
        found.append(torch.autograd.grad(result.z.square().sum(), wrt))
    assert relative_error(*found) < 1e-9
    graph_of_torch = isinstance(gradient, ic.Unrolled) and isinstance(solver, ic.RK4)
    assert ("stage_combination" in backend.calls) != graph_of_torch
