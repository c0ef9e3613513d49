"""Whose tensor is whose in x: per sample by contract, shared where it is marked."""

from __future__ import annotations

import copy
import pickle

import pytest
import torch
from torch.utils import _pytree as pytree

import implicitcore as ic

BATCH = 8
BIAS = torch.arange(1.0, BATCH + 1, dtype=torch.float64)  # as long as the batch


def affine(z, x):
    """One rate of each sample, and a bias of all samples."""
    rate, bias = x
    assert isinstance(bias, torch.Tensor)
    assert bias.shape == BIAS.shape
    return rate * z + bias


def rates(slow: float, batch: int = BATCH) -> torch.Tensor:
    """Of which one is unlike the others."""
    rate = torch.full((batch, 1), 0.5, dtype=torch.float64)
    rate[3] = slow
    return rate


def zeros(batch: int = BATCH) -> torch.Tensor:
    return torch.zeros(batch, BATCH, dtype=torch.float64)


CASES = {
    "chain": (-3.0, ic.Chain((ic.Picard(tol=1e-10, max_steps=60), ic.Newton(tol=1e-10)))),
    "homotopy": (
        -3.0,
        ic.Chain((ic.Picard(tol=1e-10, max_steps=60), ic.Homotopy(corrector=ic.Newton(tol=1e-10)))),
    ),
    "gmres": (-3.0, ic.Chain((ic.Picard(tol=1e-10, max_steps=60), ic.GMRES(tol=1e-10)))),
    "picard": (0.9, ic.Picard(tol=1e-10, max_steps=500, compact=True)),
    "anderson": (0.9, ic.Anderson(tol=1e-10, max_steps=500, compact=True)),
    "broyden": (0.9, ic.Broyden(tol=1e-10, max_steps=500, compact=True)),
    "bad broyden": (0.9, ic.Broyden(tol=1e-10, max_steps=500, variant="bad", compact=True)),
}


@pytest.mark.parametrize("batch", [BATCH, BATCH + 1])
@pytest.mark.parametrize("name", CASES)
def test_what_is_shared_stays_where_samples_leave(name: str, batch: int):
    slow, solver = CASES[name]
    rate, bias = rates(slow, batch).requires_grad_(), BIAS.clone().requires_grad_()
    solution = ic.fixed_point(
        affine, zeros(batch), (rate, ic.shared(bias)), solver=solver, on_failure="ignore"
    )
    assert solution.converged.all()
    assert torch.allclose(solution.z, bias / (1 - rate), rtol=1e-7)
    found = torch.autograd.grad(solution.z.square().sum(), (rate, bias))
    expected = torch.autograd.grad((bias / (1 - rate)).square().sum(), (rate, bias))
    for ours, exact in zip(found, expected, strict=True):
        assert torch.allclose(ours, exact, rtol=1e-4)


def test_what_is_shared_stays_where_failed_samples_are_masked():
    rate = torch.full((BATCH, 1), -3.0, dtype=torch.float64)
    rate[2] = 0.5
    layer = ic.ImplicitLayer(
        ic.FixedPoint(affine),
        solver=ic.Picard(tol=1e-10, max_steps=60),
        on_failure="mask",
        start=ic.Zeros((BATCH,)),
    )
    z = layer((rate, ic.shared(BIAS)))
    assert torch.allclose(z[2], BIAS / 0.5)
    assert bool((z[torch.arange(BATCH) != 2] == 0).all())


@pytest.mark.parametrize(
    "wrap", [lambda bias: (ic.shared({"b": bias}), 1), lambda bias: (ic.shared((bias, "name")), 1)]
)
def test_a_mark_may_hold_a_whole_pytree(wrap):
    def f(z, x):
        (held, power) = x
        bias = held["b"] if isinstance(held, dict) else held[0]
        return 0.5 * z**power + bias

    solution = ic.fixed_point(f, zeros(3), wrap(BIAS), solver=ic.Picard(tol=1e-10, max_steps=100))
    assert torch.allclose(solution.z, 2 * BIAS.expand(3, -1))


