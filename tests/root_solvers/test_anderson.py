"""Anderson acceleration against the textbook's least-squares problem."""

from __future__ import annotations

import pytest
import torch
from support.operations import Operations

import implicitcore as ic
from implicitcore.extend import StepwiseRootSolver, System
from implicitcore.tensors import host
from implicitcore.tensors.packing import Packing
from implicitcore.testing.problems import Cell, inputs


def textbook(f, z, steps, damping):
    """The iterates of one sample with all differences kept: gamma minimises ``|g - dG gamma|``."""
    iterates, gs, plains = [z], [], []
    for _ in range(steps):
        g = f(z) - z
        gs.append(g)
        plains.append(z + damping * g)
        z = plains[-1]
        if len(gs) > 1:
            differences = torch.stack([b - a for a, b in zip(gs, gs[1:], strict=False)], 1)
            moves = torch.stack([b - a for a, b in zip(plains, plains[1:], strict=False)], 1)
            z = z - moves @ torch.linalg.lstsq(differences, g[:, None]).solution[:, 0]
        iterates.append(z)
    return iterates


@pytest.mark.parametrize("damping", [1.0, 0.7])
@pytest.mark.parametrize("graph", [False, True])
def test_the_iterates_are_the_textbooks(damping, graph):
    # A linear map: there the truncated Gram-Schmidt and the least squares agree as long as all
    # directions are kept.
    n, steps = 12, 6
    cell, x = Cell(n=n), inputs(n=n)

    def f(z, x):
        return z @ cell.weight.T + x

    solver = ic.Anderson(
        depth=steps, damping=damping, tol=0, max_steps=steps + 1, regularization=0.0
    )
    with torch.set_grad_enabled(graph):
        solution = ic.fixed_point(
            f,
            torch.zeros_like(x),
            x,
            solver=solver,
            gradient=ic.Unrolled(iterates=tuple(range(1, steps + 1))),
            on_failure="ignore",
        )
    for i in range(len(x)):
        expected = textbook(
            lambda z, i=i: f(z, x[i]), torch.zeros(n, dtype=x.dtype), steps, damping
        )
        for found, iterate in zip(solution.iterates[:, i], expected[1:], strict=True):
            assert torch.allclose(found, iterate, atol=1e-10)


@pytest.mark.parametrize("graph", [False, True])
def test_with_a_plain_rate_each_sample_accelerates_from_its_first_slow_step_on(graph):
    # Rates 0.02 and 0.9 apart: the residual falls fast until the share of the second is left, which
    # is another for each sample.
    n, rate, steps = 12, 0.3, 12
    rates = torch.full((n,), 0.02, dtype=torch.float64)
    rates[:3] = torch.tensor([0.9, 0.8, 0.7])
    basis = torch.linalg.qr(inputs(batch=n, n=n))[0]
    matrix, x = (
        basis @ torch.diag(rates) @ basis.T,
        inputs(batch=5, n=n) @ torch.diag(rates.lt(0.1).double()),
    )
    x = (x + torch.logspace(-9, 0, 5, dtype=x.dtype)[:, None] * (rates > 0.1)) @ basis.T
    solver = ic.Anderson(
        plain_rate=rate, depth=steps, tol=0, max_steps=steps + 1, regularization=0.0
    )
    with torch.set_grad_enabled(graph):
        found = ic.fixed_point(
            lambda z, x: z @ matrix + x,
            torch.zeros_like(x),
            x,
            solver=solver,
            gradient=ic.Unrolled(iterates=tuple(range(1, steps + 1))),
            on_failure="ignore",
        ).iterates
    begun = []
    for i in range(len(x)):
        z, sizes = [torch.zeros(n, dtype=x.dtype)], []
        while len(sizes) < 2 or sizes[-1] <= rate * sizes[-2]:
            z.append(z[-1] @ matrix + x[i])
            sizes.append((z[-1] - z[-2]).norm())
        first = len(z) - 3  # the iterate before the one with the slow step
        begun.append(first)
        expected = z[:first] + textbook(lambda z, i=i: z @ matrix + x[i], z[first], 3, 1.0)
        for k, iterate in enumerate(expected[1:]):
            assert torch.allclose(found[k, i], iterate, atol=1e-12)
    assert len(set(begun)) > 2 and max(begun) > 4


