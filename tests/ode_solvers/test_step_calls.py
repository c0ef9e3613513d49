"""What a step costs beside its evaluations, counted: small states pay for calls."""

import sys

import pytest
import torch
from support.operations import Operations, python_calls

import implicitcore as ic

FEW, MANY = 20, 84
SOLVERS = {"euler": ic.Euler, "midpoint": ic.Midpoint, "rk4": ic.RK4}


def work(name, steps, gradient):
    weight = torch.eye(2).mul_(0.3).requires_grad_()
    z0, times = torch.ones(1, 2), torch.tensor([0.0, 1.0])
    solver = SOLVERS[name](dt=1 / steps)

    def solve():
        ic.integrate(
            lambda t, z, x: torch.tanh(z @ weight),
            z0,
            times=times,
            solver=solver,
            gradient=gradient,
        )

    return solve


def operations(solve):
    with Operations() as seen:
        solve()
    return len(seen.names)


def a_step(count, name, gradient):
    few, many = (work(name, steps, gradient) for steps in (FEW, MANY))
    few()
    return (count(many) - count(few)) / (MANY - FEW)


@pytest.mark.parametrize("gradient", [ic.Unrolled(), ic.Checkpointed()], ids=["plain", "kept"])
@pytest.mark.parametrize(
    ("name", "python", "torchs"),
    [("euler", 16.7, 3.4), ("midpoint", 20.7, 6.5), ("rk4", 28.7, 15.5)],
)
def test_an_equal_step_takes_few_calls(name, python, torchs, gradient, monkeypatch):
    """Of them f has 2 calls and 2 operations an evaluation; keeping checkpoints is 6 calls."""
    # Another test of this process may have imported it: every solve then asks it.
    monkeypatch.delitem(sys.modules, "torch.distributed.fsdp", raising=False)
    kept = 6 if isinstance(gradient, ic.Checkpointed) else 0
    with torch.set_grad_enabled(bool(kept)):
        assert a_step(python_calls, name, gradient) <= python + kept
        assert a_step(operations, name, gradient) <= torchs
