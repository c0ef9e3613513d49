"""One measure decides what stops, what is returned and its status, at any size of the state."""

import warnings
from dataclasses import dataclass

import pytest
import torch

import implicitcore as ic
from implicitcore.extend import Options
from implicitcore.testing.expect import known

T = torch.float64
DTYPES = (torch.float32, torch.float64)


def solvers(tol: float, steps: int = 200) -> list[ic.RootSolver]:
    found: list[ic.RootSolver] = [
        ic.Picard(tol=tol, max_steps=steps),
        ic.Picard(tol=tol, max_steps=steps, compact=True),
        ic.Anderson(tol=tol, max_steps=steps),
        ic.Broyden(tol=tol, max_steps=steps),
        ic.Broyden(tol=tol, max_steps=steps, variant="bad"),
        ic.Newton(tol=tol, max_steps=steps),
        ic.PseudoTransient(tol=tol, max_steps=steps),
        ic.SteadyState(tol=tol, max_steps=steps),
        ic.Chain((ic.Picard(tol=tol, max_steps=steps), ic.Newton(tol=tol))),
        ic.Homotopy(corrector=ic.Newton(tol=tol)),
        ic.GMRES(tol=tol),
        ic.BiCGSTAB(tol=tol),
    ]
    return found


def named(solver: ic.RootSolver) -> str:
    return f"{type(solver).__name__}{'-compact' if getattr(solver, 'compact', False) else ''}"


def solve(f, z0, x, solver):
    with torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return ic.fixed_point(f, z0, x, solver=solver, on_failure="ignore")


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("solver", solvers(1e-3), ids=named)
def test_what_converged_meets_its_tolerance_where_it_is_returned(solver, dtype):
    matrix = torch.tensor([[0.5, 1e3], [0.0, 0.5]], dtype=dtype)  # |f| grows 4000 times on the way
    x = torch.tensor([[0.0, 1.0], [1.0, 0.0], [0.0, -2.0]], dtype=dtype)

    def f(z, x):
        return z @ matrix.T + x

    solution = solve(f, torch.zeros(3, 2, dtype=dtype), x, solver)
    fz = f(solution.z, x)
    measured = (fz - solution.z).norm(dim=1)
    allowed = 1e-3 * fz.norm(dim=1) * (1 + 1e-4) + 1e-3
    assert bool((measured[solution.converged] <= allowed[solution.converged]).all())
    if not isinstance(
        solver, ic.PseudoTransient
    ):  # which follows the residual up, and out of steps
        assert solution.converged.all()
        exact = torch.linalg.solve(torch.eye(2, dtype=dtype) - matrix, x.T).T
        assert torch.allclose(solution.z, exact, rtol=2e-2, atol=2e-2)


ROOTLESS = {
    "constant": lambda z, x: z + 1,
    "drift": lambda z, x: z + 1 + 0.1 * torch.sin(z),
    "softplus": lambda z, x: z + torch.nn.functional.softplus(z) + 0.1,
    "decay": lambda z, x: z + 0.5 + torch.exp(-(z**2)),
}


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("f", ROOTLESS.values(), ids=ROOTLESS.keys())
@pytest.mark.parametrize("solver", solvers(1e-3, 2000)[:8], ids=named)
@pytest.mark.slow
def test_a_map_without_a_fixed_point_is_never_converged(solver, f, dtype):
    solution = solve(f, torch.zeros(2, 4, dtype=dtype), None, solver)
    assert not solution.converged.any()