def test_with_a_plain_rate_a_fast_contraction_has_no_history():
    f, x = lambda z, x: 0.1 * z + x, inputs(n=4)
    with torch.no_grad():
        plain = ic.fixed_point(f, torch.zeros_like(x), x, solver=ic.Picard(tol=1e-9))
    with torch.no_grad(), Operations() as counted:
        solution = ic.fixed_point(
            f, torch.zeros_like(x), x, solver=ic.Anderson(tol=1e-9, plain_rate=0.3)
        )
    assert torch.equal(solution.z, plain.z)
    assert solution.evaluations == plain.evaluations
    if host.on_host(x):  # a device would wait for the host to know that all samples wait
        assert not [name for name in counted.names if "bmm" in name]


def test_a_sample_whose_residual_doubles_goes_back_and_takes_the_plain_step():
    x = inputs(4)
    system = System.of(ic.FixedPoint(Cell()), x, Packing.of(x))
    solver = ic.Anderson()
    z = inputs(4, seed=3)
    grown = torch.tensor([False, True, False, False])
    with torch.no_grad():
        state, before = solver.init(system, z), system.evaluate(z)
        for _ in range(3):
            before = system.evaluate(z)
            z, state = solver.step(system, before, state)
        now = system.evaluate(z)
        z_next, state = solver.step(system, now, solver.restart(state, grown))
        assert torch.allclose(z_next[1], before.fz[1])
        assert not torch.allclose(z_next[0], now.fz[0])
        # Again: a plain step that doubles the residual is gone on from, or it would be taken for
        # ever.
        now = system.evaluate(z_next)
        after, state = solver.step(system, now, solver.restart(state, grown))
        assert torch.allclose(after[1], now.fz[1])
        now = system.evaluate(after)
        last, state = solver.step(system, now, state)
    assert not torch.allclose(last[1], now.fz[1])  # the next difference counts again


def test_the_loop_asks_for_a_restart_where_a_residual_has_doubled():
    heard = []

    class Listening(StepwiseRootSolver):
        def init(self, system, z):
            return None

        def step(self, system, now, state):
            return now.fz, state

        def restart(self, state, grown):
            heard.append(grown.tolist())
            return state

    rate = torch.tensor([[0.5], [-3.0], [0.9]], dtype=torch.float64)
    solver = Listening(tol=1e-3, max_steps=4)
    ic.fixed_point(
        lambda z, x: x * z + 1,
        torch.zeros(3, 1, dtype=torch.float64),
        rate,
        solver=solver,
        on_failure="ignore",
    )
    assert heard == [[False, True, False]] * 2


MAPS = {
    "tanh": lambda z, x, weight: torch.tanh(z @ weight + x),
    "cos": lambda z, x, weight: torch.cos(z @ weight) * x,
    "linear": lambda z, x, weight: z @ weight + x,
}


@pytest.mark.parametrize("tol", [1e-8, 1e-12])
@pytest.mark.parametrize("rate", [1e-3, 1e-2, 0.1, 0.3])
@pytest.mark.parametrize("n", [1, 2, 3, 8])
@pytest.mark.parametrize("name", MAPS)
def test_the_unrolled_gradient_of_a_fast_contraction(name, n, rate, tol):
    """As near to the exact one as the iterate is, also where differences have no new direction."""
    weight = torch.randn(n, n, dtype=torch.float64)
    weight = weight * rate / torch.linalg.matrix_norm(weight, 2)
    x0 = torch.randn(4, n, dtype=torch.float64)

    def gradient(solver, strategy):
        x = x0.clone().requires_grad_()
        f = lambda z, x: MAPS[name](z, x, weight)  # noqa: E731
        start = torch.zeros_like(x0)
        solution = ic.fixed_point(
            f, start, x, solver=solver, gradient=strategy, on_failure="ignore"
        )
        assert solution.converged.all()
        return torch.autograd.grad(solution.z.square().sum(), x)[0]

    exact = gradient(ic.Picard(tol=1e-15, atol=1e-15), ic.Implicit(ic.GMRES(tol=1e-14)))
    found = gradient(ic.Anderson(tol=tol), ic.Unrolled())
    error = (found - exact).norm(dim=1) / exact.norm(dim=1)
    assert error.max() <= 500 * tol


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_the_unrolled_gradient_of_a_sample_at_its_root_is_finite(dtype):
    x = torch.tensor([[0.0, 0.0], [1.0, -2.0]], dtype=dtype, requires_grad=True)
    f = lambda z, x: 0.5 * torch.tanh(z) + x  # noqa: E731
    solver = ic.Anderson(tol=1e-6)
    z = ic.fixed_point(f, torch.zeros_like(x), x, solver=solver, gradient=ic.Unrolled()).z
    found = torch.autograd.grad(z.sum(), x)[0]
    expected = 1 / (1 - 0.5 * (1 - torch.tanh(z.detach()).square()))
    expected[0] = 0  # it took no step
    torch.testing.assert_close(found, expected, rtol=1e-3, atol=0)
