"""Cells that mix samples: refused or right without a word, right with ``coupled=True``."""

from typing import Any

import pytest
import torch

import implicitcore as ic
from implicitcore.testing.dense import relative_error

NODES, WIDTH = 8, 3
GENERATOR = torch.Generator().manual_seed(0)
WEIGHT = torch.randn(WIDTH, WIDTH, generator=GENERATOR, dtype=torch.float64)
WEIGHT = 0.5 * WEIGHT / torch.linalg.matrix_norm(WEIGHT, 2)
RING = (torch.eye(NODES).roll(1, 0) + torch.eye(NODES).roll(-1, 0)).double() / 2
SIZES = torch.logspace(0, -3, NODES, dtype=torch.float64)[:, None]
X = torch.randn(NODES, WIDTH, generator=GENERATOR, dtype=torch.float64) * SIZES
DTYPES = [torch.float64, torch.float32]


def graph(z, x):
    return 0.6 * torch.tanh((RING.to(z) @ z) @ WEIGHT.to(z)) + x


def batch_norm(z, x):
    normed = torch.nn.functional.batch_norm(z @ WEIGHT.to(z) + x, None, None, training=True)
    return torch.tanh(0.3 * normed + x)


def attention(z, x):
    h = (z + x)[None]
    return 0.5 * torch.nn.functional.scaled_dot_product_attention(h, h, h)[0] @ WEIGHT.to(z) + x


def mean(z, x):
    return 0.4 * torch.tanh(z) + 0.4 * z.mean(0, keepdim=True) + x


CELLS = [graph, batch_norm, attention, mean]
STEPS: dict[str, Any] = {"max_steps": 400}


def root_solvers(tol):
    options = {"tol": tol, **STEPS}
    return [
        ic.Picard(**options),
        ic.Picard(**options, compact=True),
        ic.Anderson(**options),
        ic.Anderson(**options, compact=True),
        ic.Broyden(**options),
        ic.Newton(tol=tol),
        ic.Newton(tol=tol, dense_below=0),
        ic.PseudoTransient(tol=tol),
        ic.SteadyState(**options),
        ic.SteadyState(**options, ode_solver=ic.Tsit5()),
        ic.SteadyState(**options, ode_solver=ic.RK4(dt=0.5)),
        ic.GMRES(tol=tol),
        ic.Homotopy(corrector=ic.Newton(tol=tol)),
        ic.Chain((ic.Picard(tol=tol, max_steps=6), ic.Newton(tol=tol))),
    ]


TOL = {torch.float64: 1e-8, torch.float32: 1e-4}
TIGHT: dict[str, Any] = {"rtol": 1e-6, "atol": 1e-8}
ADAPTIVE = [
    ic.Tsit5(**TIGHT),
    ic.Dopri5(**TIGHT),
    ic.Bosh3(**TIGHT),
    ic.Fehlberg45(**TIGHT),
    ic.DOP853(**TIGHT),
    ic.Adams(**TIGHT),
    ic.ESDIRK(**TIGHT),
    ic.ESDIRK(**TIGHT, dense_below=0),
    ic.Kvaerno5(**TIGHT),
    ic.RadauIIA5(**TIGHT),
]
each_cell = pytest.mark.parametrize("cell", CELLS, ids=lambda cell: cell.__name__)
each_dtype = pytest.mark.parametrize("dtype", DTYPES, ids=str)
each_adaptive = pytest.mark.parametrize("solver", ADAPTIVE, ids=lambda s: type(s).__name__)


def field_of(cell):
    return lambda t, z, x: cell(z, x) - z


@pytest.mark.parametrize("number", range(14))
@each_dtype
@each_cell
def test_a_root_solve_is_right_or_refused(cell, dtype, number):
    """At 2 tolerances: what is called converged is so at the z that is returned."""
    x = X.to(dtype)
    for tol in (TOL[dtype], 1e-3):
        solver = root_solvers(tol)[number]
        try:
            with torch.no_grad():
                solution = ic.fixed_point(
                    cell, torch.zeros_like(x), x, solver=solver, on_failure="ignore"
                )
        except ic.InputError as error:
            assert "use coupled=True" in str(error)
            continue
        fz = cell(solution.z, x)
        share = (fz - solution.z).norm(dim=1) / fz.norm(dim=1)
        assert (share[solution.converged] <= 3 * tol).all()