def test_a_state_that_runs_away_until_rounding_hides_its_residual_has_diverged():
    system_size = torch.full((2, 3), 1e9)

    @dataclass(frozen=True, kw_only=True)
    class Jump(Options, ic.RootSolver):
        def solve(self, system, z0):
            found = ic.Picard(max_steps=1).solve(system, z0)
            return found.amended(z=system_size, status=torch.zeros_like(found.status))

    solution = solve(ROOTLESS["constant"], torch.zeros(2, 3), None, Jump())
    assert solution.status.tolist() == [ic.Status.DIVERGED] * 2


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("solver", [*solvers(1e-4)[:5], ic.SteadyState(max_steps=400)], ids=named)
def test_a_root_far_from_a_start_with_almost_no_residual_is_found(solver, dtype):
    z0 = torch.full((2, 1), 1e-6, dtype=dtype)  # beside the repelling fixed point 0
    solution = solve(lambda z, x: torch.tanh(3 * z), z0, None, solver)
    off = (torch.tanh(3 * solution.z) - solution.z).abs().squeeze(1)
    met = off <= 1e-4 * torch.tanh(3 * solution.z).abs().squeeze(1)
    assert bool(met[solution.converged].all())
    if not isinstance(solver, ic.Broyden):  # which may shrink towards 0, where no iterate is a root
        assert solution.converged.all()


@dataclass(frozen=True, kw_only=True)
class Lies(Options, ic.RootSolver):
    """A black box that says that it converged, wherever it is."""

    tol: float = 1e-6
    where: float = 1.0

    def solve(self, system, z0):
        batch = len(z0)
        return ic.Solution(
            z=torch.full_like(z0, self.where),
            start=z0,
            residual=z0.new_zeros(batch),
            status=torch.zeros(batch, dtype=torch.int8),
            steps=torch.ones(batch, dtype=torch.int64),
            evaluations=system.evaluations,
        )


@pytest.mark.parametrize("dtype", DTYPES)
def test_a_black_box_is_measured_and_overruled(dtype):
    z0 = torch.zeros(2, 3, dtype=dtype)
    wrong = solve(lambda z, x: 0.5 * z + 1, z0, None, Lies(where=1.0))
    assert wrong.status.tolist() == [ic.Status.MAX_STEPS] * 2
    assert torch.allclose(wrong.residual, torch.full((2,), 0.5 * 3**0.5, dtype=dtype))
    assert wrong.evaluations == 2
    right = solve(lambda z, x: 0.5 * z + 1, z0, None, Lies(where=2.0))
    assert right.converged.all()
    assert torch.equal(right.z, torch.full_like(z0, 2.0))
    lost = solve(lambda z, x: (0 * z).log() * 0, z0, None, Lies())
    assert lost.status.tolist() == [ic.Status.NON_FINITE] * 2


def test_a_black_box_is_overruled_in_a_backward_solve_too():
    x = torch.ones(2, 3, dtype=T, requires_grad=True)
    solution = ic.fixed_point(
        lambda z, x: 0.5 * z + x,
        torch.zeros_like(x),
        x,
        gradient=ic.Implicit(Lies(where=1.5)),
        on_failure="ignore",
    )
    with pytest.warns(ic.ConvergenceWarning, match="backward solve of 2 of 2 samples"):
        solution.z.sum().backward()
    assert known(solution.backward.status).tolist() == [ic.Status.MAX_STEPS] * 2


@pytest.mark.parametrize("solver", solvers(1e-6)[:-2], ids=named)
def test_our_own_solvers_are_not_measured_twice(solver):
    calls = []

    def f(z, x):
        calls.append(1)
        return 0.5 * z + x

    solution = solve(f, torch.zeros(2, 3, dtype=T), torch.ones(2, 3, dtype=T), solver)
    assert solution.converged.all()
    assert known(solution.judged).z is not None
    assert solution.evaluations >= len(calls)
    if isinstance(solver, ic.Picard):
        assert len(calls) == int(solution.steps.max())


@pytest.mark.parametrize("size", [1e-30, 1e-25, 1e-22, 1e-18, 1.0, 1e18, 1e20, 1e25, 1e30])
@pytest.mark.parametrize("solver", solvers(1e-5, 100), ids=named)
def test_a_state_of_any_size_is_right_in_float32(solver, size):
    x = torch.tensor([[1.0, 2.0, -1.0], [0.5, 0.0, 3.0]])
    sizes = torch.tensor([[size], [1.0]])  # beside one of an ordinary size
    solution = solve(lambda z, x: 0.5 * z + x, torch.zeros(2, 3), x * sizes, solver)
    assert solution.converged.all(), solution.summary()
    assert torch.allclose(solution.z / sizes, 2 * x, rtol=1e-4, atol=1e-4)
    off = (0.5 * solution.z + x * sizes - solution.z).double().norm(dim=1)
    assert torch.allclose(solution.residual.double() / sizes[:, 0], off / sizes[:, 0], atol=1e-6)


