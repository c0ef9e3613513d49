"""scipy.optimize.root behind RootSolver: each sample by itself, to the tolerance of every solver,
forward and backward."""

from __future__ import annotations

import pytest
import torch

import implicitcore as ic
import implicitcore_scipy as sp
from implicitcore.testing.dense import fixed_point, implicit_gradient, relative_error
from implicitcore.testing.expect import known
from implicitcore.testing.problems import Cell, inputs

# torch's own: the rules of forward mode are compiled with torch.jit.
pytestmark = pytest.mark.filterwarnings("ignore:.*torch.jit:DeprecationWarning")

CLASSES = {
    "hybr": (sp.Hybr, {}),
    "hybr-differences": (sp.Hybr, {"jacobian": False}),
    "lm": (sp.LM, {}),
    "lm-differences": (sp.LM, {"jacobian": False}),
    "krylov": (sp.Krylov, {}),
    "krylov-gmres": (sp.Krylov, {"inner": "gmres", "inner_steps": 10}),
    "broyden1": (sp.Broyden1, {}),
    "broyden2": (sp.Broyden2, {"max_rank": 10, "line_search": "wolfe"}),
    "anderson": (sp.Anderson, {"depth": 4}),
    "df-sane": (sp.DFSane, {}),
    "linearmixing": (sp.LinearMixing, {"alpha": 0.9, "line_search": None}),
    "diagbroyden": (sp.DiagBroyden, {"alpha": 0.7}),
    "excitingmixing": (sp.ExcitingMixing, {"alpha_max": 1.2}),
}
each_method = pytest.mark.parametrize("method", CLASSES)


def make(method, **options):
    cls, own = CLASSES[method]
    return cls(**own, **options)


@pytest.mark.parametrize(
    "cls", dict.fromkeys(cls for cls, _ in CLASSES.values()), ids=lambda cls: cls.__name__
)
def test_a_large_residual_does_not_drown_the_differences(cls):
    cell, x = Cell(contraction=0.4, dtype=torch.float32), inputs(4, dtype=torch.float32)
    size = 1e4
    solution = ic.fixed_point(
        lambda z, x: size * cell(z / size, x),
        torch.zeros_like(x),
        x,
        solver=cls(tol=1e-3, max_steps=100),
    )
    assert solution.converged.all(), solution.summary()


@each_method
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=["float32", "float64"])
def test_the_root_and_its_gradient_with_theirs_both_ways(method, dtype):
    tol = 1e-9 if dtype == torch.float64 else 2e-6
    cell, x = Cell(dtype=dtype), inputs(4, dtype=dtype).requires_grad_()
    gradient = ic.Implicit(make(method, tol=10 * tol))
    solution = ic.fixed_point(
        cell, torch.zeros_like(x), x, solver=make(method, tol=tol), gradient=gradient
    ).raise_if_failed()
    exact, point = Cell(), x.detach().double().requires_grad_()
    z = fixed_point(lambda z: exact(z, point), torch.zeros_like(point))
    assert solution.z.dtype == dtype
    assert torch.allclose(solution.z.double(), z, atol=10 * tol)
    with torch.no_grad():
        residual = (cell(solution.z, x) - solution.z).norm(dim=1)
        assert torch.allclose(
            solution.residual, residual, rtol=1e-3, atol=1e-7 if dtype == torch.float32 else 1e-15
        )
        assert bool((residual <= 1.01 * tol * cell(solution.z, x).norm(dim=1)).all())
    wrt = [x, *cell.parameters()]
    expected = implicit_gradient(lambda z: exact(z, point), z, 2 * z, [point, *exact.parameters()])
    found = torch.autograd.grad(solution.z.square().sum(), wrt)
    assert relative_error(found, expected) < 50 * tol
    assert known(solution.backward.status).tolist() == [0] * 4


@each_method
@pytest.mark.parametrize(
    "gradient", [ic.Phantom(steps=30), ic.Neumann(steps=30)], ids=lambda g: type(g).__name__
)
def test_the_other_strategies(method, gradient):
    cell, x = Cell(contraction=0.4), inputs(2).requires_grad_()
    solution = ic.fixed_point(
        cell, torch.zeros_like(x), x, solver=make(method, tol=1e-9), gradient=gradient
    )
    z = fixed_point(lambda z: cell(z, x), torch.zeros_like(x))
    found = torch.autograd.grad(solution.z.sum(), [x, *cell.parameters()])
    expected = implicit_gradient(
        lambda z: cell(z, x), z, torch.ones_like(z), [x, *cell.parameters()]
    )
    assert relative_error(found, expected) < 1e-6


