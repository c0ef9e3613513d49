"""Chunks of steps as CUDA graphs, emulated: a trajectory by graphs is that by the loop, to the
bit."""

from __future__ import annotations

import gc
import threading
import warnings
import weakref
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from support.torch_device import TorchDevice
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode, _disable_current_modes

import implicitcore as ic
from implicitcore.ode_solvers import graphed_steps, watched_field
from implicitcore.ode_solvers.watched_field import LENGTH
from implicitcore.testing import emulated_graphs
from implicitcore.testing.expect import known

LOOP, GRAPHS = TorchDevice(), TorchDevice(cuda_graphs=True)
FIXED = [ic.Euler(dt=0.02), ic.Midpoint(dt=0.03), ic.Heun3(dt=0.03), ic.RK4(dt=0.03)]
ADAPTIVE = [
    ic.Tsit5(rtol=1e-5, atol=1e-7),
    ic.Tsit5(rtol=1e-4, atol=1e-6, controller="pid", max_step=0.2),
    ic.Dopri5(rtol=1e-5, atol=1e-7, controller="i"),
    ic.Bosh3(),
    ic.DOP853(rtol=1e-7, atol=1e-9),
    ic.Adams(),
    ic.Adams(max_order=2, controller="pid"),
]
SEVERAL = [0.0, 0.3, 0.301, 0.9, 1.4, 2.0]
WAYS: dict[str, dict[str, Any]] = {
    "two times": {"times": [0.0, 2.0]},
    "several times": {"times": SEVERAL},
    "back in time": {"times": [0.5, 0.4, 0.1, 0.0]},
    "steps that end at times": {"times": SEVERAL, "hit_times": True},
}
OWN_TIMES = [[0.0, 0.5, 1.0], [0.6, 0.5, 0.0], [0.0, 0.1, 1.3], [0.0, 0.2, 0.5]]


def name_of(solver):
    return type(solver).__name__


@pytest.fixture(autouse=True)
def graphs(monkeypatch):
    """What records graphs; it counts them, and what is launched of them."""
    return emulated_graphs.emulated(monkeypatch)


class Calls:
    """A count that no record depends on: what such an object holds is not looked at."""

    count = 0
    scale: torch.Tensor