@pytest.mark.parametrize("size", [1e-250, 1e-200, 1e200, 1e250])
@pytest.mark.parametrize("solver", solvers(1e-8, 100)[:6], ids=named)
def test_a_state_of_any_size_is_right_in_float64(solver, size):
    x = torch.tensor([[1.0, 2.0, -1.0]], dtype=T)
    solution = solve(lambda z, x: 0.5 * z + x, torch.zeros(1, 3, dtype=T), x * size, solver)
    assert solution.converged.all(), solution.summary()
    assert torch.allclose(solution.z / size, 2 * x, rtol=1e-7)


@pytest.mark.parametrize("solver", [ic.Anderson(tol=1e-6), ic.Picard(tol=1e-6)], ids=named)
def test_units_change_neither_the_absolute_tolerance_nor_what_is_recorded(solver):
    x, z0 = torch.full((1, 3), 1e-25), torch.zeros(1, 3)
    loose = solve(lambda z, x: 0.5 * z + x, z0, x, type(solver)(tol=0.0, atol=1e-20))
    assert loose.converged.all()
    assert torch.equal(loose.z, z0)
    layer = ic.ImplicitLayer(ic.FixedPoint(lambda z, x: 0.5 * z + x), solver=solver)
    solution = layer.solve(x, trace=True)
    assert isinstance(solution, ic.Solution)
    assert known(solution.trace)[0].item() == pytest.approx(3**0.5 * 1e-25)
    unrolled = ic.Unrolled(iterates=(1, 2))
    supervised = ic.fixed_point(
        lambda z, x: 0.5 * z + x,
        z0,
        x.requires_grad_(),
        solver=solver,
        gradient=unrolled,
        on_failure="ignore",
    )
    [slope] = torch.autograd.grad(supervised.z.sum(), x)
    assert torch.allclose(slope, torch.full_like(x, 2.0), rtol=1e-4)


BACKWARD = [
    ic.Implicit(),
    ic.Implicit(ic.BiCGSTAB(tol=1e-6)),
    ic.Implicit(ic.Anderson(tol=1e-6, max_steps=100)),
    ic.Implicit(ic.Broyden(tol=1e-6, max_steps=100)),
    ic.Implicit(ic.Picard(tol=1e-6, max_steps=100)),
    ic.Neumann(),
    ic.Unrolled(),
]


