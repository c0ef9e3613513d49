"""The reversible solver and its gradient: unrolled's, in memory that the steps do not decide."""

from __future__ import annotations

from itertools import pairwise

import pytest
import torch
from torch import nn
from torch.utils import _pytree as pytree

import implicitcore as ic
from implicitcore.system.system import System
from implicitcore.tensors.packing import Packing
from implicitcore_lab.memory import peak_bytes

N, BATCH = 6, 5
ERROR = {torch.float64: 1e-10, torch.float32: 1e-4}


class Cell(nn.Module):
    """tanh(c Q z + x), Q orthogonal: its Jacobian has the 2-norm c at most."""

    def __init__(self, contraction: float, dtype: torch.dtype = torch.float64) -> None:
        super().__init__()
        torch.manual_seed(0)
        q = torch.linalg.qr(torch.randn(N, N, dtype=torch.float64))[0]
        self.weight = nn.Parameter((contraction * q).to(dtype))

    def forward(self, z, x):
        return torch.tanh(z @ self.weight.T + x)


def given(dtype=torch.float64):
    x = torch.randn(BATCH, N, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    return x.to(dtype).requires_grad_()


def gradients(cell, gradient, *, steps, tol=0.0, damping=0.5, dtype=torch.float64):
    x = given(dtype)
    z0 = torch.full_like(x, 0.1).requires_grad_()
    solver = ic.Reversible(damping=damping, tol=tol, max_steps=steps + 1)
    solution = ic.fixed_point(cell, z0, x, solver=solver, gradient=gradient, on_failure="ignore")
    v = torch.linspace(-1, 1, BATCH * N, dtype=dtype).reshape(BATCH, N)
    found = torch.autograd.grad(solution.z, [cell.weight, x, z0], v)
    return solution, [solution.z.detach(), *found]


def assert_same(mine, theirs, dtype=torch.float64):
    for a, b in zip(mine, theirs, strict=True):
        assert (a - b).norm() <= ERROR[dtype] * max(b.norm().item(), 1.0)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("damping", [0.1, 0.5, 0.8])
@pytest.mark.parametrize("contraction", [0.3, 0.95, 1.3])
@pytest.mark.parametrize("steps", [5, 50, 500])
def test_the_gradient_is_that_of_unrolling(steps, contraction, damping, dtype):
    cell = Cell(contraction, dtype)
    options = {"steps": steps, "damping": damping, "dtype": dtype}
    _, mine = gradients(cell, "reversible", **options)
    _, theirs = gradients(cell, "unrolled", **options)
    assert_same(mine, theirs, dtype)


@pytest.mark.parametrize("checkpoints", [1, 2, 16])
def test_any_number_of_checkpoints_gives_the_same(checkpoints):
    cell = Cell(0.9)
    _, mine = gradients(cell, ic.ReversibleGradient(checkpoints=checkpoints), steps=100)
    _, theirs = gradients(cell, "unrolled", steps=100)
    assert_same(mine, theirs)


def test_samples_that_stop_at_different_steps_each_get_the_gradient_of_theirs():
    class Uneven(Cell):
        def forward(self, z, x):
            return torch.tanh((x[:, :1].abs().clamp(max=1)) * z @ self.weight.T + x)

    cell = Uneven(0.9)
    one, mine = gradients(cell, "reversible", steps=300, tol=1e-6)
    other, theirs = gradients(cell, "unrolled", steps=300, tol=1e-6)
    assert len(set(one.steps.tolist())) > 1
    assert torch.equal(one.steps, other.steps)
    assert torch.equal(one.residual, other.residual)
    assert_same(mine, theirs)


def test_what_is_returned_of_a_solve_that_fails_is_its_best_iterate_with_its_gradient():
    class Odd(Cell):
        """Steps that grow: the best iterate is an early one."""

        def forward(self, z, x):
            return -3 * z @ self.weight.T + x

    cell = Odd(1.0)
    one, mine = gradients(cell, "reversible", steps=12)
    other, theirs = gradients(cell, "unrolled", steps=12)
    assert torch.equal(one.status, other.status)
    assert_same(mine, theirs)


def test_a_sample_that_is_not_finite_reaches_no_other():
    cell, x = Cell(0.5), given()
    poisoned = x.detach().clone()
    poisoned[2] = torch.nan
    poisoned.requires_grad_()
    solver = ic.Reversible(tol=1e-10, max_steps=100)
    rows = [0, 1, 3, 4]
    z = ic.fixed_point(cell, torch.zeros(BATCH, N).double(), poisoned, solver=solver,
                       gradient="reversible", on_failure="ignore").z  # fmt: skip
    (found,) = torch.autograd.grad(z[rows].sum(), poisoned)
    clean = ic.fixed_point(cell, torch.zeros(BATCH, N).double(), x, solver=solver,
                           gradient="reversible", on_failure="ignore").z  # fmt: skip
    (expected,) = torch.autograd.grad(clean[rows].sum(), x)
    torch.testing.assert_close(found[rows], expected[rows])


def test_a_start_at_the_root_gets_the_gradient_and_nothing_else():
    cell = lambda z, x: 0.5 * z  # noqa: E731
    z0 = torch.zeros(2, 3, dtype=torch.float64, requires_grad=True)
    solver = ic.Reversible(tol=1e-6)
    z = ic.fixed_point(cell, z0, solver=solver, gradient="reversible").z
    assert torch.equal(torch.autograd.grad(z.sum(), z0)[0], torch.ones_like(z0))


def test_a_state_that_is_a_pytree_and_what_no_module_lists():
    shift = torch.tensor(0.3, dtype=torch.float64, requires_grad=True)
    scale = shift * 2  # no leaf: a tensor with a graph of its own

    def f(z, x):
        return {"a": torch.tanh(0.5 * z["b"] + x + shift), "b": 0.4 * z["a"].cos() * scale}

    results = []
    for gradient in ("reversible", "unrolled"):
        x = given()
        z0 = {"a": torch.zeros_like(x), "b": torch.zeros_like(x)}
        solver = ic.Reversible(tol=1e-8, max_steps=100)
        z = ic.fixed_point(f, z0, x, solver=solver, gradient=gradient).z
        loss = torch.stack([leaf.pow(3).sum() for leaf in pytree.tree_leaves(z)]).sum()
        results.append(torch.autograd.grad(loss, [x, shift], retain_graph=True))
    assert_same(*results)


def test_a_vector_field():
    weight = torch.tensor(0.4, dtype=torch.float64, requires_grad=True)
    results = []
    for gradient in ("reversible", "unrolled"):
        x = given()
        g = lambda z, x: torch.sin(weight * z + x) - z  # noqa: E731
        solver = ic.Reversible(tol=1e-9, max_steps=200)
        z = ic.find_root(g, torch.zeros_like(x), x, solver=solver, gradient=gradient).z
        results.append(torch.autograd.grad(z.pow(2).sum(), [x, weight]))
    assert_same(*results)


def test_dropout_has_one_mask_and_a_changed_cell_is_told():
    torch.manual_seed(0)
    cell, drop = Cell(0.5), ic.VariationalDropout(0.5)
    layer = ic.ImplicitLayer(
        ic.FixedPoint(lambda z, x: drop(cell(z, x))),
        solver=ic.Reversible(tol=1e-8, max_steps=100),
        gradient="reversible",
    )
    layer.dynamics.drop = drop  # pyright: ignore[reportArgumentType]
    layer(given()).sum().backward()
    assert cell.weight.grad is not None

    changing = {"scale": 0.5}
    x = given()
    z = ic.fixed_point(
        lambda z, x: changing["scale"] * torch.tanh(z) + x,
        torch.zeros_like(x),
        x,
        solver=ic.Reversible(tol=1e-8, max_steps=100),
        gradient="reversible",
    ).z
    changing["scale"] = 0.1
    with pytest.raises(ic.GradientError, match="is not that of the solve"):
        z.sum().backward()


@pytest.mark.parametrize("solver", [ic.Picard(), ic.Anderson(), ic.SteadyState()])
def test_another_solver_is_refused(solver):
    with pytest.raises(ic.GradientError, match=r"use solver=Reversible\(\), or Unrolled"):
        ic.fixed_point(lambda z, x: 0.5 * z, torch.ones(1, 1), solver=solver, gradient="reversible")


def test_a_second_derivative_is_refused():
    x = given()
    solver = ic.Reversible(tol=1e-6)
    z = ic.fixed_point(Cell(0.5), torch.zeros_like(x), x, solver=solver, gradient="reversible").z
    with pytest.raises(ic.GradientError, match="first derivatives only"):
        torch.autograd.grad(z.sum(), x, create_graph=True)


@pytest.mark.parametrize("damping", [0.0, 1.0])
def test_a_damping_that_cannot_be_taken_back_is_refused(damping):
    with pytest.raises(ic.ConfigError, match="damping: expected a number"):
        ic.Reversible(damping=damping)


def test_steps_are_those_of_the_paper_and_can_be_taken_back():
    cell, x = Cell(0.7), given().detach()
    solver = ic.Reversible(damping=0.3, tol=0.0, max_steps=11)
    system = System.of(ic.FixedPoint(cell), x, Packing.of(x))
    pairs = []
    with torch.no_grad():
        solution, path = solver.solve_keeping(system, x, lambda index, pair: pairs.append(pair))
        y = z = x
        for _ in range(10):
            y = 0.7 * y + 0.3 * cell(z, x)
            z = 0.7 * z + 0.3 * cell(y, x)
        torch.testing.assert_close(path.end.z, z, rtol=1e-13, atol=1e-13)
        torch.testing.assert_close(path.end.y, y, rtol=1e-13, atol=1e-13)
        for before, after in pairwise([*pairs, path.end]):
            back = solver.undo(system, after)
            torch.testing.assert_close(back.z, before.z, rtol=1e-12, atol=1e-12)
            torch.testing.assert_close(back.y, before.y, rtol=1e-12, atol=1e-12)
    plain = ic.fixed_point(cell, x, x, solver=solver, on_failure="ignore")
    assert torch.equal(solution.z, plain.z)
    assert torch.equal(solution.steps, plain.steps)
    assert plain.backward.evaluations == 0


class Wide(nn.Module):
    """A cell whose graph is far larger than its state."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.up, self.down = nn.Linear(16, 4096), nn.Linear(4096, 16)

    def forward(self, z, x):
        return 0.5 * torch.tanh(self.down(torch.tanh(self.up(z)))) + x


def peak(gradient, steps):
    cell, x = Wide(), torch.randn(16, 16)

    def work():
        solver = ic.Reversible(tol=0.0, max_steps=steps + 1)
        z = ic.fixed_point(
            cell, torch.zeros_like(x), x, solver=solver, gradient=gradient, on_failure="ignore"
        ).z
        z.sum().backward()

    return peak_bytes(work, torch.device("cpu"))


@pytest.mark.slow
def test_the_peak_of_memory_does_not_depend_on_the_steps():
    peak("reversible", 2)
    small, medium, large = (peak("reversible", steps) for steps in (5, 50, 500))
    assert max(medium, large) <= 1.1 * small
    assert peak("unrolled", 50) > 5 * medium