@each_method
@pytest.mark.parametrize("leaf", ["z0", "x", "captured"])
def test_unrolled_is_refused_and_nothing_comes_back_detached(method, leaf):
    tensors = {"z0": torch.zeros(2, 3), "x": torch.ones(2, 3), "captured": torch.tensor(0.3)}
    f = lambda z, x: torch.tanh(tensors["captured"] * z + x)  # noqa: E731

    def run():
        solver = make(method)
        return ic.fixed_point(f, tensors["z0"], tensors["x"], solver=solver, gradient=ic.Unrolled())

    assert run().raise_if_failed().z.shape == (2, 3)
    tensors[leaf].requires_grad_()
    with pytest.raises(
        ic.GradientError, match=r"no graph for Unrolled to follow: use Implicit\(\)"
    ):
        run()


def test_second_derivatives():
    x = torch.tensor([[0.3, 0.8]], dtype=torch.float64, requires_grad=True)
    solver = sp.Hybr(tol=1e-13)
    solution = ic.find_root(
        lambda z, x: z**3 + z - x,
        torch.zeros_like(x),
        x,
        solver=solver,
        gradient=ic.Implicit(solver),
    )
    (first,) = torch.autograd.grad(solution.z.sum(), x, create_graph=True)
    (second,) = torch.autograd.grad(first.sum(), x)
    z = solution.z.detach()
    assert torch.allclose(first, 1 / (3 * z**2 + 1), rtol=1e-9)
    assert torch.allclose(second, -6 * z / (3 * z**2 + 1) ** 3, rtol=1e-8)


@each_method
def test_a_batch_of_four_equals_four_single_solves(method):
    cell, x = Cell(), inputs(4)
    x = x * torch.tensor([[0.01], [1.0], [3.0], [0.3]], dtype=torch.float64)
    with torch.no_grad():
        together = ic.fixed_point(cell, torch.zeros_like(x), x, solver=make(method))
        for i in range(4):
            single = ic.fixed_point(
                cell, torch.zeros_like(x[:1]), x[i : i + 1], solver=make(method)
            )
            assert torch.allclose(single.z[0], together.z[i], rtol=1e-9, atol=1e-13)
            assert single.steps[0] == together.steps[i]


@each_method
def test_a_nan_is_the_status_of_its_sample_alone(method):
    cell, x = Cell(), inputs(4)
    with torch.no_grad():
        clean = ic.fixed_point(cell, torch.zeros_like(x), x, solver=make(method))
        x[2, 0] = torch.nan
        found = ic.fixed_point(
            cell, torch.zeros_like(x), x, solver=make(method), on_failure="ignore"
        )
    assert found.status.tolist() == [0, 0, ic.Status.NON_FINITE, 0]
    assert torch.equal(found.z[[0, 1, 3]], clean.z[[0, 1, 3]])
    assert bool(found.z.isfinite().all())


@each_method
def test_no_root_is_a_status_and_the_budget_is_kept(method):
    calls = []

    def g(z, x):
        calls.append(z)
        return 1 + z * z

    with torch.no_grad():
        solution = ic.find_root(
            g,
            torch.full((1, 2), 0.5, dtype=torch.float64),
            solver=make(method, max_steps=20),
            on_failure="ignore",
        )
    assert solution.status[0] in (ic.Status.MAX_STEPS, ic.Status.DIVERGED)
    assert solution.steps[0] <= 20
    assert solution.evaluations >= len(calls)
    assert solution.residual[0] <= (1 + 0.25) * 2**0.5 + 1e-12, "the best iterate, not the last"


