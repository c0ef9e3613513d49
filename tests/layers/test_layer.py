"""ImplicitLayer: the edge between modules and solves."""

from __future__ import annotations

import copy
import pickle

import pytest
import torch
from torch import nn

import implicitcore as ic
from implicitcore.testing.dense import fixed_point
from implicitcore.testing.expect import known
from implicitcore.testing.problems import Cell, inputs


def layer(**options):
    return ic.ImplicitLayer(
        ic.FixedPoint(Cell(dtype=torch.float32)), **{"solver": ic.Anderson(tol=1e-5), **options}
    )


def test_it_is_a_module_like_any_other():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(3, 6), layer(), nn.Linear(6, 2))
    model(torch.randn(5, 3)).sum().backward()
    assert all(p.grad is not None and bool(p.grad.isfinite().all()) for p in model.parameters())
    assert {"1.dynamics.cell.weight", "1.dynamics.cell.bias"} <= set(model.state_dict())


def test_the_output_is_the_solution():
    x = inputs(dtype=torch.float32)
    implicit = layer()
    solution = implicit.solve(x)
    assert torch.equal(implicit(x), solution.z)
    expected = fixed_point(
        lambda z: implicit.get_submodule("dynamics.cell")(z, x), torch.zeros_like(x)
    )
    assert torch.allclose(solution.z, expected, atol=1e-4)
    assert implicit.regularizer(solution).item() == 0


def test_eval_keeps_the_gradient_and_a_call_leaves_nothing_behind():
    implicit, x = layer().eval(), inputs(dtype=torch.float32).requires_grad_()
    before = set(vars(implicit))
    implicit(x).sum().backward()
    assert x.grad is not None
    assert set(vars(implicit)) == before


@pytest.mark.parametrize(
    "duplicate",
    [copy.deepcopy, lambda m: pickle.loads(pickle.dumps(m))],
    ids=["deepcopy", "pickle"],
)
def test_a_copy_computes_the_same(duplicate):
    x, implicit = inputs(dtype=torch.float32), layer()
    assert torch.equal(duplicate(implicit)(x), implicit(x))


def test_too_few_steps_warn_or_raise():
    x = inputs(dtype=torch.float32)
    with pytest.warns(ic.ConvergenceWarning, match="8 max_steps"):
        layer(solver=ic.Picard(max_steps=2))(x)
    with pytest.raises(ic.SolveError, match="8 max_steps"):
        layer(solver=ic.Picard(max_steps=2), on_failure="raise")(x)


def test_a_nan_raises_and_names_the_count():
    x = inputs(dtype=torch.float32)
    x[2] = torch.nan
    with pytest.raises(ic.SolveError, match="7 converged, 1 non_finite") as failure:
        layer()(x)
    assert known(failure.value.solution).status[2] == ic.Status.NON_FINITE


def test_another_start_is_used():
    x, implicit = inputs(dtype=torch.float32), layer()
    z = implicit(x).detach()
    assert implicit.solve(x, z).evaluations < implicit.solve(x).evaluations


@pytest.mark.parametrize(
    ("cell", "message"),
    [
        (lambda z, x: z[:, :3], r"FixedPoint returned shape \[8, 3\], expected \[8, 6\]"),
        (lambda z, x: z[:4], r"FixedPoint returned shape \[4, 6\], expected \[8, 6\]"),
        (
            lambda z, x: (z, z),
            r"FixedPoint returned a tuple of 2 tensors, expected one tensor of shape \[8, 6\]",
        ),
        (lambda z, x: z.double(), "FixedPoint returned torch.float64, expected torch.float32"),
        (lambda z, x: 1.0, r"FixedPoint returned a float, expected a tensor of shape \[8, 6\]"),
    ],
)
def test_a_cell_that_returns_something_else_is_named(cell, message):
    with pytest.raises(ic.InputError, match=message):
        ic.ImplicitLayer(ic.FixedPoint(cell), solver=ic.Picard())(inputs(dtype=torch.float32))


@pytest.mark.parametrize(
    ("z0", "message"),
    [
        ((), "holds no tensors"),
        (torch.tensor(1.0), "no dimensions"),
        (torch.zeros(3, 2, dtype=torch.int64), "dtype torch.int64; expected a floating-point"),
        ((torch.zeros(3, 2), torch.zeros(4, 2)), r"differ in batch size: \[3, 4\]"),
        (3.0, "holds a float"),
    ],
)
def test_a_start_that_is_no_state_is_named(z0, message):
    with pytest.raises(ic.InputError, match=message):
        ic.fixed_point(lambda z, x: z, z0)