class Field(nn.Module):
    """x (R z - z) + cos t, samples at unlike rates x; it counts the calls of its Python."""

    def __init__(self, inner: nn.Module | None = None) -> None:
        super().__init__()
        weight = torch.randn(3, 3, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
        self.weight, self.inner, self.calls = nn.Parameter(weight), inner or nn.Identity(), Calls()

    def forward(self, t, z, x):
        self.calls.count += 1
        return self.inner(x * (torch.tanh(z @ self.weight) - z) + torch.cos(t))


RATES = torch.tensor([[0.5], [1.0], [3.0], [9.0]], dtype=torch.float64)


def z_of(seed=0):
    return torch.randn(4, 3, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@torch.no_grad()
def solve(field, backend, solver, z0=None, x=RATES, **options):
    given: dict[str, Any] = {"times": [0.0, 2.0]} | options
    z0 = z_of() if z0 is None else z0
    given |= {"on_failure": "ignore"}
    return ic.integrate(field, z0, x, solver=solver, backend=backend, **given)


def same(found, expected):
    for name in ("z", "status", "steps"):
        one, other = (getattr(each, name) for each in (found, expected))
        assert torch.equal(one.nan_to_num(), other.nan_to_num()), name
        assert torch.equal(one.isnan(), other.isnan()), name


def stages_of(solver):
    """Evaluations of a step, those of its continuous extension too."""
    if isinstance(solver, ic.Adams):
        return 1
    tableau = solver.tableau
    return len(tableau.a) + (not tableau.fsal) + len(tableau.more_a)


def compare(solver, *, most: float = 2 * LENGTH, seeds=(0, 0, 1), **options):
    """Solves by graphs and by the loop; at most so many steps are evaluated behind the end."""
    field = Field()
    found = expected = solve(field, GRAPHS, solver, z_of(seeds[0]), **options)
    for seed in seeds[1:]:  # recorded in the first of these
        found, expected = (
            solve(field, each, solver, z_of(seed), **options) for each in (GRAPHS, LOOP)
        )
        same(found, expected)
        extra = found.evaluations - expected.evaluations
        beside = 3 * int(found.steps.max()) if isinstance(solver, ic.DOP853) else 0
        assert 0 <= extra < most * stages_of(solver) + beside
    return found, expected


@pytest.mark.parametrize("solver", FIXED, ids=name_of)
@pytest.mark.parametrize("way", WAYS)
def test_fixed_steps_are_those_of_the_loop(graphs, solver, way):
    found, expected = compare(solver, most=0.5 / stages_of(solver), **WAYS[way])
    assert found.evaluations == expected.evaluations
    assert graphs.records == 1 and graphs.replays > 3


@pytest.mark.parametrize("solver", ADAPTIVE, ids=name_of)
@pytest.mark.parametrize("way", WAYS)
def test_adaptive_steps_are_those_of_the_loop(graphs, solver, way):
    compare(solver, **WAYS[way])
    assert graphs.records == 1 and graphs.replays > 2


def test_a_method_whose_last_stage_is_not_the_next_first(graphs):
    compare(ic.Fehlberg45(rtol=1e-6, atol=1e-8))
    assert graphs.records == 1 and graphs.replays > 2


@pytest.mark.parametrize("solver", [ADAPTIVE[0], ADAPTIVE[5], FIXED[3]], ids=name_of)
def test_times_of_each_sample(graphs, solver):
    several = solver is not FIXED[3]  # whose continuous extension takes an evaluation more
    times = OWN_TIMES if several else [[first, last] for first, _, last in OWN_TIMES]
    compare(solver, times=times)
    assert graphs.records == 1 and graphs.replays


def test_times_so_far_from_zero_that_they_are_rounded(graphs):
    times = torch.tensor([1e6, 1e6 + 1, 1e6 + 2], dtype=torch.float32)
    compare(ic.Tsit5(rtol=1e-4, atol=1e-6), times=times)
    assert graphs.replays


def test_the_solution_is_right(graphs):
    """Of a linear field, beside the exponential of its matrix."""
    matrix = torch.tensor([[-0.5, 2.0, 0.0], [-2.0, -0.5, 0.3], [0.0, 0.1, -1.0]]).double()
    times = torch.tensor([0.0, 0.7, 1.9, 3.0], dtype=torch.float64)

    def field(t, z, x):
        return z @ x.T

    for seed in range(3):
        z0 = z_of(seed)
        for solver in (ic.Tsit5(rtol=1e-8, atol=1e-10), ic.RK4(dt=0.02)):
            found = solve(field, GRAPHS, solver, z0, ic.shared(matrix), times=times)
            exact = torch.stack([z0 @ torch.linalg.matrix_exp(t * matrix.T) for t in times])
            assert torch.allclose(found.z, exact, rtol=1e-6, atol=1e-7)
    assert graphs.records == 2 and graphs.replays > 9


@pytest.mark.parametrize("most", [1, 3, 4, 5, 6, 8, 9, 12, 21])
def test_no_step_is_one_too_many(graphs, most):
    """A limit of steps, within a chunk or at its end."""
    for options in (WAYS["two times"], WAYS["several times"], WAYS["steps that end at times"]):
        field, solver = Field(), ic.Bosh3(rtol=1e-5, atol=1e-7, max_steps=most)
        for _ in range(3):
            found, expected = (solve(field, each, solver, **options) for each in (GRAPHS, LOOP))
            same(found, expected)
            assert bool((found.steps <= most * 5).all())
    assert (graphs.replays > 0) == (most > LENGTH)


def failing(t, z, x):
    """z' = x z^2 has poles; the square root ends where its domain does."""
    return torch.stack((x[:, 0] * z[:, 0].square(), -(z[:, 1].sqrt()) * x[:, 0].abs()), 1)


@pytest.mark.parametrize(
    "solver",
    [
        ic.Tsit5(max_steps=60),
        ic.Adams(max_steps=60),
        ic.Tsit5(min_step=0.05, rtol=1e-9),
        ic.RK4(dt=0.05),
    ],
    ids=repr,
)
def test_samples_that_fail_do_so_alone(graphs, solver):
    x = torch.tensor([[-1.0], [1.0], [0.1], [-0.2]], dtype=torch.float64)
    z0 = torch.tensor([[1.0, 9.0], [1.5, 9.0], [1.0, 1e-3], [1.0, 25.0]], dtype=torch.float64)
    for options in (WAYS["two times"], WAYS["several times"]):
        solve(failing, GRAPHS, solver, z0, x, **options)
        for scale in (1.0, 0.9):
            found, expected = (
                solve(failing, each, solver, scale * z0, x, **options) for each in (GRAPHS, LOOP)
            )
            same(found, expected)
        assert len(set(expected.status.tolist())) > 1
    assert graphs.replays


def test_f_is_python_in_the_first_step_alone(graphs):
    field, solver = Field(), ic.RK4(dt=2 / 33)
    for _ in range(2):
        solve(field, GRAPHS, solver)
    field.calls.count = graphs.replays = 0
    assert solve(field, GRAPHS, solver).evaluations == 33 * 4
    # The first step, and the three before the look at the device after 32.
    assert (field.calls.count, graphs.replays) == (4 * (1 + 3 + 1), 7)


def test_the_host_looks_at_a_chunk_when_the_next_is_launched(graphs, monkeypatch):
    seen = []

    def later(numbers):
        chunk, values = graphs.replays, numbers.tolist()
        return lambda: (seen.append((chunk, graphs.replays)), values)[1]

    monkeypatch.setattr(graphed_steps, "values_later", later)
    compare(ic.Bosh3(rtol=1e-6, atol=1e-8), seeds=(0, 0))
    late = [launched - chunk for chunk, launched in seen]
    assert [chunk for chunk, _ in seen] == [*range(1, len(seen) + 1)]  # each, in order
    assert set(late) == {0, 1} and late.count(1) > 10
    assert late[: late.index(0)].count(0) == 0 and late[late.index(0) :].count(1) == 0


VIEWS = {"slice", "select", "view", "expand", "unsqueeze", "squeeze", "alias", "detach", "unbind"}
LAUNCHES = {  # of a step in a chunk: with two output times, and with several
    "Tsit5": (0.5, 1.25),
    "Adams": (0.5, 1.25),
    "RK4": (0.75, 0.75),
}
PAGE = Path(__file__).parents[2] / "docs" / "benchmarks" / "launches.md"


class Launches(TorchDispatchMode):
    """Counts operations that are no views; a graph is one."""

    count = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.count += func.overloadpacket.__name__ not in VIEWS
        return func(*args, **(kwargs or {}))


def launched(name, times, steps, graphs, monkeypatch):
    """Launches of a solve of so many steps, and its graphs."""
    solver = {
        "Tsit5": ic.Tsit5(max_step=1 / steps, max_steps=steps),
        "Adams": ic.Adams(max_order=2, max_step=1 / steps, max_steps=steps),
        "RK4": ic.RK4(dt=1 / steps),
    }[name]
    launches, record, later = Launches(), graphs.record, graphed_steps.values_later

    def aside(replay):
        launches.count += 1
        with _disable_current_modes():
            replay()

    def values_later(numbers):
        launches.count += 1  # the copy to pinned memory
        with _disable_current_modes():
            return later(numbers)

    with monkeypatch.context() as patch:
        patch.setattr(graphs, "record", lambda *given: partial(aside, record(*given)))
        patch.setattr(watched_field, "modes_watch", lambda: False)
        patch.setattr(graphed_steps, "values_later", values_later)
        field = nn.Tanh()

        def flow(t, z, x):
            return 0.01 * field(z)

        for _ in range(2):
            solve(flow, GRAPHS, solver, times=times)
        graphs.replays = launches.count = 0
        with launches:
            solve(flow, GRAPHS, solver, times=times)
    return launches.count, graphs.replays


@pytest.mark.parametrize("name", LAUNCHES)
def test_launches_of_a_step(graphs, monkeypatch, name):
    for times, expected in zip(([0.0, 9.0], [0.0, 8.0, 9.0]), LAUNCHES[name], strict=True):
        if name == "RK4":
            times = [0.0, times[-1] / 9]
        steps = (9, 25) if name == "RK4" else (13, 29)
        (few, least), (many, most) = (
            launched(name, times, count, graphs, monkeypatch) for count in steps
        )
        assert most - least == 4 and (many - few) / (4 * LENGTH) == expected
    row = next(line for line in PAGE.read_text().splitlines() if line.startswith(f"| `{name}` in"))
    cells = [float(cell) for cell in row.split("|")[2:4]]
    assert cells == list(LAUNCHES[name])


def test_parameters_that_are_trained_are_followed(graphs):
    """And the gradient of a trajectory by graphs is that of the loop, and of the exact one."""
    strategy, found = ic.Adjoint(ic.Tsit5(rtol=1e-7, atol=1e-9)), {}
    for backend in (GRAPHS, LOOP):
        field, grads = Field(), []
        for _ in range(3):
            end = ic.integrate(
                field,
                z_of(),
                RATES,
                times=[0.0, 0.5, 1.0],
                solver=ic.Tsit5(rtol=1e-7, atol=1e-9),
                gradient=strategy,
                backend=backend,
            )
            end.z.square().sum().backward()
            grads.append(known(field.weight.grad).clone())
            with torch.no_grad():
                field.weight.sub_(grads[-1], alpha=0.01)
            field.zero_grad()
        found[backend] = torch.stack(grads)
    assert graphs.records == 1 and graphs.replays > 6
    assert torch.equal(found[GRAPHS], found[LOOP])
    field = Field()
    end = ic.integrate(field, z_of(), RATES, times=[0.0, 0.5, 1.0], solver=ic.RK4(dt=0.02))
    end.z.square().sum().backward()
    assert torch.allclose(found[GRAPHS][0], known(field.weight.grad), rtol=1e-4, atol=1e-5)


def test_other_memory_is_recorded_anew_and_nothing_stays_in_it(graphs):
    field, solver = Field(), ic.Tsit5(rtol=1e-6, atol=1e-8)
    kept = [(solve(field, GRAPHS, solver, z_of(k), times=SEVERAL), z_of(k)) for k in range(4)]
    for found, z0 in kept:  # after all of them
        same(found, solve(field, LOOP, solver, z0, times=SEVERAL))
    assert graphs.records == 1
    field.weight = nn.Parameter(0.5 * field.weight.data)
    for _ in range(3):
        same(solve(field, GRAPHS, solver), solve(field, LOOP, solver))
    assert graphs.records == 2


def test_other_times_of_as_many_are_the_same_graph(graphs):
    field, solver = Field(), ic.Tsit5(rtol=1e-6, atol=1e-8)
    for times in ([0.0, 0.5, 2.0], [0.5, 0.7, 0.9], [-1.0, 0.0, 3.0], [0.0, 1e-3, 0.1]):
        same(solve(field, GRAPHS, solver, times=times), solve(field, LOOP, solver, times=times))
    assert graphs.records == 1


def test_what_a_solve_draws_is_that_of_the_solve(graphs):
    found = {}
    for backend in (GRAPHS, LOOP):
        field = Field(ic.VariationalDropout(0.3))
        torch.manual_seed(0)
        solver = ic.Tsit5(rtol=1e-4, atol=1e-6)
        found[backend] = [solve(field, backend, solver) for _ in range(4)]
    for one, other in zip(found[GRAPHS], found[LOOP], strict=True):
        same(one, other)
    assert not torch.equal(found[LOOP][2].z, found[LOOP][3].z)
    assert graphs.records == 1 and graphs.replays


def test_a_map_as_a_field_of_a_layer(graphs):
    cell, z0 = nn.Linear(3, 3).double(), torch.zeros(4, 2, 3).double()

    def layer(backend):
        return ic.ImplicitLayer(
            ic.VectorField(lambda t, z, x: torch.tanh(cell(z) + x) - z),
            solver=ic.Tsit5(rtol=1e-5, atol=1e-7),
            backend=backend,
        )

    x, (one, other) = torch.ones(4, 2, 3).double(), (layer(GRAPHS), layer(LOOP))
    with torch.no_grad():
        for _ in range(3):
            for times in (None, [0.0, 1.0, 4.0]):
                found, expected = (each.solve(x, z0, times=times) for each in (one, other))
                assert torch.equal(found.z, expected.z)
    assert graphs.records == 2 and graphs.replays


def test_two_threads_have_one_field(graphs):
    field, solver, found = Field(), ic.Tsit5(rtol=1e-6, atol=1e-8), {}
    for _ in range(2):
        solve(field, GRAPHS, solver, times=SEVERAL)
    meet = threading.Barrier(3)

    def work(place):
        meet.wait()
        found[place] = [solve(field, GRAPHS, solver, z_of(place), times=SEVERAL) for _ in range(4)]

    threads = [threading.Thread(target=work, args=(place,)) for place in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for place in range(3):
        expected = solve(field, LOOP, solver, z_of(place), times=SEVERAL)
        for one in found[place]:
            same(one, expected)
    assert graphs.records == 1


def test_graphs_are_forgotten_with_the_field(graphs):
    field = Field()
    for solver in (ic.Tsit5(), ic.RK4()):
        for _ in range(3):
            solve(field, GRAPHS, solver)
    assert graphs.records == 2
    seen = weakref.ref(field)
    del field
    gc.collect()
    assert seen() is None


def test_a_field_that_fails_is_free_for_the_next_solve(graphs):
    stage = []

    class Failing(nn.Module):
        def forward(self, z):
            return 1 / len(stage[1:]) if stage else z

    field = Field(Failing())
    for solver in (ic.Tsit5(), ic.RK4()):
        expected = [solve(field, GRAPHS, solver) for _ in range(2)][0]
        stage.append(True)
        with pytest.raises(ZeroDivisionError):
            solve(field, GRAPHS, solver)
        stage.clear()
        graphs.replays = 0
        same(solve(field, GRAPHS, solver), expected)
        assert graphs.replays


def test_a_field_that_mixes_samples_is_found(graphs):
    def field(t, z, x):
        return -z + (0 if t.detach().max() < 0 else 1) * z.mean(0, keepdim=True).expand_as(z) * x

    mixing = torch.tensor([[0.0], [0.1], [1.0], [3.0]], dtype=torch.float64)
    for backend in (LOOP, GRAPHS):
        with pytest.raises(ic.InputError, match="mixes|depend"):
            solve(field, backend, ic.Tsit5(), x=mixing)


class Refused(nn.Module):
    """What a graph cannot do, within f."""

    def __init__(self, what: str) -> None:
        super().__init__()
        self.what, self.hidden = what, Calls()
        self.hidden.scale = torch.ones(3).double()
        self.register_buffer("count", torch.zeros((), dtype=torch.int64))

    def forward(self, z):
        if self.what == "item":
            return z * float(bool(z.detach().sum().item() < 1e9))
        if self.what == "object":
            return z * self.hidden.scale
        self.count += 1
        return z


IN_F = {
    "item": r"reads values on the host \(aten._local_scalar_dense\)",
    "object": r"a tensor \[3\] that is no parameter, buffer or attribute",
    "buffer": r"writes into a tensor \[\] that it reads \(aten.add_\)",
}


def unlike(message):
    """A warning of the backend, of a field solved without graphs."""
    return pytest.warns(
        ic.InputWarning, match=rf"^cuda_graphs: VectorField is solved without: .*{message}"
    )


@pytest.mark.parametrize("what", IN_F)
@pytest.mark.parametrize("solver", [ic.Tsit5(), ic.RK4()], ids=name_of)
def test_what_cannot_be_recorded_is_run_by_the_loop(graphs, what, solver):
    field = Field(Refused(what))
    expected = solve(field, LOOP, solver)
    with unlike(IN_F[what]):
        for _ in range(3):
            same(solve(field, GRAPHS, solver), expected)
    before = field.calls.count
    with warnings.catch_warnings(action="ignore", category=ic.InputWarning):
        same(solve(field, GRAPHS, solver), expected)
    assert field.calls.count - before == expected.evaluations  # nothing is tried again
    assert graphs.replays == 0
    if what == "buffer":
        assert field.inner.count == 5 * expected.evaluations


def largest(error):
    return error.abs().amax(1)


ASKED: dict[str, tuple[Any, dict[str, Any], str]] = {
    "dense": (ic.Tsit5(), {"dense": True}, "dense output and events look at each step"),
    "event": (ic.Tsit5(), {"event": lambda t, z, x: z[:, 0] - 9}, "dense output and events"),
    "jump": (ic.Tsit5(), {"step_at": [0.5]}, r"the field jumps \(step_at\)"),
    "norm": (ic.Tsit5(norm=largest), {}, "a norm of its own, or atol of each number"),
    "atol": (ic.Adams(atol=(1e-6, 1e-5, 1e-4)), {}, "a norm of its own, or atol of each number"),
    "implicit": (ic.ImplicitEuler(dt=0.1), {}, "the steps of ImplicitEuler are not recorded"),
    "stiff": (ic.Kvaerno5(), {}, "the steps of Kvaerno5 are not recorded"),
    "not fsal": (ic.Fehlberg45(), {"times": SEVERAL}, "evaluates f once more in steps that pass"),
}


@pytest.mark.parametrize("what", ASKED)
def test_what_is_looked_at_in_each_step_is_run_by_the_loop(graphs, what):
    solver, options, reason = ASKED[what]
    field = Field()
    with unlike(reason):
        for _ in range(3):
            found, expected = (solve(field, each, solver, **options) for each in (GRAPHS, LOOP))
            same(found, expected)
            assert found.evaluations == expected.evaluations
    assert graphs.replays == 0


def test_a_steady_state_is_looked_for_by_the_loop(graphs):
    solver = ic.SteadyState(ode_solver=ic.Tsit5(), tol=1e-6)

    def cell(z, x):
        return torch.tanh(0.3 * z + x)

    with (
        torch.no_grad(),
        pytest.warns(ic.InputWarning, match="whether it is to stop is asked before each step"),
    ):
        found, expected = (
            ic.fixed_point(cell, torch.zeros_like(RATES), RATES, solver=solver, backend=each)
            for each in (GRAPHS, LOOP)
        )
    assert torch.equal(found.z, expected.z) and found.evaluations == expected.evaluations


def test_a_graph_of_autograd_is_recorded_by_the_loop(graphs):
    field = Field()
    for _ in range(3):
        ic.integrate(field, z_of(), RATES, times=[0.0, 1.0], backend=GRAPHS).z.sum().backward()
    assert graphs.records == 0
