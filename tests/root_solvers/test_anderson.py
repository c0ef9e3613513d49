"""Anderson acceleration against the textbook's least-squares problem."""

from __future__ import annotations

import pytest
import torch

import implicitcore as ic
from implicitcore.extend import StepwiseRootSolver, System
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
        )
    for i in range(len(x)):
        expected = textbook(
            lambda z, i=i: f(z, x[i]), torch.zeros(n, dtype=x.dtype), steps, damping
        )
        for found, iterate in zip(solution.iterates[:, i], expected[1:], strict=True):
            assert torch.allclose(found, iterate, atol=1e-10)


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
        lambda z, x: x * z + 1, torch.zeros(3, 1, dtype=torch.float64), rate, solver=solver
    )
    assert heard == [[False, True, False]] * 2
