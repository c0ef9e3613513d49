"""``on_failure``: the same words for functions and layers."""

from __future__ import annotations

import warnings

import pytest
import torch

import implicitcore as ic

TIMES = torch.tensor([0.0, 1.0], dtype=torch.float64)


def fixed_point(z0, x, on_failure):
    return ic.fixed_point(
        lambda z, x: 0.5 * torch.sqrt(z) + x, z0, x, solver="picard", on_failure=on_failure
    )


def find_root(z0, x, on_failure):
    return ic.find_root(
        lambda z, x: 0.5 * torch.sqrt(z) + x - z, z0, x, solver="anderson", on_failure=on_failure
    )


def integrate(z0, x, on_failure, gradient=None):
    return ic.integrate(
        lambda t, z, x: x - torch.sqrt(z),
        z0,
        x,
        times=TIMES,
        gradient=gradient,
        on_failure=on_failure,
    )


def checkpointed(z0, x, on_failure):
    return integrate(z0, x, on_failure, ic.Checkpointed())


def adjoint(z0, x, on_failure):
    return integrate(z0, x, on_failure, ic.Adjoint())


def few_steps(z0, x, on_failure):
    """A solve that is too short for the last sample, and finite."""
    solver = ic.Picard(tol=1e-10, max_steps=30)
    return ic.fixed_point(
        lambda z, x: torch.where(x > 2.5, 0.99, 0.1) * z + x,
        z0,
        x,
        solver=solver,
        on_failure=on_failure,
    )


CALLS = [fixed_point, find_root, integrate, checkpointed, adjoint]
each_call = pytest.mark.parametrize("call", CALLS, ids=lambda f: f.__name__)


def problem(broken=True):
    z0 = torch.tensor([[1.0], [-1.0 if broken else 1.5], [2.0]], dtype=torch.float64)
    return z0, torch.tensor([[1.0], [2.0], [3.0]], dtype=torch.float64, requires_grad=True)


@each_call
def test_ignore_says_nothing(call):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert call(*problem(), "ignore").converged.tolist() == [True, False, True]


def test_a_function_says_by_default_that_a_sample_failed_as_a_layer_does():
    """A trajectory whose steps end before its last time, and solves above their tolerance."""
    z0, x = problem(broken=False)
    decay, few = (lambda t, z, x: -z), ic.Tsit5(max_steps=2)
    half, shift = (lambda z, x: 0.5 * z + x), (lambda z, x: x - 0.5 * z)
    calls = {
        "integrate: 3 samples: 3 max_steps": lambda: ic.integrate(
            decay, z0, times=TIMES, solver=few
        ),
        "fixed_point: 3 samples: 3 max_steps": lambda: ic.fixed_point(
            half, z0, x, solver=ic.Picard(max_steps=2)
        ),
        "find_root: 3 samples: 3 max_steps": lambda: ic.find_root(
            shift, z0, x, solver=ic.Picard(max_steps=2)
        ),
    }
    for said, call in calls.items():
        with pytest.warns(ic.ConvergenceWarning, match=said) as caught:
            found = call()
        assert len(caught) == 1 and caught[0].filename == __file__
        assert not found.converged.any()
    with pytest.raises(ic.SolveError, match="integrate failed: 3 samples: 2 converged, 1 non_fin"):
        ic.integrate(lambda t, z, x: -torch.sqrt(z), problem()[0], times=TIMES)


def test_the_drop_in_says_what_its_peer_says():
    """One exception, and no warning beside it."""
    from implicitcore.compat.torchdiffeq import odeint

    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with pytest.raises(AssertionError, match="max_num_steps exceeded"):
            odeint(lambda t, y: -y, torch.ones(2), TIMES, options={"max_num_steps": 1})


@each_call
@pytest.mark.parametrize("word", ["raise", "warn"])
def test_a_value_that_is_not_finite_raises(call, word):
    name = call.__name__ if call.__name__ in ("fixed_point", "find_root") else "integrate"
    with pytest.raises(ic.SolveError, match=f"{name} failed: 3 samples: 2 converged, 1 non_finite"):
        call(*problem(), word)
    assert not call(*problem(broken=False), word).failed


def test_a_tolerance_that_is_not_met_is_a_warning_or_an_error():
    z0, x = problem(broken=False)
    with pytest.warns(ic.ConvergenceWarning, match="fixed_point: 3 samples: 2 converged") as caught:
        found = few_steps(z0, x, "warn")
    assert caught[0].filename == __file__, "it points at the line that called"
    assert found.converged.tolist() == [True, True, False]
    with pytest.raises(ic.SolveError, match="1 max_steps"):
        few_steps(z0, x, "raise")


@each_call
def test_mask_gives_the_start_and_no_graph(call):
    z0, x = problem()
    found = call(z0, x, "mask")
    z = found.z if isinstance(found, ic.Solution) else found.z[-1]
    assert found.converged.tolist() == [True, False, True]
    assert z[1].item() == -1.0
    (gradient,) = torch.autograd.grad(z.square().sum(), x)
    assert gradient[1] == 0
    assert bool(gradient.isfinite().all())
    whole = call(*problem(broken=False), "raise")
    assert torch.allclose(
        z[[0, 2]], (whole.z if isinstance(whole, ic.Solution) else whole.z[-1])[[0, 2]]
    )


def test_mask_without_a_gradient():
    z0, x = problem()
    with torch.no_grad():
        found = few_steps(z0, x, "mask")
    assert found.converged.tolist() == [True, True, False]
    assert found.z[2] == z0[2]


def test_a_word_that_is_none():
    with pytest.raises(ic.ConfigError, match="on_failure: expected 'raise', .*received 'masked'"):
        integrate(*problem(), "masked")


@pytest.mark.parametrize("gradient", [None, ic.Checkpointed(), ic.Adjoint()], ids=str)
def test_a_layer_ignores_too(gradient):
    layer = ic.ImplicitLayer(
        ic.VectorField(lambda z, x: -torch.sqrt(z), autonomous=True),
        solver=ic.Tsit5(),
        gradient=gradient,
        start=ic.Identity(),
        on_failure="ignore",
    )
    z0 = torch.tensor([[4.0], [-1.0]], dtype=torch.float64, requires_grad=True)
    z = layer(z0)
    assert z[0].item() == pytest.approx(2.25, abs=1e-3)
    (found,) = torch.autograd.grad(z[0].sum(), z0)
    assert found.flatten().tolist() == pytest.approx([0.75, 0.0], abs=1e-2)