@pytest.mark.parametrize(
    ("x", "words"),
    [
        (torch.ones(5), r"x of shape \[5\]"),
        ((torch.ones(3, 1), torch.ones(1, 1)), r"x\[1\] of shape \[1, 1\]"),
        ({"a": [torch.ones(3), torch.ones(2)], "b": 1}, r"x\['a'\]\[1\] of shape \[2\]"),
    ],
)
def test_a_tensor_that_is_neither_is_refused_by_its_place(x, words: str):
    with pytest.raises(
        ic.InputError, match=rf"{words}.* a state of 3 samples.*ic\.shared\(\.\.\.\)"
    ):
        ic.fixed_point(lambda z, x: 0.5 * z, torch.zeros(3, 2), x)
    layer = ic.ImplicitLayer(ic.FixedPoint(lambda z, x: 0.5 * z), solver=ic.Picard())
    with pytest.raises(ic.InputError, match=words):
        layer(x, torch.zeros(3, 2))


def test_what_is_no_per_sample_tensor_needs_no_mark():
    x = (torch.tensor(0.5), 2, None, "name", torch.ones(3, 1))
    solution = ic.fixed_point(lambda z, x: x[0] * z + x[1] * x[4], torch.zeros(3, 2), x)
    assert torch.allclose(solution.z, torch.full((3, 2), 4.0), rtol=1e-3)


@pytest.mark.parametrize(
    "gradient", [ic.Unrolled(), ic.Checkpointed(), ic.Adjoint(ic.Tsit5(rtol=1e-9, atol=1e-11))]
)
def test_trajectories_get_the_gradient_of_what_is_shared(gradient):
    rate = torch.linspace(0.1, 0.9, 4, dtype=torch.float64)[:, None].requires_grad_()
    bias = BIAS[:4].clone().requires_grad_()
    times = torch.tensor([0.0, 1.0], dtype=torch.float64)
    solution = ic.integrate(
        lambda t, z, x: x[1] - x[0] * z,
        torch.zeros(4, 4, dtype=torch.float64),
        (rate, ic.shared(bias)),
        times=times,
        solver=ic.Tsit5(rtol=1e-9, atol=1e-11),
        gradient=gradient,
    )
    exact = bias * (1 - torch.exp(-rate)) / rate
    assert torch.allclose(solution.z[-1], exact, rtol=1e-6)
    found = torch.autograd.grad(solution.z[-1].sum(), (rate, bias))
    for ours, expected in zip(found, torch.autograd.grad(exact.sum(), (rate, bias)), strict=True):
        assert torch.allclose(ours, expected, rtol=1e-5)


def test_a_second_derivative_reaches_what_is_shared():
    rate, bias = rates(0.2).requires_grad_(), BIAS.clone().requires_grad_()
    solver = ic.Newton(tol=1e-12)
    gradient = ic.Implicit(ic.GMRES(tol=1e-12))
    solution = ic.fixed_point(
        affine, zeros(), (rate, ic.shared(bias)), solver=solver, gradient=gradient
    )

    def seconds(z):
        (first,) = torch.autograd.grad(z.pow(3).sum(), bias, create_graph=True)
        return torch.autograd.grad(first.sum(), (rate, bias))

    for ours, exact in zip(seconds(solution.z), seconds(bias / (1 - rate)), strict=True):
        assert torch.allclose(ours, exact, rtol=1e-6)


def test_function_transforms_take_a_mark_inside_and_around():
    rate = rates(0.2)
    solve = lambda x: ic.fixed_point(  # noqa: E731
        affine, zeros(), x, solver=ic.Anderson(tol=1e-12), gradient=ic.Unrolled()
    ).z.sum()
    inside = torch.func.grad(lambda bias: solve((rate, ic.shared(bias))))(BIAS)
    around = torch.func.grad(solve)((rate, ic.shared(BIAS)))
    assert torch.allclose(inside, (1 / (1 - rate)).sum().expand(BATCH), rtol=1e-6)
    assert torch.allclose(around[1].value, inside)


def test_a_mark_is_data():
    x = (rates(0.2), ic.shared({"b": BIAS}))
    for twin in (copy.deepcopy(x), pickle.loads(pickle.dumps(x))):
        found = pytree.tree_leaves(twin)
        assert torch.equal(found[1], BIAS)
        assert type(twin[1]) is type(x[1])
    nested = ic.shared((ic.shared(BIAS), 1))
    assert nested.value[0] is BIAS
