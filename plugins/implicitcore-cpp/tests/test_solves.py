"""Whole solves: those of the torch backend, promise by promise."""

from __future__ import annotations

from contextlib import nullcontext
from dataclasses import replace
from functools import partial

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

import implicitcore as ic
from implicitcore.extend import AndersonRule
from implicitcore.testing import checks_for
from implicitcore.testing.expect import known
from implicitcore.testing.hard_maps import PROBLEMS, SOLVERS, UNSTABLE, same_stops
from implicitcore.testing.solve_checks import SolveChecks

DTYPES = {torch.float64: 1e-9, torch.float32: 1e-4, torch.bfloat16: 3e-2}


PLAIN = [  # with plain steps first, which one sample or another ends
    ic.Anderson(tol=1e-3, plain_rate=0.45, max_steps=40),
    ic.Anderson(tol=1e-10, plain_rate=0.3, max_steps=40),
    ic.Anderson(tol=1e-8, depth=2, plain_rate=0.8, max_steps=40),
    ic.Anderson(tol=1e-6, damping=0.4, plain_rate=0.7, max_steps=40),
]


ROUGH = ("no fixed point", "overflow", "rough", "expanding", "some expanding")
FLOWS = dict(
    enumerate(
        [  # to a steady state, with every option of their steps and stops
            ic.SteadyState(tol=1e-6, max_steps=200),
            ic.SteadyState(tol=1e-9, atol=1e-4, max_steps=20, patience=None),
            ic.SteadyState(tol=1e-10, max_steps=150, patience=7),
            ic.SteadyState(tol=1e-6, ode_solver=ic.Adams(rtol=1e-2, atol=1e-3, controller="pid")),
            ic.SteadyState(
                tol=1e-6, ode_solver=ic.Adams(rtol=0.1, atol=0.1, controller="i", max_order=1)
            ),
            ic.SteadyState(
                tol=1e-6,
                ode_solver=ic.Adams(
                    rtol=1e-3, min_step=0.3, max_step=0.7, first_step=5.0, max_order=7
                ),
            ),
        ]
    )
)


@pytest.fixture
def calls(cpp, monkeypatch):
    """How often an iteration was the backend's, which makes every comparison one with C++."""
    made, ask = [], type(cpp)._root_iteration

    def asked(self, *arguments):
        made.append(arguments[0])
        return ask(self, *arguments)

    monkeypatch.setattr(type(cpp), "_root_iteration", asked)
    return made


@pytest.mark.parametrize("solver", [*SOLVERS, *PLAIN], ids=str)
@pytest.mark.parametrize(
    ("name", "kind"),
    [*((name, "fixed_point") for name in PROBLEMS), ("rates", "find_root"), ("nan", "find_root")],
)
def test_the_same_samples_stop_at_the_same_steps(cpp, calls, name, solver, kind):
    problem = PROBLEMS[name](torch.float64)
    found, expected = (problem.solve(solver, each, kind) for each in (cpp, None))
    assert calls
    assert found.evaluations == expected.evaluations
    same_stops(found, expected, stable=name not in UNSTABLE)


@pytest.mark.parametrize(
    ("name", "kind", "flow"),
    [
        *((name, "fixed_point", 0) for name in PROBLEMS if name != "wide"),
        *((name, "fixed_point", flow) for flow in FLOWS for name in ("rates", "nan") if flow),
        *((name, "find_root", flow) for flow in (0, 3) for name in ("rates", "nan", "tiny")),
    ],
)
def test_samples_flow_to_a_steady_state_by_the_steps_of_torch(cpp, calls, name, kind, flow):
    solver = FLOWS[flow]
    problem = PROBLEMS[name](torch.float64)
    found, expected = (problem.solve(solver, each, kind) for each in (cpp, None))
    assert calls
    if name in ROUGH:  # rounding is as large as what their steps are chosen by
        assert found.status.tolist() == expected.status.tolist()
        return
    assert found.evaluations == expected.evaluations
    same_stops(found, expected, stable=name not in UNSTABLE)


