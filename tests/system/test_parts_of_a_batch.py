"""A part of the batch: what belongs to all samples is not cut, and f takes it for what it was."""

import warnings
from typing import Any

import pytest
import torch

import implicitcore as ic

N = 8
BIAS = torch.arange(1.0, N + 1, dtype=torch.float64)


def cell(z, x):
    return x[0] * z + x[1]


def rates(*others, rate=0.5):
    """[8, 1], most of them one rate."""
    found = torch.full((N, 1), rate, dtype=torch.float64)
    for place, other in enumerate(others):
        found[place + 3] = other
    return found


PICARD: dict[str, Any] = {"tol": 1e-10, "max_steps": 60}
CHAINS = [
    ic.Chain((ic.Picard(**PICARD), second))
    for second in (
        ic.Newton(tol=1e-10),
        ic.Broyden(tol=1e-10),
        ic.Anderson(tol=1e-10),
        ic.PseudoTransient(tol=1e-10),
        ic.GMRES(tol=1e-10),
        ic.Homotopy(corrector=ic.Newton(tol=1e-10)),
        ic.Chain((ic.Newton(tol=1e-10), ic.Broyden())),
    )
]
each_chain = pytest.mark.parametrize("solver", CHAINS, ids=lambda s: type(s.solvers[1]).__name__)
NAMED = r"x\[1\] belongs to all samples, to be marked with ic.shared"


def solve(solver, rate, bias):
    with torch.no_grad():
        start = torch.zeros(N, N, dtype=torch.float64)
        return ic.fixed_point(cell, start, (rate, bias), solver=solver, on_failure="ignore")


@each_chain
@pytest.mark.parametrize("left", [1, 2])
def test_a_chain_refuses_a_bias_that_is_cut(solver, left):
    rate = rates(*[-1.2] * left)  # no contraction: Picard leaves these
    with pytest.raises(ic.InputError, match=NAMED):
        solve(solver, rate, BIAS)
    solution = solve(solver, rate, ic.shared(BIAS))
    assert solution.converged.all()
    assert torch.allclose(solution.z, BIAS / (1 - rate), rtol=1e-8)


@pytest.mark.parametrize("kind", [ic.Picard, ic.Anderson, ic.Broyden])
@pytest.mark.parametrize("slow", [1, 2, 4])
def test_a_compact_solve_does(kind, slow):
    solver = kind(tol=1e-10, max_steps=500, compact=True)
    rate = rates(*torch.linspace(0.9, 0.8, slow).tolist())

    def curved(z, x):
        return x[0] * torch.sin(z) + x[1]

    start = torch.zeros(N, N, dtype=torch.float64)
    with torch.no_grad():
        with pytest.raises(ic.InputError, match=NAMED):
            ic.fixed_point(curved, start, (rate, BIAS), solver=solver, on_failure="ignore")
        found = ic.fixed_point(
            curved, start, (rate, ic.shared(BIAS)), solver=solver, on_failure="ignore"
        )
    assert found.converged.all()
    assert torch.allclose(curved(found.z, (rate, BIAS)), found.z, rtol=1e-8)


def test_a_masked_solve_does():
    rate = rates(0.5, rate=-30.0)  # one is good
    options: dict[str, Any] = {"on_failure": "mask", "start": ic.Zeros((N,))}
    layer = ic.ImplicitLayer(ic.FixedPoint(cell), solver=ic.Picard(**PICARD), **options)
    with pytest.raises(ic.InputError, match=NAMED):
        layer((rate, BIAS))
    z = layer((rate, ic.shared(BIAS)))
    assert torch.allclose(z[3], BIAS / 0.5)


def test_a_batch_of_another_size_says_so_at_once():
    with pytest.raises(ic.InputError, match=r"received x\[1\] of shape \[8\]"):
        ic.fixed_point(cell, torch.zeros(9, N).double(), (rates()[[0] * 9], BIAS))


