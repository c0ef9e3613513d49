"""A chain hands on only the samples that did not converge."""

from __future__ import annotations

from dataclasses import dataclass

import pytest
import torch

import implicitcore as ic
from implicitcore.tensors import host
from implicitcore.testing.expect import known
from implicitcore.testing.problems import Cell, inputs

T = torch.float64


def counted(seen):
    """z -> x z + 1, which notes how many samples each evaluation has."""

    def f(z, x):
        seen.append(z.shape[0])
        return x * z + 1

    return f


def test_the_next_solver_sees_only_the_samples_that_are_left():
    growth, seen = torch.tensor([0.1, 0.2, -3.0, 0.3, 5.0], dtype=T)[:, None], []
    chain = ic.Chain((ic.Picard(tol=1e-8, max_steps=30), ic.Newton(tol=1e-8)))
    with torch.no_grad():
        solution = ic.fixed_point(
            counted(seen), torch.zeros(5, 1, dtype=T), growth, solver=chain
        ).raise_if_failed()
    assert torch.allclose(solution.z, 1 / (1 - growth), rtol=1e-7)
    assert set(seen) == {5, 2}
    first, second = seen.index(2), len(seen) - seen.index(2)
    assert solution.evaluations == first + second + 1  # and one product, n = 1
    assert solution.steps[0] < first
    assert solution.steps.argmax() in (2, 4)


def test_the_first_solver_alone_where_it_suffices():
    cell, x = Cell(), inputs()
    with torch.no_grad():
        alone = ic.fixed_point(cell, torch.zeros_like(x), x, solver=ic.Anderson())
        chained = ic.fixed_point(cell, torch.zeros_like(x), x, solver=ic.Chain())
    assert torch.equal(alone.z, chained.z)
    asked = 0 if host.on_host(x) else 1  # a device asks the first time whether this cell mixes
    assert alone.evaluations == chained.evaluations + asked


@dataclass(frozen=True)
class Spoiler(ic.RootSolver):
    """Returns a worse iterate than it was given."""

    def solve(self, system, z0):
        z = z0 + 100
        solution = ic.Picard(max_steps=1).solve(system, z)
        assert torch.equal(solution.z, z)
        return solution


def test_a_later_solver_makes_nothing_worse():
    cell, x = Cell(contraction=0.9), inputs()
    few = ic.Picard(tol=1e-9, max_steps=5)
    with torch.no_grad():
        before = ic.fixed_point(cell, torch.zeros_like(x), x, solver=few, on_failure="ignore")
        after = ic.fixed_point(
            cell, torch.zeros_like(x), x, solver=ic.Chain((few, Spoiler())), on_failure="ignore"
        )
    assert torch.equal(before.z, after.z)
    assert torch.equal(before.residual, after.residual)
    assert after.status.tolist() == [ic.Status.MAX_STEPS] * 8


def test_what_x_shares_is_shared_and_what_is_per_sample_is_selected():
    """x holds a tensor per sample, one that is shared, and what is no tensor."""
    growth = torch.tensor([0.1, -3.0, 0.2], dtype=T)[:, None]
    x = {
        "growth": growth,
        "shift": torch.tensor(2.0, dtype=T),
        "row": ic.shared(torch.ones(1, 1, dtype=T)),
        "power": 1,
        "name": None,
    }
    f = lambda z, x: x["growth"] * z ** x["power"] + x["shift"] * x["row"]  # noqa: E731
    chain = ic.Chain((ic.Picard(tol=1e-8, max_steps=30), ic.Newton(tol=1e-8)))
    with torch.no_grad():
        solution = ic.fixed_point(f, torch.zeros(3, 1, dtype=T), x, solver=chain).raise_if_failed()
    assert torch.allclose(solution.z, 2 / (1 - growth), rtol=1e-7)


def test_the_backward_pass_of_some_samples():
    """The samples of a backward system are selected too: the first GMRES solves the easy ones."""
    growth = torch.cat(
        (
            torch.zeros(3, 4, dtype=T),
            torch.randn(2, 4, dtype=T, generator=torch.Generator().manual_seed(1)),
        )
    )
    growth.requires_grad_()
    gradient = ic.Implicit(ic.Chain((ic.GMRES(tol=1e-12, max_products=2), ic.Newton(tol=1e-12))))
    solver = ic.Newton(tol=1e-13)
    x = torch.ones(5, 4, dtype=T)
    solution = ic.fixed_point(
        lambda z, x: growth_of(z, x),
        torch.zeros_like(x),
        (growth, x),
        solver=solver,
        gradient=gradient,
        on_failure="ignore",
    )
    (found,) = torch.autograd.grad(solution.z.sum(), growth)
    (expected,) = torch.autograd.grad((x / (1 - growth)).sum(), growth)
    assert torch.allclose(found, expected)
    assert known(solution.backward.status).tolist() == [ic.Status.CONVERGED] * 5


def test_unrolled_goes_through_the_selected_samples():
    growth = torch.tensor([0.1, 0.2, -3.0, 5.0], dtype=T)[:, None].requires_grad_()
    chain = ic.Chain((ic.Picard(tol=1e-12, max_steps=30), ic.Newton(tol=1e-12)))
    solution = ic.fixed_point(
        lambda z, x: x * z + 1,
        torch.zeros(4, 1, dtype=T),
        growth,
        solver=chain,
        gradient=ic.Unrolled(),
    ).raise_if_failed()
    (found,) = torch.autograd.grad(solution.z.sum(), growth)
    assert torch.allclose(found, 1 / (1 - growth) ** 2, rtol=1e-6)


def growth_of(z, x):
    growth, shift = x
    return growth * z + shift


def test_a_chain_of_nothing_is_refused_and_a_config_builds_one():
    with pytest.raises(ic.ConfigError, match="at least one"):
        ic.Chain(())
    with pytest.raises(ic.ConfigError, match=r"solvers\[0\]"):
        ic.Chain(["andersen"])  # pyright: ignore[reportArgumentType]
    named = ic.Chain(["picard"])  # pyright: ignore[reportArgumentType]
    assert named == ic.Chain((ic.Picard(),))
    chain = ic.create(
        "root_solver", {"name": "chain", "solvers": ["picard", {"name": "newton", "tol": 1e-6}]}
    )
    assert chain == ic.Chain((ic.Picard(), ic.Newton(tol=1e-6)))
    same = ic.Chain([ic.Picard(), ic.Newton(tol=1e-6)])  # pyright: ignore[reportArgumentType]
    assert hash(chain) == hash(same)