def test_evaluations_are_of_the_whole_batch():
    with torch.no_grad():
        solution = ic.fixed_point(
            Cell(), torch.zeros(4, 6).double(), inputs(4), solver=sp.Broyden1()
        )
    # Two more of the whole batch, at the start and at the end, measure what SciPy claims.
    assert solution.evaluations == -(-int(solution.steps.sum()) // 4) + 2


def test_find_root_beyond_contraction():
    """Where Picard diverges: Rosenbrock's equations, far from their root."""
    g = lambda z, x: torch.stack((10 * (z[:, 1] - z[:, 0] ** 2), x - z[:, 0]), 1)  # noqa: E731
    x = torch.tensor([1.0, -2.0], dtype=torch.float64)
    z0 = torch.tensor([[-1.2, 1.0], [3.0, 3.0]], dtype=torch.float64)
    for method in ("hybr", "lm"):
        solution = ic.find_root(g, z0, x, solver=make(method, tol=1e-9)).raise_if_failed()
        assert torch.allclose(solution.z, torch.stack((x, x * x), 1), atol=1e-6)


@each_method
def test_an_error_of_the_map_is_the_users_and_an_empty_batch_is_no_work(method):
    def f(z, x):
        raise ValueError("mine")

    with pytest.raises(ValueError, match="mine"):
        ic.fixed_point(f, torch.ones(2, 3), solver=make(method))
    with torch.no_grad():
        assert ic.fixed_point(
            lambda z, x: z / 2, torch.ones(0, 3), solver=make(method)
        ).z.shape == (0, 3)


def test_bad_options():
    with pytest.raises(ic.ConfigError, match="inner"):
        sp.Krylov(inner="gremlin")  # pyright: ignore[reportArgumentType]


def test_complex_states_are_solved_by_their_parts():
    x = torch.tensor([[1 + 2j], [-3 + 0.5j]])
    f = lambda z, x: 0.3 * z.conj() + 0.2j * z + x  # noqa: E731
    found = ic.fixed_point(f, torch.zeros_like(x), x, solver=sp.Hybr(tol=1e-5))
    assert found.converged.all()
    torch.testing.assert_close(f(found.z, x), found.z, rtol=1e-4, atol=0)


def test_a_layer_trains_a_step():
    cell = Cell(dtype=torch.float32)
    layer = ic.ImplicitLayer(
        ic.FixedPoint(cell), solver=sp.Hybr(), gradient=ic.Implicit(sp.Krylov(tol=1e-5))
    )
    before = cell.weight.detach().clone()
    optimizer = torch.optim.SGD(layer.parameters(), lr=0.1)
    layer(inputs(dtype=torch.float32)).square().sum().backward()
    optimizer.step()
    assert not torch.equal(before, cell.weight)


@pytest.mark.parametrize(
    "transform",
    [torch.func.grad, lambda f: lambda x: torch.func.jvp(f, (x,), (x,))[1]],
    ids=["grad", "jvp"],
)
def test_torch_func_is_refused(transform):
    def solve(x):
        z0 = torch.zeros_like(x)
        return ic.fixed_point(Cell(), z0, x, solver=sp.Hybr(), gradient=ic.Unrolled()).z.sum()

    def flow(x):
        times = torch.tensor([0.0, 1.0])
        return ic.integrate(lambda t, z, x: -z * x, x, x, times=times, solver=sp.RK45()).z.sum()

    with pytest.raises(ic.GradientError, match="no graph"):
        transform(solve)(inputs(2))
    with pytest.raises(ic.GradientError, match="no graph"):
        transform(flow)(inputs(2))


def test_it_is_one_of_a_chain_and_runs_under_inference_mode_and_autocast():
    cell, x = Cell(), inputs(4)
    chain = ic.Chain(solvers=(ic.Picard(max_steps=3), sp.Hybr(tol=1e-9)))
    ic.fixed_point(cell, torch.zeros_like(x), x, solver=chain).raise_if_failed()
    with torch.inference_mode():
        ic.fixed_point(cell, torch.zeros_like(x), x, solver=sp.Hybr()).raise_if_failed()
    low = Cell(dtype=torch.float32)
    with torch.autocast("cpu", torch.bfloat16):
        solution = ic.fixed_point(
            low, torch.zeros(4, 6), inputs(4, dtype=torch.float32), solver=sp.Hybr(tol=3e-2)
        ).raise_if_failed()
    assert solution.z.dtype == torch.float32


@pytest.mark.parametrize("size", [5e-3, 1e-5, 1.0, 50.0])
def test_linear_mixing_takes_no_longer_steps_than_picard(size):
    """Its factor stays as it was estimated: from a small residual SciPy's own is far too long."""
    x = torch.full((2, 3), size, dtype=torch.float64)
    with torch.no_grad():
        solution = ic.fixed_point(
            lambda z, x: x - 0.2 * z, torch.zeros_like(x), x, solver=sp.LinearMixing(tol=1e-6)
        ).raise_if_failed()
    assert torch.allclose(solution.z, x / 1.2, rtol=1e-5)
