"""A sample does not stop before so many iterates."""

import pytest
import torch

import implicitcore as ic

SOLVERS = [ic.Picard, ic.Anderson, ic.Broyden, ic.Reversible]
X = torch.randn(3, 5, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


def pull(z, x):
    return torch.tanh(0.5 * z + x)


def root(solver, z0, gradient=None, x=X):
    return ic.fixed_point(
        pull, z0, x, solver=solver, gradient=gradient or ic.Implicit(), on_failure="ignore"
    )


@pytest.mark.parametrize("cls", SOLVERS)
@pytest.mark.parametrize("least", [1, 2, 7, 12])
def test_at_the_solution_so_many_iterates_are_taken_and_no_more(cls, least):
    exact = root(ic.Newton(tol=1e-15), torch.zeros_like(X)).z.detach()
    begin = torch.cat((exact[:2], torch.zeros_like(X[2:])))
    found = root(cls(tol=1e-6, min_steps=least), begin)
    assert found.steps[:2].tolist() == [least, least]
    assert found.steps[2] >= least
    assert found.converged.all()
    assert torch.allclose(found.z, exact, atol=1e-5)
    plain = root(cls(tol=1e-6), begin)
    if plain.steps[2] >= least:  # the last sample takes the steps that it took
        assert torch.equal(found.z[2], plain.z[2])
        assert found.steps[2] == plain.steps[2]


@pytest.mark.parametrize("cls", [ic.Picard, ic.Anderson, ic.Broyden])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_an_exact_root_stays_one(cls, dtype):
    x = torch.zeros(2, 4, dtype=dtype)
    found = root(cls(tol=1e-6, min_steps=10), torch.zeros_like(x), x=x)
    assert found.steps.tolist() == [10, 10]
    assert found.converged.all()
    assert not found.z.any()


@pytest.mark.parametrize("cls", SOLVERS)
def test_unrolled_from_the_solution_has_the_gradient_of_the_steps(cls):
    exact = root(ic.Newton(tol=1e-15), torch.zeros_like(X)).z.detach()
    x = X.clone().requires_grad_()
    truth = torch.autograd.grad(root(ic.Picard(tol=1e-12), exact, x=x).z.sum(), x)[0]
    for least, error in ((1, 0.5), (40, 1e-6)):
        solver = cls(tol=1e-6, min_steps=least)
        z = root(solver, exact.clone().requires_grad_(), ic.Unrolled(), x).z
        (found,) = torch.autograd.grad(z.sum(), x, allow_unused=True)
        missed = 1.0 if found is None else ((found - truth).norm() / truth.norm()).item()
        assert (missed < error) == (least > 1)


def test_more_than_max_steps_is_an_error():
    with pytest.raises(ic.ConfigError, match="min_steps: expected at most max_steps, 5; got 6"):
        ic.Picard(max_steps=5, min_steps=6)


def test_what_is_not_finite_stops_at_once():
    x = X.clone()
    x[1] = torch.nan
    found = ic.fixed_point(
        pull, torch.zeros_like(x), x, solver=ic.Picard(min_steps=9), on_failure="ignore"
    )
    assert found.status.tolist() == [0, int(ic.Status.NON_FINITE), 0]
    assert found.steps.tolist()[1] == 1