def test_a_step_that_no_sample_can_take_is_found_out(cpp, calls):
    """f has no value beyond 0.1: one sample is lost at once, and the other converges."""
    x = torch.tensor([[0.01], [5.0]], dtype=torch.float64)
    f = lambda z, x: torch.where(z < 0.1, 0.5 * z + x, torch.nan)  # noqa: E731
    solver = ic.SteadyState(ode_solver=ic.Adams(rtol=0.1, atol=0.1, min_step=0.1), tol=1e-6)
    with torch.no_grad():
        found, expected = (
            ic.fixed_point(
                f, torch.zeros_like(x), x, solver=solver, backend=backend, on_failure="ignore"
            )
            for backend in (cpp, None)
        )
    assert calls
    assert found.status.tolist() == expected.status.tolist()
    assert found.status.tolist() == [ic.Status.CONVERGED, ic.Status.NON_FINITE]
    assert torch.allclose(found.z, expected.z, rtol=1e-12)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("max_steps", [1, 2, 50])
@pytest.mark.parametrize("coupled", [False, True])
def test_a_velocity_that_is_infinite_at_the_start_is_so_at_once(
    cpp, calls, coupled, max_steps, dtype
):
    """It was out of steps in a short solve, and took 27 ever shorter steps in a long one."""
    x = torch.tensor([[1.0, 2.0], [torch.inf, 1.0]], dtype=dtype)
    solver = ic.SteadyState(max_steps=max_steps, tol=0.05)
    with torch.no_grad():
        found = ic.fixed_point(
            lambda z, x: 0.5 * z + x,
            torch.zeros_like(x),
            x,
            solver=solver,
            backend=cpp,
            on_failure="ignore",
            coupled=coupled,
        )
    assert calls
    other = ic.Status.CONVERGED if max_steps > 2 else ic.Status.MAX_STEPS  # noqa: PLR2004
    lost = ic.Status.NON_FINITE
    assert found.status.tolist() == ([lost] * len(found.status) if coupled else [other, lost])
    assert found.z.isfinite().all()
    if coupled:
        assert found.evaluations == 1


def test_a_field_that_may_depend_on_the_time_is_integrated_by_the_loop(cpp, calls):
    """As is a norm of one's own, a tolerance of each number, and a trace of the iterates."""
    problem = PROBLEMS["contraction"](torch.float64)
    start = torch.zeros_like(problem.x)
    field = ic.VectorField(lambda t, z, x: problem.f(z, x) - z)
    loop = ic.SteadyState(ode_solver=ic.Adams(rtol=0.5, atol=(0.5,) * start.shape[1], max_order=3))
    ways = [
        (field, ic.SteadyState(), {}),
        (ic.FixedPoint(problem.f), loop, {}),
        (ic.FixedPoint(problem.f), ic.SteadyState(measure="entries"), {}),
        (ic.FixedPoint(problem.f), ic.SteadyState(), {"trace": True}),
    ]
    with torch.no_grad():
        for dynamics, solver, options in ways:
            layer = ic.ImplicitLayer(dynamics, solver=solver, backend=cpp)
            assert layer.solve(problem.x, start, **options).converged.all()
    assert not calls


def test_an_evaluation_on_the_way_to_a_steady_state_takes_one_call(cpp):
    """Torch sees the operations of the cell, and none of ours."""
    counts = {}
    for tol in (1e-2, 1e-8):
        cell = ic.FixedPoint(lambda z, x: torch.tanh(0.8 * z + x))
        layer = ic.ImplicitLayer(cell, solver=ic.SteadyState(tol=tol), backend=cpp)
        x = torch.randn(8, 32, generator=torch.Generator().manual_seed(0))
        with torch.no_grad():
            layer.solve(x)
            with _Count() as seen:
                solution = layer.solve(x)
        counts[solution.evaluations] = seen.count
    (few, first), (many, second) = sorted(counts.items())
    assert many > few + 4
    assert second - first <= 3 * (many - few) + 4


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("solver", [ic.Picard, ic.Anderson, ic.Broyden, ic.SteadyState])
def test_every_dtype_meets_its_tolerance(cpp, calls, solver, dtype):
    tol = DTYPES[dtype]
    problem = PROBLEMS["contraction"](dtype)
    found = problem.solve(solver(tol=tol), cpp).raise_if_failed()
    assert calls and found.z.dtype == dtype
    g = (problem.f(found.z, problem.x) - found.z).double().norm(dim=1)
    size = problem.f(found.z, problem.x).double().norm(dim=1)
    assert bool((g <= 1.01 * tol * size + torch.finfo(dtype).eps * size).all())
    exact = PROBLEMS["contraction"](torch.float64).solve(ic.Anderson(tol=1e-12), None).z
    assert (found.z.double() - exact).norm() <= (40 * tol + 1e-12) * exact.norm()