def test_the_shape_of_the_state_may_differ_from_that_of_x():
    project = nn.Linear(3, 5)
    implicit = ic.ImplicitLayer(
        ic.FixedPoint(lambda z, x: torch.tanh(0.1 * z + project(x))),
        solver=ic.Picard(),
        start=ic.Zeros((5,)),
    )
    assert implicit(torch.randn(7, 3, generator=torch.Generator().manual_seed(0))).shape == (7, 5)
    with pytest.raises(RuntimeError) as failure:
        ic.ImplicitLayer(implicit.dynamics, solver=ic.Picard())(torch.zeros(7, 3))
    assert failure.value.__notes__ == [
        "while evaluating FixedPoint on a state z of shape [7, 3], torch.float32, with x of shape "
        "[7, 3]; a state is shaped like z0, which a layer makes like x unless shape= or start= "
        "says otherwise"
    ]


def test_a_start_that_cannot_tell_the_shape_says_what_to_do():
    with pytest.raises(ic.InputError, match="give shape= or z0"):
        layer()((torch.zeros(2, 6), torch.zeros(2, 6)))
    with pytest.raises(
        ic.InputError,
        match=r"learned initial guess has 4 channels, but the state of one sample has shape \[6\]",
    ):
        layer(start=ic.LearnedInitialGuess(4))(torch.zeros(2, 6))


def test_an_ode_solver_gives_the_state_at_the_horizon():
    decay = ic.VectorField(lambda t, z, x: -z + 0 * t)
    x = torch.tensor([[1.0], [2.0]], dtype=torch.float64)
    implicit = ic.ImplicitLayer(
        decay, solver=ic.Dopri5(rtol=1e-9, atol=1e-12), start=ic.Identity(), horizon=2.0
    )
    solution = implicit.solve(x)
    assert torch.allclose(
        implicit(x), x * torch.exp(torch.tensor(-2.0, dtype=torch.float64)), rtol=1e-8
    )
    assert isinstance(solution, ic.FinalState)
    assert solution.times.tolist() == [0.0, 2.0]
    assert isinstance(implicit.gradient, ic.Unrolled)


def test_a_solution_prints_and_summarises():
    solution = layer().solve(inputs(dtype=torch.float32))
    assert solution.summary().startswith("8 samples: 8 converged; ")
    assert "worst relative residual" in solution.summary()
    assert solution.raise_if_failed() is solution


@pytest.mark.parametrize(
    "gradient",
    [ic.Implicit(ic.GMRES(tol=1e-6)), ic.Unrolled(), ic.Phantom(steps=4)],
    ids=lambda g: type(g).__name__,
)
def test_masked_samples_give_their_start_and_touch_no_gradient(gradient):
    x = inputs(dtype=torch.float32).requires_grad_()
    broken = x.detach().clone()
    broken[2, 1] = torch.nan
    broken.requires_grad_()
    good = [0, 1, 3, 4, 5, 6, 7]
    implicit = layer(gradient=gradient, on_failure="mask")
    parameters = list(implicit.parameters())
    expected = torch.autograd.grad(implicit(x[good]).square().sum(), [*parameters, x])
    z = implicit(broken)
    assert not z[2].any()
    found = torch.autograd.grad(z.square().sum(), [*parameters, broken])
    assert torch.allclose(z[good], implicit(x)[good], atol=1e-5)
    assert all(
        torch.allclose(a, b, rtol=1e-3, atol=1e-5)
        for a, b in zip(found[:-1], expected[:-1], strict=True)
    )
    assert torch.allclose(found[-1][good], expected[-1][good], rtol=1e-3, atol=1e-5)
    assert not found[-1][2].any()
    assert implicit.solve(broken).status[2] == ic.Status.NON_FINITE


def test_a_batch_of_failures_is_all_start():
    implicit = layer(on_failure="mask")
    x = torch.full((3, 6), torch.nan, requires_grad=True)
    z = implicit(x)
    assert not z.any()
    wrt = [x, *implicit.parameters()]
    assert not any(g.any() for g in torch.autograd.grad(z.sum(), wrt))