@pytest.mark.parametrize("size", [1e-30, 1e-25, 1e-20, 1e20, 1e30])
@pytest.mark.parametrize("gradient", BACKWARD, ids=str)
def test_an_incoming_gradient_of_any_size_is_passed_on_in_float32(gradient, size):
    x = torch.linspace(-1, 1, 10).view(2, 5).requires_grad_()
    solver = ic.Anderson(tol=1e-6, max_steps=100)
    solution = ic.fixed_point(
        lambda z, x: torch.tanh(0.5 * z + x), torch.zeros(2, 5), x, solver=solver, gradient=gradient
    )
    v = torch.ones(2, 5)
    v[1, 2] = 0  # rows and entries of other sizes
    [one] = torch.autograd.grad(solution.z, x, v, retain_graph=True)
    [found] = torch.autograd.grad(solution.z, x, v * size)
    assert torch.allclose(found / size, one, rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize("solver", solvers(1e-6)[:-2], ids=named)
def test_the_residual_of_find_root_is_g_itself(solver):
    def g(z, x):
        return 0.1 * (10000.004 - z)

    solution = ic.find_root(g, torch.full((1, 1), 1e4), solver=solver, on_failure="ignore")
    assert solution.residual.item() == pytest.approx(g(solution.z, None).abs().item(), abs=1e-9)
    assert not (solution.converged.item() and g(solution.z, None).abs().item() > 1e-6)


@pytest.mark.parametrize(("dtype", "big"), [(torch.float32, 1e9), (torch.float64, 1e18)])
@pytest.mark.parametrize("solver", solvers(1e-4)[:-2], ids=named)
def test_a_field_without_a_root_is_not_lost_in_the_rounding_of_the_state(solver, dtype, big):
    z0 = torch.full((2, 1), big, dtype=dtype)
    assert not ic.find_root(
        lambda z, x: torch.ones_like(z), z0, solver=solver, on_failure="ignore"
    ).converged.any()


def test_a_bad_start_does_not_loosen_the_tolerance_of_find_root():
    z0 = torch.full((1, 1), 2000.0, dtype=T)  # |g| = 8e9, of which 1e-4 is 8e5
    solution = ic.find_root(
        lambda z, x: 8 - z**3, z0, solver=ic.Newton(max_steps=200), on_failure="ignore"
    )
    assert solution.converged.all()
    assert solution.residual.item() <= 1e-4 * 2 + 1e-12


@pytest.mark.parametrize("dense_below", [0, 64])
def test_newton_at_a_minimum_that_is_no_root_says_so_at_once(dense_below):
    solver = ic.Newton(tol=1e-10, max_steps=2000, dense_below=dense_below)
    with torch.no_grad():
        solution = ic.find_root(
            lambda z, x: z**2 + 1, torch.zeros(1, 1, dtype=T), solver=solver, on_failure="ignore"
        )
    assert solution.status.tolist() == [ic.Status.STALLED]
    assert solution.steps.item() <= 3


@pytest.mark.parametrize(
    "solver", [ic.Picard(), ic.Anderson(), ic.Broyden(), ic.Newton()], ids=named
)
def test_under_autocast_no_solve_goes_on_below_the_rounding_of_f(solver):
    torch.manual_seed(0)
    linear = torch.nn.Linear(64, 64)
    torch.nn.init.orthogonal_(linear.weight, 0.7)
    x, z0 = torch.randn(64, 64), torch.zeros(64, 64)

    def f(z, x):
        return torch.tanh(linear(z) + x)

    with torch.autocast("cpu", torch.bfloat16):
        solution = solve(f, z0, x, solver)
    assert solution.converged.all()
    assert solution.evaluations <= (250 if isinstance(solver, ic.Newton) else 15)
    assert known(solution.relative_residual).max() <= torch.finfo(torch.bfloat16).eps / 4


@pytest.mark.parametrize("solver", solvers(1e-5)[:-2], ids=named)
def test_the_summary_has_the_residual_that_was_compared_with_the_tolerance(solver):
    x = torch.full((3, 2), 50.0, dtype=T)
    solution = solve(lambda z, x: 0.5 * z + x, torch.zeros_like(x), x, solver)
    fz = 0.5 * solution.z + x
    expected = (fz - solution.z).norm(dim=1) / fz.norm(dim=1)
    assert torch.allclose(known(solution.relative_residual), expected, rtol=1e-6, atol=1e-15)
    assert f"worst relative residual {expected.max().item():.3g}" in solution.summary() or (
        expected.max() < 1e-14
    )


@pytest.mark.parametrize("solver", [*solvers(1e-4, 1100)[:2], ic.Broyden(max_steps=400)], ids=named)
@pytest.mark.parametrize("dtype", DTYPES)
def test_a_residual_whose_square_underflows_is_not_taken_for_zero(solver, dtype):
    z0 = torch.ones(2, 3, dtype=dtype)
    solution = solve(lambda z, x: 0.25 * z, z0, None, solver)  # |f(z) - z| is 3 |f(z)| at every z
    assert bool((solution.z[solution.converged] == 0).all())
    assert bool((solution.residual[~solution.converged] > 0).all())