@pytest.mark.parametrize(
    "solver",
    [ic.Picard, ic.Anderson, ic.Broyden, partial(ic.Anderson, plain_rate=0.4), ic.SteadyState],
)
def test_a_sample_has_the_bits_that_it_has_alone(cpp, calls, solver):
    problem = PROBLEMS["rates"](torch.float64)
    together = problem.solve(solver(tol=1e-9, max_steps=200), cpp)
    assert len(set(together.steps.tolist())) > 2
    for row in range(len(problem.x)):
        alone = problem.sample(row).solve(solver(tol=1e-9, max_steps=200), cpp)
        assert torch.equal(alone.z[0], together.z[row])
        assert alone.steps.item() == together.steps[row].item()


@pytest.mark.parametrize("solver", [ic.Picard, ic.Anderson, ic.Broyden, ic.SteadyState])
def test_a_nan_stays_in_its_sample(cpp, calls, solver):
    problem, clean = PROBLEMS["nan"](torch.float64), PROBLEMS["contraction"](torch.float64)
    found, whole = (each.solve(solver(tol=1e-9), cpp) for each in (problem, clean))
    others = found.status != ic.Status.NON_FINITE
    assert int((~others).sum()) == 1
    assert torch.equal(found.z[others], whole.z[others])


@pytest.mark.parametrize("solver", [ic.Picard, ic.Anderson, ic.Broyden])
@pytest.mark.parametrize("name", ["contraction", "tiny"])
def test_a_trace_and_second_calls_are_those_of_torch(cpp, calls, name, solver):
    problem = PROBLEMS[name](torch.float64)
    layers = [
        ic.ImplicitLayer(ic.FixedPoint(problem.f), solver=solver(tol=1e-8), backend=backend)
        for backend in (cpp, None)
    ]
    start = torch.zeros_like(problem.x)
    with torch.no_grad():
        found, expected = (layer.solve(problem.x, start, trace=True) for layer in layers)
    assert isinstance(found, ic.Solution) and isinstance(expected, ic.Solution)
    residuals, others = known(found.trace), known(expected.trace)
    assert residuals.shape == others.shape
    size = others[0].max().item()
    assert torch.allclose(residuals / size, others / size, rtol=1e-3, atol=1e-12)