def test_a_cell_of_a_fixed_batch_is_told_what_it_is():
    adjacency = torch.eye(N, dtype=torch.float64).roll(1, 0)

    def graph(z, x):
        return torch.where(x > 0, -2.0, 0.5) * (adjacency @ z) + 1

    x = torch.zeros(N, 1, dtype=torch.float64)
    x[3] = 1
    with torch.no_grad(), pytest.raises(ic.InputError, match="use coupled=True") as found:
        ic.fixed_point(graph, torch.zeros_like(x), x, solver=CHAINS[0])
    assert found.value.__cause__ is None or isinstance(found.value.__cause__, RuntimeError)


def test_an_error_of_the_cell_s_own_stays_what_it_is():
    class OwnError(ValueError):
        pass

    def fails(z, x):
        if len(z) < N:
            raise OwnError("mine")
        return x * z + 1

    with torch.no_grad(), pytest.raises(OwnError, match="mine"):
        ic.fixed_point(fails, torch.zeros(N, 1).double(), rates(-3.0), solver=CHAINS[0])


class Independent(torch.nn.Module):
    """tanh(rate_i W z + x_i): each sample by itself, some fast and some slow."""

    def __init__(self, n, dtype):
        super().__init__()
        generator = torch.Generator().manual_seed(1)
        weight = torch.randn(n, n, generator=generator, dtype=torch.float64)
        weight = weight / torch.linalg.matrix_norm(weight, 2)
        self.weight = torch.nn.Parameter(weight.to(dtype))

    def forward(self, z, inputs):
        x, rate = inputs
        return torch.tanh(rate * (z @ self.weight) + x)


@pytest.mark.parametrize("batch", [2, 7, 65])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, "autocast"], ids=str)
def test_nothing_is_refused_where_samples_are_apart(batch, dtype):
    kind = torch.float32 if dtype == "autocast" else dtype
    cell, generator = Independent(40, kind), torch.Generator().manual_seed(batch)
    x = torch.randn(batch, 40, generator=generator).to(kind)
    x[0] *= 1e-4
    rate = torch.linspace(0.05, 0.97, batch).to(kind)[:, None]
    solvers = [
        type(solver)(**{**vars(solver), "compact": compact})
        for solver in (ic.Picard(**STEPS), ic.Anderson(**STEPS), ic.Broyden(**STEPS))
        for compact in (False, True)
    ]
    others = [ic.SteadyState(**STEPS), ic.Newton(tol=1e-5), ic.Chain((ic.Picard(), ic.Broyden()))]
    with warnings.catch_warnings(), torch.autocast("cpu", enabled=dtype == "autocast"):
        warnings.simplefilter("ignore")  # of a tolerance that bfloat16 does not meet
        for solver in (*solvers, *others):
            for inner in (ic.GMRES(), ic.Anderson(tol=1e-5, compact=True)):
                found = ic.fixed_point(
                    cell, torch.zeros_like(x), (x, rate), solver=solver, gradient=ic.Implicit(inner)
                )
                found.z[::3].square().sum().backward()


STEPS: dict[str, Any] = {"tol": 1e-5, "max_steps": 400}


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=str)
@pytest.mark.parametrize("stiffness", [1.0, 20.0])
def test_no_trajectory_is_refused_where_samples_are_apart(dtype, stiffness):
    cell, batch = Independent(40, dtype), 9
    x = torch.randn(batch, 40, generator=torch.Generator().manual_seed(2)).to(dtype)
    rate = torch.linspace(0.05, 3, batch).to(dtype)[:, None]
    speed = torch.logspace(-2, 0, batch).to(dtype)[:, None] * stiffness
    x[4] = torch.nan

    def field(t, z, inputs):
        x, rate, speed = inputs
        return speed * (cell(z, (x, rate)) - z) + torch.sin(t)

    times = torch.tensor([0.0, 0.3, 1.0])
    for solver in (ic.Tsit5(), ic.Bosh3(), ic.Adams(), ic.ESDIRK(), ic.DOP853()):
        options: dict[str, Any] = {"times": times, "solver": solver}
        found = ic.integrate(
            field, torch.zeros_like(x), (x, rate, speed), **options, on_failure="ignore"
        )
        assert found.status[4] == ic.Status.NON_FINITE
        ic.integrate(
            field,
            torch.zeros_like(x),
            (x, rate, speed),
            event=lambda t, z, x: z[:, 0],
            **options,
            on_failure="ignore",
        )
