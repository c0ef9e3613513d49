"""Iterations as CUDA graphs, emulated: a solve by graphs is the solve by the loop, to the bit."""

from __future__ import annotations

import contextlib
import copy
import gc
import threading
import warnings
import weakref
from dataclasses import dataclass
from functools import partial
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from cpu_launcher import on_cpu, with_graphs
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

import implicitcore as ic
from implicitcore.testing.expect import known
from implicitcore.testing.hard_maps import PROBLEMS

BACKEND = type(on_cpu())
LOOP, GRAPHS = BACKEND(), BACKEND(cuda_graphs=True)
KINDS = [ic.Picard, ic.Anderson, ic.Broyden]
each_kind = pytest.mark.parametrize("kind", KINDS)


@pytest.fixture(autouse=True)
def graphs(monkeypatch):
    """What records graphs; it counts them, and what is launched of them."""
    return with_graphs(monkeypatch)


class Calls:
    """A count that no record depends on: what such an object holds is not looked at."""

    count = 0
    scale: torch.Tensor


class Cell(nn.Module):
    """tanh(W z + x), of which samples converge at unlike rates; it counts its calls."""

    def __init__(self, n: int = 7, inner: nn.Module | None = None) -> None:
        super().__init__()
        weight = torch.randn(n, n, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
        self.weight = nn.Parameter(0.9 * weight / torch.linalg.matrix_norm(weight, 2))
        self.inner, self.gain, self.calls = inner or nn.Identity(), 1.0, Calls()

    def forward(self, z, x):
        self.calls.count += 1
        return self.inner(torch.tanh(self.gain * z @ self.weight.to(z.dtype) + x))


def x_of(batch=4, n=7, seed=0):
    shift = torch.randn(batch, n, generator=torch.Generator().manual_seed(seed))
    return shift.double() * torch.linspace(0.1, 3, batch).double()[:, None]


def layer_of(cell, backend, solver=None, **options):
    solver = solver or ic.Anderson(tol=1e-9, max_steps=60)
    return ic.ImplicitLayer(ic.FixedPoint(cell), solver=solver, backend=backend, **options)


@torch.no_grad()
def solve(layer, x, **options):
    found = layer.solve(x, torch.zeros_like(x), **options)
    assert isinstance(found, ic.Solution)
    return found


def same(found, expected):
    for name in ("z", "residual", "status", "steps"):
        one, other = (getattr(each, name) for each in (found, expected))
        assert torch.equal(one.nan_to_num(), other.nan_to_num()), name
    assert found.evaluations == expected.evaluations


@each_kind
@pytest.mark.parametrize("function", ["fixed_point", "find_root"])
@pytest.mark.parametrize("name", ["rates", "some expanding", "nan", "runaway", "at the root"])
def test_a_solve_by_graphs_is_that_by_the_loop(graphs, name, function, kind):
    problem, solver = PROBLEMS[name](torch.float64), kind(tol=1e-7, max_steps=23)
    inner = problem.f
    f = inner if function == "fixed_point" else lambda z, x: inner(z, x) - z
    solving = partial(getattr(ic, function), on_failure="ignore")
    for x in (problem.x, problem.x, problem.x.flip(0)):
        found, expected, torch_alone = (
            solving(f, torch.zeros_like(x), x, solver=solver, backend=backend)
            for backend in (GRAPHS, LOOP, None)
        )
        same(found, expected)
        assert 0 <= found.evaluations - torch_alone.evaluations <= 4 * (1 + (name == "nan"))
    assert (graphs.records, graphs.replays > 0) == ((0, False) if "root" in name else (3, True))


@each_kind
@pytest.mark.parametrize("steps", range(1, 11))
def test_no_evaluation_is_one_too_many(graphs, kind, steps):
    x, cell = x_of(), Cell()
    found, expected = (
        [solve(layer_of(cell, each, kind(tol=0, max_steps=steps)), x) for _ in range(3)]
        for each in (GRAPHS, LOOP)
    )
    for one, other in zip(found, expected, strict=True):
        same(one, other)
        assert one.evaluations == steps
    assert bool(graphs.replays) == (steps > 3)


def test_f_is_python_in_the_first_iteration_alone(graphs):
    cell, x = Cell(), x_of()
    layer = layer_of(cell, GRAPHS, ic.Picard(tol=0, max_steps=22))
    for _ in range(2):
        solve(layer, x)
    cell.calls.count = graphs.replays = 0
    assert solve(layer, x).evaluations == 22
    # The first, the last, and the iterations before it that are no whole graph: 1 + 2 + 1 + 4 * 4.
    assert (cell.calls.count, graphs.replays, graphs.records) == (3, 10, 3)


@each_kind
def test_nothing_of_a_solve_stays_in_the_memory(kind):
    layer, loop = (
        layer_of(cell, each, kind(tol=1e-8)) for cell in (Cell(),) for each in (GRAPHS, LOOP)
    )
    inputs = [x_of(seed=seed) for seed in range(3)]
    inputs.insert(2, torch.full_like(inputs[0], torch.nan))
    found = [solve(layer, x) for x in inputs]
    for one, x in zip(found, inputs, strict=True):  # after all of them
        same(one, solve(loop, x))
    assert bool((found[2].status == ic.Status.NON_FINITE).all())


def test_parameters_that_are_trained_are_followed(graphs):
    cell, x = Cell(), x_of()
    layer = layer_of(cell, GRAPHS, gradient=ic.Implicit(ic.GMRES(tol=1e-10)))
    twin = layer_of(other := Cell(), LOOP, gradient=ic.Implicit(ic.GMRES(tol=1e-10)))
    for _ in range(5):
        for each, model in ((layer, cell), (twin, other)):
            each(x).square().sum().backward()
            with torch.no_grad():
                model.weight.sub_(known(model.weight.grad), alpha=0.01)
            model.zero_grad()
        assert torch.equal(cell.weight, other.weight)
    assert graphs.records == 3 and graphs.replays > 10


def test_the_gradient_is_that_of_the_solution(graphs):
    cell, x = Cell(), x_of().requires_grad_()
    layer = layer_of(
        cell, GRAPHS, ic.Anderson(tol=1e-12), gradient=ic.Implicit(ic.GMRES(tol=1e-12))
    )
    for _ in range(2):
        layer(x)
    z = layer(x)
    found = torch.autograd.grad(z.square().sum(), [cell.weight, x])
    assert graphs.replays
    slope = 1 - z.detach().square()
    systems = torch.eye(7) - slope[:, :, None] * cell.weight.detach().T  # I - df/dz, of each sample
    u = torch.linalg.solve(systems.mT, 2 * z.detach()) * slope
    assert torch.allclose(found[1], u, rtol=1e-8, atol=1e-10)
    assert torch.allclose(found[0], z.detach().T @ u, rtol=1e-8, atol=1e-10)


def test_other_memory_or_another_constant_is_recorded_anew(graphs):
    cell, x = Cell(), x_of()
    layer, loop = layer_of(cell, GRAPHS), layer_of(cell, LOOP)

    def again():
        graphs.records = graphs.replays = 0
        for _ in range(3):
            same(solve(layer, x), solve(loop, x))
        assert (graphs.records, graphs.replays > 0) == (3, True)

    again()
    kept = cell.weight.data  # its address is not used again
    cell.weight.data = 0.5 * kept
    again()
    cell.weight = nn.Parameter(0.3 * kept)
    again()
    cell.gain = 0.7
    again()
    cell.eval()
    again()


@dataclass
class Options:
    """Of a cell, changed in place."""

    gain: float = 1.0


IN_PLACE = {
    "a list": ([1.0], lambda held: held[0], lambda held: held.__setitem__(0, 0.6)),
    "a list in a dictionary": (
        {"gains": [1.0]},
        lambda held: held["gains"][-1],
        lambda held: held["gains"].append(0.6),
    ),
    "a set": ({1.0}, max, lambda held: held.add(1.25)),
    "a dataclass": (Options(), lambda held: held.gain, lambda held: setattr(held, "gain", 0.6)),
    "a namespace": (
        SimpleNamespace(gain=1.0),
        lambda held: held.gain,
        lambda held: setattr(held, "gain", 0.6),
    ),
}


@pytest.mark.parametrize("closure", [False, True], ids=["an attribute", "a closure"])
@pytest.mark.parametrize("what", IN_PLACE)
def test_what_is_changed_in_place_is_recorded_anew(graphs, what, closure):
    held, gain, change = copy.deepcopy(IN_PLACE[what][0]), *IN_PLACE[what][1:]

    class Scaled(Cell):
        def __init__(self):
            super().__init__()
            self.held = held

        def forward(self, z, x):
            return torch.tanh(0.5 * gain(self.held) * z + x)

    f = (lambda z, x: torch.tanh(0.5 * gain(held) * z + x)) if closure else Scaled()
    x = x_of()
    layer, loop = layer_of(f, GRAPHS), layer_of(f, LOOP)
    for changed in (False, True):
        if changed:
            before = solve(loop, x).z
            change(held)
            assert not torch.allclose(solve(loop, x).z, before)
        graphs.records = graphs.replays = 0
        for _ in range(3):
            same(solve(layer, x), solve(loop, x))
        assert (graphs.records, graphs.replays > 0) == (3, True)


def test_a_list_that_holds_itself(graphs):
    held: list[Any] = [1.0]
    held.append(held)
    x = x_of()
    f = lambda z, x: torch.tanh(0.5 * held[0] * z + x)  # noqa: E731
    layer, loop = layer_of(f, GRAPHS), layer_of(f, LOOP)
    for _ in range(3):
        same(solve(layer, x), solve(loop, x))
    assert graphs.replays > 0


def test_tensors_in_a_list_are_read_where_they_are(graphs):
    class Shifted(Cell):
        def __init__(self):
            super().__init__()
            self.shifts = [torch.ones(7, dtype=torch.float64)]

        def forward(self, z, x):
            return super().forward(z, x + self.shifts[0])

    cell, x = Shifted(), x_of()
    layer, loop = layer_of(cell, GRAPHS), layer_of(cell, LOOP)
    for _ in range(3):
        same(solve(layer, x), solve(loop, x))
        cell.shifts[0].mul_(0.9)
    assert graphs.records == 3
    kept = cell.shifts[0]  # its address is not used again
    cell.shifts[0] = 2 * kept
    for _ in range(3):
        same(solve(layer, x), solve(loop, x))
    assert graphs.records == 6


def test_what_a_solve_draws_or_computes_once_is_that_of_the_solve(graphs):
    linear = nn.utils.parametrizations.spectral_norm(nn.Linear(7, 7).double())
    cell = Cell(inner=nn.Sequential(linear, ic.VariationalDropout(0.3)))
    x, found = x_of(), {}
    state = {name: value.clone() for name, value in cell.state_dict().items()}
    for backend in (GRAPHS, LOOP):
        cell.load_state_dict(state)
        torch.manual_seed(0)
        layer = layer_of(cell, backend)
        found[backend] = [solve(layer, x) for _ in range(4)]
    for one, other in zip(found[GRAPHS], found[LOOP], strict=True):
        same(one, other)
    assert not torch.equal(found[LOOP][0].z, found[LOOP][1].z)
    assert (graphs.records, graphs.replays > 0) == (3, True)


def test_under_autocast_the_weights_are_cast_in_the_graph(graphs):
    cell, x = Cell().float(), x_of().float()
    layer, loop = (layer_of(cell, each, ic.Picard(tol=1e-2)) for each in (GRAPHS, LOOP))
    for _ in range(3):
        with torch.autocast("cpu", torch.bfloat16):
            same(solve(layer, x), solve(loop, x))
        with torch.no_grad():
            cell.weight.mul_(0.9)
    assert (graphs.records, graphs.replays > 0) == (3, True)


def test_a_solver_that_goes_on_from_another(graphs):
    cell = Cell()
    solver = ic.Chain((ic.Picard(tol=1e-2, max_steps=4), ic.Anderson(tol=1e-10, max_steps=60)))
    layer, loop = layer_of(cell, GRAPHS, solver), layer_of(cell, LOOP, solver)
    for seed in range(4):
        same(solve(layer, x_of(seed=seed)), solve(loop, x_of(seed=seed)))
    assert graphs.replays


@pytest.mark.parametrize("batches", [range(1, 13), [1, 2, 3] * 3])
def test_shapes(graphs, batches):
    layer = layer_of(cell := Cell(), GRAPHS)
    for batch in batches:
        same(solve(layer, x_of(batch)), solve(layer_of(cell, LOOP), x_of(batch)))
    # One that is met once is not worth it.
    assert graphs.records == (9 if 3 * [1] == [b for b in batches if b == 1] else 0)


def test_no_more_than_a_few_shapes_have_graphs(graphs):
    layer = layer_of(Cell(), GRAPHS)
    for batch in range(1, 9):
        for _ in range(2):
            solve(layer, x_of(batch))
    assert graphs.records == 8 * 3
    solve(layer, x_of(9))
    with pytest.warns(ic.InputWarning, match="graphs for 8 sets of shapes already"):
        solve(layer, x_of(9))


def test_two_threads_have_one_layer(graphs):
    layer = layer_of(cell := Cell(), GRAPHS)
    inputs, found = [x_of(seed=seed) for seed in range(4)], {}
    for _ in range(2):
        solve(layer, inputs[0])
    meet = threading.Barrier(4)

    def work(place):
        meet.wait()
        found[place] = [solve(layer, inputs[place]) for _ in range(5)]

    threads = [threading.Thread(target=work, args=(place,)) for place in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for place, x in enumerate(inputs):
        expected = solve(layer_of(cell, LOOP), x)
        for one in found[place]:
            same(one, expected)


def test_a_solve_within_a_solve_of_the_same_f_runs_the_loop(graphs):
    """The memory of the graphs is the outer one's."""
    work = []

    class Nested(nn.Module):
        def forward(self, z):
            if work:
                work.pop()()
            return z

    cell, inside = Cell(inner=Nested()), []
    layer, x = layer_of(cell, GRAPHS), x_of()
    expected = [solve(layer, x) for _ in range(2)][0]
    work.append(lambda: inside.append(solve(layer, x)))
    graphs.replays = 0
    same(solve(layer, x), expected)
    assert graphs.replays == expected.evaluations // 2  # those of the outer one
    same(inside[0], expected)


class Refused(nn.Module):
    """What is not f's own, or not the device's."""

    def __init__(self, what: str) -> None:
        super().__init__()
        self.what, self.hidden = what, Calls()
        self.hidden.scale = torch.ones(7).double()
        self.register_buffer("count", torch.zeros((), dtype=torch.int64))
        self.norm = nn.BatchNorm1d(7, momentum=1e-9).double()
        self.generator = torch.Generator().manual_seed(0)

    def forward(self, z):
        return getattr(self, f"_{self.what}")(z)

    def _item(self, z):
        return z * float(bool(z.detach().sum().item() < 1e9))

    def _caught(self, z):
        with contextlib.suppress(RuntimeError):
            z = z * float(bool(z.detach().sum().item() < 1e9))
        return z

    def _mask(self, z):
        z = z.clone()
        z[z > 2] = z[z > 2] * 1.0
        return z

    def _nonzero(self, z):
        return z + 0 * z.nonzero().sum()

    def _object(self, z):
        return z * self.hidden.scale

    def _buffer(self, z):
        self.count += 1
        return z

    def _norm(self, z):
        self.norm(z.detach())
        return z

    def _functional(self, z):
        norm = self.norm
        nn.functional.batch_norm(z, norm.running_mean, norm.running_var, training=True)
        return z

    def _generator(self, z):
        return z + 0 * torch.rand(z.shape, generator=self.generator, dtype=z.dtype)

    def _hook(self, z):
        return z


REASONS = {
    "item": r"reads values on the host \(aten._local_scalar_dense\)",
    "caught": r"reads values on the host \(aten._local_scalar_dense\)",
    "mask": r"reads values on the host \(aten.index\)",
    "nonzero": r"reads values on the host \(aten.nonzero\)",
    "object": r"a tensor \[7\] that is no parameter, buffer or attribute",
    "buffer": r"writes into a tensor \[\] that it reads \(aten.add_\)",
    "norm": r"writes into a tensor \[\] that it reads \(aten.add_\)",
    "functional": r"writes into a tensor \[7\] that it reads \(aten.*batch_norm",
    "generator": r"draws from a generator of its own",
    "hook": r"Refused has hooks",
}


@pytest.mark.parametrize("what", REASONS)
def test_what_cannot_be_recorded_is_run_by_the_loop(graphs, what):
    cell = Cell(inner=Refused(what))
    if what == "hook":
        cell.inner.register_forward_hook(lambda module, given, value: value)
    layer, x = layer_of(cell, GRAPHS, ic.Picard(tol=1e-6)), x_of()
    expected = solve(layer_of(cell, LOOP, ic.Picard(tol=1e-6)), x)
    with pytest.warns(
        ic.InputWarning, match=rf"^cuda_graphs: FixedPoint is solved without: .*{REASONS[what]}"
    ):
        for _ in range(3):
            same(solve(layer, x), expected)
    calls = cell.calls.count
    with warnings.catch_warnings(action="ignore", category=ic.InputWarning):
        same(solve(layer, x), expected)
    assert cell.calls.count - calls == expected.evaluations  # nothing is tried again
    assert graphs.replays == 0
    assert cell.inner.count == (5 * expected.evaluations if what == "buffer" else 0)


def test_a_number_that_changes_in_every_solve_is_said(graphs):
    class Counting(Cell):
        count = 0

        def forward(self, z, x):
            self.count += 1
            return super().forward(z, x)

    layer, x = layer_of(Counting(), GRAPHS, ic.Picard(tol=0.5)), x_of()
    for _ in range(64):
        solve(layer, x)
    with pytest.warns(ic.InputWarning, match="numbers among f's attributes, are always others"):
        solve(layer, x)
    assert graphs.records == 0


def test_a_tensor_that_is_another_in_every_solve_is_said(graphs):
    class Keeping(Cell):
        def forward(self, z, x):
            self.last = super().forward(z, x)
            return self.last

    cell, held = Keeping(), []
    layer, loop = layer_of(cell, GRAPHS), layer_of(cell, LOOP)
    with pytest.warns(ic.InputWarning, match="keeps as attributes, are always others"):
        for seed in range(12):
            same(solve(layer, x_of(seed=seed)), solve(loop, x_of(seed=seed)))
            held.append(cell.last)  # so that its address is not used again
    assert graphs.records == 0


def test_a_device_that_fails_to_record_leaves_the_loop(graphs):
    graphs.failing = True
    cell, x = Cell(), x_of()
    layer, expected = layer_of(cell, GRAPHS), solve(layer_of(cell, LOOP), x)
    solve(layer, x)
    same(solve(layer, x), expected)  # it goes on where it was
    graphs.failing = False
    with pytest.warns(ic.InputWarning, match="RuntimeError: CUDA error: operation not permitted"):
        same(solve(layer, x), expected)
    same(solve(layer_of(Cell(), GRAPHS), x), expected)


def test_an_f_that_fails_is_free_for_the_next_solve(graphs):
    failing = []

    class Failing(nn.Module):
        def forward(self, z):
            return 1 / len(failing[1:]) if failing else z

    cell, x = Cell(inner=Failing()), x_of()
    layer, expected = layer_of(cell, GRAPHS), solve(layer_of(cell, LOOP), x)
    for _ in range(2):
        solve(layer, x)
    failing.append(True)
    with pytest.raises(ZeroDivisionError):
        solve(layer, x)
    failing.clear()
    graphs.replays = 0
    same(solve(layer, x), expected)
    assert graphs.replays


class Operations(TorchDispatchMode):
    """The names of those run while it is entered."""

    def __init__(self) -> None:
        super().__init__()
        self.names = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.names.append(func.overloadpacket.__name__)
        return func(*args, **(kwargs or {}))


def test_a_trace_and_a_mode_see_each_iteration(graphs):
    layer, x = layer_of(cell := Cell(), GRAPHS), x_of()
    expected = [solve(layer, x) for _ in range(2)][0]
    calls, graphs.replays = cell.calls.count, 0
    trace = solve(layer, x, trace=True).trace
    assert trace is not None and cell.calls.count - calls == len(trace)
    with Operations() as seen:
        same(solve(layer, x), expected)
    assert seen.names.count("tanh") == expected.evaluations
    assert graphs.replays == 0
    with torch.device("cpu"):
        same(solve(layer, x), expected)
    assert graphs.replays


def test_what_is_no_tensor_in_x(graphs):
    class Scaled(Cell):
        def forward(self, z, x):
            return super().forward(z * x["rate"], x["shift"])

    layer, loop = (layer_of(cell, each) for cell in (Scaled(),) for each in (GRAPHS, LOOP))
    start = torch.zeros(4, 7).double()
    with torch.no_grad():
        for rate in (0.5, 0.5, 0.9, 0.9, 0.5):
            x = {"rate": rate, "shift": x_of()}
            same(layer.solve(x, start), loop.solve(x, start))
        assert graphs.records == 6
        with pytest.warns(ic.InputWarning, match="x holds .*neither a tensor nor a number"):
            layer.solve({"rate": 0.5, "shift": x_of(), "more": {1, 2}}, start)


def test_graphs_are_forgotten_with_the_f(graphs):
    layer, x = layer_of(Cell(), GRAPHS), x_of()
    for _ in range(3):
        solve(layer, x)
    assert graphs.replays
    seen = weakref.ref(layer.dynamics.cell)
    del layer
    gc.collect()
    assert seen() is None


def test_a_device_without_graphs_says_so(monkeypatch):
    monkeypatch.undo()
    layer, x = layer_of(Cell(), GRAPHS), x_of()
    solve(layer, x)
    with pytest.warns(ic.InputWarning, match="there are no CUDA graphs on cpu"):
        solve(layer, x)