def test_a_cell_that_keeps_its_states_sees_each_as_it_was(cpp, calls):
    kept, copies = [], []

    def f(z, x):
        kept.append(z)
        copies.append(z.clone())
        return torch.tanh(0.8 * z + x)

    x = torch.randn(3, 5, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        ic.fixed_point(f, torch.zeros(3, 5), x, solver=ic.Anderson(tol=1e-6), backend=cpp)
    assert calls and len(kept) > 4
    assert all(torch.equal(z, copy) for z, copy in zip(kept, copies, strict=True))


def test_a_cell_that_mixes_samples_is_an_error(cpp, calls):
    rates = torch.linspace(0.1, 0.9, 6, dtype=torch.float64)[:, None]
    x = torch.ones(6, 4, dtype=torch.float64)
    mixing = lambda z, x: rates * z + 0.1 * z.mean(0, keepdim=True) + x  # noqa: E731
    with pytest.raises(ic.InputError, match="mixes|beside the others|coupled"):
        with torch.no_grad():
            ic.fixed_point(mixing, torch.zeros_like(x), x, solver=ic.Picard(tol=1e-3), backend=cpp)
    assert calls


def judged(weight, tol, backend):
    """What becomes of a steady state whose samples are mixed so much: an error, or the statuses."""
    rates = torch.tensor([0.05, 0.3, 0.5, 0.7, 0.8, 0.9], dtype=torch.float64)[:, None]
    x = torch.randn(6, 9, generator=torch.Generator().manual_seed(0), dtype=torch.float64)

    def mixing(z, x):
        return rates * torch.tanh(z.roll(1, 1)) + weight * z.mean(0, keepdim=True) + x

    solver = ic.SteadyState(tol=tol)
    try:
        with torch.no_grad():
            found = ic.fixed_point(mixing, torch.zeros_like(x), x, solver=solver, backend=backend)
    except ic.InputError as error:
        return str(error)
    return found.status.tolist(), found.steps.tolist()


def test_samples_that_are_mixed_in_a_flow_are_judged_as_by_torch(cpp, calls):
    errors = 0
    for weight in (0.1, 1e-3, 1e-5, 1e-7, 0.0):
        for tol in (1e-2, 1e-4, 1e-8):
            found = judged(weight, tol, cpp)
            assert found == judged(weight, tol, None)
            errors += isinstance(found, str)
    assert calls
    assert errors == 4


@pytest.mark.parametrize(
    "solver", [ic.Picard(tol=1e-11), ic.Anderson(tol=1e-11), ic.SteadyState(tol=1e-11)]
)
def test_an_equilibrium_and_its_gradient(cpp, calls, solver):
    SolveChecks(cpp).equilibrium(solver)
    assert calls


@pytest.mark.parametrize("solver", [ic.Picard, ic.Anderson, ic.Broyden, ic.SteadyState])
def test_the_backward_solve_is_the_backends_too(cpp, calls, solver):
    gradients = []
    for backend in (cpp, None):
        problem = PROBLEMS["contraction"](torch.float64)
        x = problem.x.clone().requires_grad_()
        made = solver(tol=1e-10)
        found = ic.fixed_point(
            problem.f, torch.zeros_like(x), x, solver=made, gradient=ic.Implicit(made),
            backend=backend,
        )  # fmt: skip
        before = len(calls)
        gradients.append(torch.autograd.grad(found.z.square().sum(), x)[0])
        assert len(calls) == before + (backend is cpp)
        gradients.append(found.backward.vjps)
    spared = solver is ic.SteadyState  # torch's loop evaluates f once more at its start
    assert gradients[1] + spared == gradients[3]
    assert torch.allclose(gradients[0], gradients[2], rtol=0, atol=1e-12)


@pytest.mark.parametrize("check", checks_for("root_solver"), ids=lambda check: check.name)
@pytest.mark.parametrize("solver", [ic.Picard, ic.Anderson, ic.Broyden, ic.GMRES, ic.SteadyState])
def test_the_solvers_keep_their_contract(cpp, monkeypatch, solver, check):
    """With the kernels wherever no backend is asked for."""
    monkeypatch.setattr("implicitcore.system.system.TORCH", cpp)
    check(solver())


def test_several_threads_give_the_same_bits(cpp):
    problem = PROBLEMS["wide"](torch.float32)
    threads, found = torch.get_num_threads(), []
    try:
        for count in (1, 3):
            torch.set_num_threads(count)
            found.append(problem.solve(ic.Anderson(tol=1e-5), cpp).z)
    finally:
        torch.set_num_threads(threads)
    assert torch.equal(*found)


class _Sees(TorchDispatchMode):
    """As one does that counts the bytes of a solve."""

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("around", [nullcontext, _Sees], ids=["plain", "where a mode sees it made"])
@pytest.mark.parametrize(
    "solver", [ic.Anderson(tol=1e-9), ic.Broyden(tol=1e-9), ic.SteadyState(tol=1e-9)]
)
def test_the_memory_of_iterates_is_used_again(cpp, calls, solver, around):
    """Also of those that Python has seen; a test of it keeps none of them."""
    places, problem = [], PROBLEMS["rates"](torch.float64)

    def f(z, x):
        places.append((z.data_ptr(), z.untyped_storage().nbytes()))
        return problem.f(z, x)

    with torch.no_grad(), around():
        found = ic.fixed_point(
            f, torch.zeros_like(problem.x), problem.x, solver=solver, backend=cpp
        )
    assert calls
    assert found.evaluations > 7
    assert len(set(places)) <= 5


@pytest.fixture
def spaces(cpp, monkeypatch):
    """How often a Krylov space was the backend's."""
    made, ask = [], type(cpp)._krylov_space

    def asked(self, *arguments):
        made.append(arguments[2])
        return ask(self, *arguments)

    monkeypatch.setattr(type(cpp), "_krylov_space", asked)
    return made


@pytest.mark.parametrize("restart", [30, 3])
@pytest.mark.parametrize("name", ["rates", "contraction", "wide"])
def test_a_backward_solve_by_gmres_spends_the_products_of_torch(cpp, spaces, name, restart):
    found = []
    for backend in (cpp, None):
        problem = PROBLEMS[name](torch.float64)
        x = problem.x.clone().requires_grad_()
        solver = ic.GMRES(tol=1e-9, restart=restart, max_products=400)
        solution = ic.fixed_point(
            problem.f, torch.zeros_like(x), x, solver=ic.Anderson(tol=1e-11, max_steps=400),
            gradient=ic.Implicit(solver), backend=backend, on_failure="ignore")  # fmt: skip
        gradient = torch.autograd.grad(solution.z.square().sum(), x)[0]
        found.append((gradient, solution.backward))
    (mine, own), (theirs, torchs) = found
    assert spaces
    assert own.vjps == torchs.vjps
    assert torch.equal(known(own.status), known(torchs.status))
    assert torch.allclose(mine, theirs, rtol=0, atol=1e-8 * theirs.abs().max().item())


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_gmres_in_every_dtype(cpp, spaces, dtype):
    """A linear system in each sample, against a dense solve."""
    draw = torch.Generator().manual_seed(0)
    a = 0.3 * torch.randn(4, 40, 40, generator=draw, dtype=torch.float64) / 40**0.5
    b = torch.randn(4, 40, generator=draw, dtype=torch.float64)
    low, right = a.to(dtype), b.to(dtype)
    f = lambda z, x: torch.einsum("bij,bj->bi", x[0], z) + x[1]  # noqa: E731
    with torch.no_grad():
        found = ic.fixed_point(
            f, torch.zeros_like(right), (low, right), solver=ic.GMRES(tol=DTYPES[dtype]),
            backend=cpp,
        ).raise_if_failed()  # fmt: skip
    unit = torch.eye(40, dtype=torch.float64)
    exact = torch.linalg.solve(unit - low.double(), right.double())
    error = (found.z.double() - exact).norm(dim=1) / exact.norm(dim=1)
    assert spaces and found.z.dtype == dtype
    assert bool((error <= 3 * DTYPES[dtype]).all())


def test_a_krylov_space_has_the_bits_of_single_samples(cpp, spaces):
    draw = torch.Generator().manual_seed(0)
    a = 0.5 * torch.randn(5, 60, 60, generator=draw, dtype=torch.float64) / 60**0.5
    b = torch.randn(5, 60, generator=draw, dtype=torch.float64)
    limit = b.norm(dim=1) * torch.tensor([1e-1, 1e-9, 1e-3, 1e-6, torch.inf], dtype=b.dtype)

    def solved(rows):
        space = cpp.krylov_space(b[rows], limit[rows], 30)
        v = space.extend(None)
        while v is not None:
            v = space.extend(v - torch.stack([part @ one for part, one in zip(a[rows], v)]))  # noqa: B905
        return space.minimise(), space.steps

    with torch.no_grad():
        together, steps = solved(slice(None))
        assert len(set(steps.tolist())) == 5
        for row in range(5):
            alone, count = solved(slice(row, row + 1))
            assert torch.equal(alone[0], together[row])
            assert count.item() == steps[row].item()


def test_a_product_of_another_shape_is_an_error(cpp):
    with torch.no_grad():
        space = cpp.krylov_space(torch.ones(2, 3), torch.zeros(2), 4)
        space.extend(None)
        with pytest.raises(RuntimeError, match="shaped like g"):
            space.extend(torch.ones(2, 4))


def test_the_stop_test_of_a_backward_solve_is_the_backends(cpp, calls, spaces):
    """Where a loss has no gradient in one sample, that one is left out from the beginning."""
    problem, found = PROBLEMS["contraction"](torch.float64), []
    for backend in (cpp, None):
        x = problem.x.clone().requires_grad_()
        solution = ic.fixed_point(
            problem.f, torch.zeros_like(x), x, solver=ic.Picard(tol=1e-11, max_steps=400),
            gradient=ic.Implicit(ic.GMRES(tol=1e-9, restart=4)), backend=backend,
            on_failure="ignore")  # fmt: skip
        before = len(calls), len(spaces)
        gradient = torch.autograd.grad(solution.z[1:].square().sum(), x)[0]
        assert (len(calls) > before[0], len(spaces) > before[1]) == (backend is cpp,) * 2
        assert int(gradient[0].count_nonzero()) == 0
        found.append((gradient, solution.backward))
    (mine, own), (theirs, torchs) = found
    assert own.vjps == torchs.vjps > 6
    assert torch.equal(known(own.status), known(torchs.status))
    assert torch.allclose(known(own.residual), known(torchs.residual), rtol=1e-3, atol=1e-12)
    assert torch.allclose(mine, theirs, rtol=0, atol=1e-8 * theirs.abs().max().item())


def test_a_backend_that_ignores_the_plain_rate_breaks_its_contract(cpp, monkeypatch):
    ask = type(cpp)._root_iteration

    def ignoring(self, update, rule, z):
        plain = replace(update, plain_rate=0.0) if isinstance(update, AndersonRule) else update
        return ask(self, plain, rule, z)

    check = next(each for each in checks_for("backend") if each.name.startswith("stops_as_the"))
    check(cpp)
    monkeypatch.setattr(type(cpp), "_root_iteration", ignoring)
    with pytest.raises(AssertionError, match="by Anderson, compared with the torch backend"):
        check(cpp)


def test_a_product_of_gmres_takes_one_call_beside_the_cells_own(cpp, spaces):
    """Of a product by a cell of one linear map torch sees six operations, and none of ours."""
    counts = {}
    for slope in (0.3, 0.8):
        cell = torch.nn.Linear(32, 32)
        with torch.no_grad():
            torch.nn.init.orthogonal_(cell.weight).mul_(slope)
        layer = ic.ImplicitLayer(
            ic.FixedPoint(lambda z, x, cell=cell: torch.tanh(cell(z) + x)),
            solver=ic.Picard(tol=1e-3), backend=cpp,
        )  # fmt: skip
        solution = layer.solve(torch.randn(8, 32, generator=torch.Generator().manual_seed(0)))
        with _Count() as seen:
            torch.autograd.grad(solution.z.sum(), cell.weight)
        counts[known(solution.backward.vjps)] = seen.count
    (few, first), (many, second) = sorted(counts.items())
    assert many > few + 2
    assert (second - first) / (many - few) <= 6


class _Count(TorchDispatchMode):
    count = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.count += 1
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("solver", [ic.Adams(), ic.Tsit5(), ic.Kvaerno5()], ids=str)
def test_a_sample_at_the_edge_of_the_domain_ends_as_by_torch(cpp, solver):
    z0 = torch.tensor([[4.0], [1.0], [9.0]], dtype=torch.float64)
    for kernels in (cpp, None):
        with torch.no_grad():
            found = ic.integrate(
                lambda t, z, x: -torch.sqrt(z),
                z0,
                times=[0.0, 3.0],
                solver=solver,
                backend=kernels,
                on_failure="ignore",
            )
        assert found.status.tolist() == [0, ic.Status.NON_FINITE, 0]
        assert int(found.steps[1]) <= 120