@pytest.mark.parametrize(
    ("cell", "solvers"),
    [
        # Picard's samples stay within their tolerances there, which the test above measures.
        (batch_norm, [ic.Anderson]),
        (mean, [ic.Picard, ic.Anderson]),
        (graph, [ic.Picard, ic.Anderson]),
    ],
    ids=lambda value: getattr(value, "__name__", ""),
)
def test_it_is_refused_where_samples_stop_apart(cell, solvers):
    for solver in (kind(tol=1e-9, **STEPS) for kind in solvers):
        with torch.no_grad(), pytest.raises(ic.InputError, match="the cell mixes samples"):
            ic.fixed_point(cell, torch.zeros_like(X), X, solver=solver)


def turned(z, x):
    return 0.3 * z.flip(0) + x


def rolled(z, x):
    return 0.5 * torch.tanh(z.roll(1, 0)) + 0.3 * torch.sin(z) + x


def led(z, x):
    """One sample alone moves one other."""
    return torch.cat((0.5 * torch.sin(z[:-1]), 0.5 * torch.sin(z[-1:]) + 0.4 * z[:1])) + x


@pytest.mark.parametrize("batch", [9, 20, 21, 70])
def test_every_pair_of_seventy_samples_is_told_apart(batch):
    x = torch.randn(batch, 1, generator=GENERATOR, dtype=torch.float64)
    pairs = [(i, j) for i in range(0, batch, 7) for j in range(batch) if i != j][:: batch // 4]
    for taker, giver in pairs:

        def f(z, x, *, to=taker, of=giver):
            row = torch.arange(len(z))[:, None] == to
            return 0.5 * torch.sin(z) + x + torch.where(row, 0.1 * z[of], 0)

        with pytest.raises(ic.InputError, match="the cell mixes samples"):
            ic.fixed_point(
                f,
                torch.zeros_like(x).requires_grad_(),
                x,
                solver=ic.Picard(tol=0.1),
                gradient=ic.Unrolled(),
            )


def softmax(z, x):
    return 0.8 * torch.softmax(z, 0) + x


@pytest.mark.parametrize("batch", [2, 3, 4, 7, 8, 16])
@pytest.mark.parametrize("dtype", [*DTYPES, torch.bfloat16], ids=str)
@pytest.mark.parametrize(
    "cell", [turned, rolled, led, softmax, mean, batch_norm], ids=lambda cell: cell.__name__
)
def test_no_graph_of_the_steps_has_their_derivatives(cell, dtype, batch):
    """z is right where all stop at once, and its derivative was not: off by any factor."""
    x = torch.randn(batch, WIDTH, generator=torch.Generator().manual_seed(batch)).to(dtype)
    for solver in (ic.Picard(tol=0.1), ic.Anderson(tol=0.1), ic.Broyden(tol=0.1)):
        with pytest.raises(ic.InputError, match="the cell mixes samples"):
            ic.fixed_point(
                cell,
                torch.zeros_like(x),
                x.requires_grad_(),
                solver=solver,
                gradient=ic.Unrolled(),
                on_failure="ignore",
            )


def test_a_graph_of_the_steps_asks_once_and_accepts_what_mixes_nothing():
    cell = torch.nn.Bilinear(WIDTH, WIDTH, WIDTH).double()
    torch.nn.init.normal_(cell.weight, std=0.05)
    layer = ic.ImplicitLayer(
        ic.FixedPoint(cell),
        solver=ic.Picard(tol=1e-3, max_steps=9),
        gradient=ic.Unrolled(),
        on_failure="ignore",
    )
    x = X.clone()
    x[3] = torch.nan  # what it gives is not finite, and has no derivative by others
    found = [layer.solve(rows) for rows in (X[:1], X, X, x)]
    assert [solution.failed for solution in found] == [False, False, False, True]
    assert found[1].evaluations == found[2].evaluations + 6


@each_dtype
@each_cell
@each_adaptive
def test_an_adaptive_trajectory_is_refused(solver, cell, dtype):
    x = X.to(dtype)
    field, times = field_of(cell), torch.tensor([0.0, 1.0])
    with pytest.raises(ic.InputError, match="use coupled=True"):
        ic.integrate(field, torch.zeros_like(x), x, times=times, solver=solver)


@pytest.mark.parametrize("kind", ["dense", "event", "checkpointed", "back"])
@each_cell
def test_so_is_one_with_more_to_do(cell, kind):
    times, field, options = torch.tensor([0.0, 2.0]), field_of(cell), {}
    if kind == "event":
        options["event"] = lambda t, z, x: z[:, 0].abs() - 0.3
    elif kind == "dense":
        options["dense"] = True
    elif kind == "checkpointed":
        options["gradient"] = ic.Checkpointed()
    else:
        times = -times
    with pytest.raises(ic.InputError, match="use coupled=True"):
        ic.integrate(field, torch.zeros_like(X), X.clone().requires_grad_(), times=times, **options)


@each_cell
def test_equal_steps_are_right(cell):
    """All samples are at one time: there is nothing to refuse."""
    options: dict[str, Any] = {"times": torch.tensor([0.0, 2.0]), "solver": ic.RK4(dt=0.1)}
    one, many = (
        ic.integrate(field_of(cell), torch.zeros_like(X), X, coupled=coupled, **options)
        for coupled in (True, False)
    )
    assert torch.allclose(one.z, many.z, rtol=1e-12)


def test_an_adjoint_in_steps_of_its_own_is_refused():
    x = X.clone().requires_grad_()
    found = ic.integrate(
        field_of(mean),
        torch.zeros_like(X),
        x,
        times=torch.tensor([0.0, 2.0]),
        solver=ic.RK4(dt=0.1),
        gradient=ic.Adjoint(ic.Tsit5(**TIGHT)),
    )
    with pytest.raises(ic.InputError, match="the cell mixes samples"):
        found.z[-1].sum().backward()


@pytest.mark.parametrize("number", [0, 2, 4, 5, 8])
@each_dtype
@each_cell
def test_as_one_an_equilibrium_and_its_gradient_are_those_of_the_whole(cell, dtype, number):
    x, tol = X.to(dtype).requires_grad_(), 1e-10 if dtype == torch.float64 else 1e-5
    options = {"solver": root_solvers(tol)[number], "gradient": ic.Implicit(ic.GMRES(tol=tol))}
    solution = ic.fixed_point(
        cell, torch.zeros_like(x), x, coupled=True, **options, on_failure="ignore"
    )
    z, gradient = dense(cell)
    bound = 1e-6 if dtype == torch.float64 else 2e-3
    assert solution.converged.all()
    assert relative_error([solution.z.double()], [z]) < bound
    found = torch.autograd.grad(solution.z[2].sum(), x)
    assert relative_error([found[0].double()], [gradient]) < bound


def dense(cell):
    """The equilibrium in float64 by Newton's method, and the gradient of z[2].sum()."""
    n = X.numel()

    def residual(z, x=X):
        return (cell(z.reshape(X.shape), x) - z.reshape(X.shape)).flatten()

    z = torch.zeros(n, dtype=torch.float64)
    for _ in range(60):
        matrix = torch.autograd.functional.jacobian(residual, z)
        z = z - torch.linalg.solve(matrix, residual(z))
    matrix = torch.autograd.functional.jacobian(residual, z)
    by_x = torch.autograd.functional.jacobian(lambda x: residual(z, x), X).reshape(n, n)
    v = torch.zeros(NODES, WIDTH, dtype=torch.float64)
    v[2] = 1
    u = torch.linalg.solve(matrix.T, -v.flatten())
    return z.reshape(X.shape), (u @ by_x).reshape(X.shape)


@each_cell
def test_as_one_a_trajectory_and_its_gradient_are_those_of_the_whole(cell):
    times, found = torch.tensor([0.0, 1.0]), []
    options = {"times": times, "solver": ic.DOP853(rtol=1e-9, atol=1e-11)}
    for coupled in (True, False):
        x = X.clone().requires_grad_()
        shape = X.shape if coupled else (1, X.numel())
        field = field_of(cell) if coupled else flat_field(cell)
        start = torch.zeros(shape, dtype=torch.float64)
        given = x if coupled else x.reshape(shape)
        z = ic.integrate(field, start, given, coupled=coupled, **options).z[-1].reshape(X.shape)
        found.append((z, torch.autograd.grad(z[2].sum(), x)[0]))
    assert relative_error(found[0], found[1]) < 1e-9


def flat_field(cell):
    def field(t, z, x):
        z, x = z.reshape(X.shape), x.reshape(X.shape)
        return (cell(z, x) - z).reshape(1, -1)

    return field


class Normed(torch.nn.Module):
    """A cell with a batch norm, as people write it."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.linear = torch.nn.Linear(WIDTH, WIDTH)
        self.norm = torch.nn.BatchNorm1d(WIDTH, track_running_stats=False)

    def forward(self, *arguments):
        z, x = arguments[-2:]
        return torch.tanh(0.3 * self.norm(self.linear(z) + x) + x)


@pytest.mark.parametrize("name", ["deq", "continuous_deq", "skip_reg_deq", "neural_ode"])
def test_a_layer_with_a_batch_norm(name):
    cell, x = Normed(), X.float()
    layer = ic.build(name, cell, coupled=True)
    z = layer(x).detach()
    if name != "neural_ode":
        assert relative_error([cell(z, x).detach()], [z]) < 1e-2
    try:
        without = ic.build(name, cell)(x).detach()
    except ic.InputError as error:
        assert "use coupled=True" in str(error)
    else:  # all samples stopped at once
        assert name != "neural_ode"
        assert relative_error([without], [z]) < 1e-2


def test_f_is_asked_once_where_nothing_shows():
    """Two samples in equally many unlike steps: one more evaluation, for the first solve alone."""
    counts = []
    field, z0 = lambda t, z, x: -x * z, torch.tensor([[1.0], [1.0]], dtype=torch.float64)  # noqa: E731
    rate = torch.tensor([[1.0], [1.01]], dtype=torch.float64)
    for _ in range(3):
        found = ic.integrate(field, z0, rate, times=torch.tensor([0.0, 1.0]))
        counts.append(found.evaluations)
        assert found.steps[0] == found.steps[1]
    assert counts == [counts[1] + 1, counts[1], counts[1]]


def test_a_sample_that_the_others_keep_from_going_on_is_found_out():
    """No step of it is short enough: each begins with what f gave beside the others' old states."""
    cell, x = Normed(), X.float()
    with torch.no_grad(), pytest.raises(ic.InputError, match="use coupled=True"):
        ic.fixed_point(cell, torch.zeros_like(x), x, solver=ic.SteadyState(tol=1e-4))


def test_a_sample_that_stalls_alone_is_no_mixing():
    """It goes round in a circle, and f does not mix samples."""
    turn = torch.tensor([[0.0, -1.5], [1.5, 0.0]], dtype=torch.float64)

    def field(z, x):
        return torch.where(x > 0, z @ turn, -z)

    x = torch.tensor([[1.0], [-1.0], [1.0], [-1.0]], dtype=torch.float64)
    z0 = torch.ones(4, 2, dtype=torch.float64)
    solver = ic.SteadyState(ode_solver=ic.RK4(dt=0.1), tol=1e-6, max_steps=2000)
    with torch.no_grad():
        found = ic.find_root(field, z0, x, solver=solver, on_failure="ignore")
    stalled = int(ic.Status.STALLED)
    assert found.status.tolist() == [stalled, 0, stalled, 0]


def test_a_vector_is_said_to_be_a_batch_of_numbers():
    weight = 0.9 * torch.eye(NODES, dtype=torch.float64).roll(1, 0)
    x = torch.logspace(-3, 0, NODES, dtype=torch.float64)
    vector = "a z of shape \\[8\\] is 8 samples of one number: one of 8 is \\[1, 8\\]"
    f = lambda z, x: torch.tanh(z @ weight) + x  # noqa: E731
    with pytest.raises(ic.InputError, match=vector):
        ic.fixed_point(f, torch.zeros_like(x), x)
    with pytest.raises(ic.InputError, match=vector):
        ic.integrate(lambda t, z, x: f(z, x) - z, x, x, times=[0.0, 1.0])
    assert ic.fixed_point(f, torch.zeros(1, NODES).double(), x[None]).converged.all()
    with pytest.raises(ic.InputError, match="attention over the batch\\)$"):
        ic.fixed_point(graph, torch.zeros_like(X), X)
