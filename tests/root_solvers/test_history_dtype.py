"""``history_dtype``: a history in bfloat16, beside residuals, sums and iterates of the state's."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

import implicitcore as ic
from implicitcore.root_solvers.narrow import WIDENED_ROWS
from implicitcore.tensors import host
from implicitcore.testing import parametrize_with_checks
from implicitcore_cpp import CppBackend

NARROW: dict[str, Any] = {"history_dtype": "bfloat16", "max_steps": 100}
SOLVERS = [ic.Anderson(**NARROW), ic.Broyden(**NARROW), ic.Broyden(variant="bad", **NARROW)]
each_solver = pytest.mark.parametrize("solver", SOLVERS, ids=["anderson", "good", "bad"])
BATCH, N = 2, 100_000


def maps() -> dict[str, Any]:
    """Maps of 1e5 numbers; the equilibrium of the linear one is known."""
    rates = torch.linspace(0, 0.9, N)
    return {
        "linear": lambda z, x: rates * z + x,
        "shifted": lambda z, x: torch.tanh(0.9 * z.roll(1, 1) + x),
        "expanding": lambda z, x: torch.tanh(-1.5 * (z + z.roll(1, 1)) / 2 + x),
        "mean": lambda z, x: torch.tanh(0.5 * z + 0.4 * z.mean(1, keepdim=True) + x),
    }


def start(dtype: torch.dtype = torch.float32, n: int = N) -> Tensor:
    return torch.randn(BATCH, n, generator=torch.Generator().manual_seed(0)).to(dtype)


@parametrize_with_checks(SOLVERS)
def test_contract(part, check):
    check(part)


@each_solver
@pytest.mark.parametrize("tol", [1e-3, 1e-6])
@pytest.mark.parametrize("name", maps())
def test_as_many_evaluations_on_large_states(solver, tol, name):
    f, x = maps()[name], start()
    found, plain = (
        ic.fixed_point(f, torch.zeros_like(x), x, solver=each)
        for each in (
            replace(solver, tol=tol),
            replace(solver, tol=tol, history_dtype=None),
        )
    )
    assert found.converged.all() and plain.converged.all()
    # Good Broyden rounds the steps that it takes: it loses some of its superlinear end.
    more = 5 if solver == SOLVERS[1] and name == "linear" else 1
    # Of each sample: an accelerator, which is looked at late, evaluates some more of the batch.
    assert found.steps.max() <= plain.steps.max() + more
    assert found.z.dtype == torch.float32
    measured = torch.linalg.vector_norm(f(found.z, x) - found.z, dim=1)
    torch.testing.assert_close(found.residual, measured, rtol=1e-3, atol=0)
    if name == "linear":
        exact = x / (1 - torch.linspace(0, 0.9, N))
        assert ((found.z - exact).norm() / exact.norm()) <= 11 * tol


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_sums_are_those_of_the_wide_dtype(dtype):
    history = torch.randn(3, 5, 300, generator=torch.Generator().manual_seed(1)).bfloat16()
    row, weights = torch.randn(3, 1, 300, dtype=dtype), torch.randn(3, 1, 5, dtype=dtype)
    wide, kernels = history.to(dtype), ic.TorchBackend()
    expected = kernels.inner_products(wide, row)
    torch.testing.assert_close(WIDENED_ROWS.inner_products(history, row), expected)
    expected = kernels.axpy_history(row, weights, wide, -2.0)
    torch.testing.assert_close(WIDENED_ROWS.axpy_history(row, weights, history, -2.0), expected)
    expected = kernels.axpy_history(None, weights, wide)
    torch.testing.assert_close(WIDENED_ROWS.axpy_history(None, weights, history), expected)
    out = row.clone()
    assert WIDENED_ROWS.axpy_history(out, weights, history, -2.0, out=out) is out
    torch.testing.assert_close(out, kernels.axpy_history(row, weights, wide, -2.0))


@torch.no_grad()
@each_solver
def test_only_the_history_is_narrow_and_it_is(solver):
    """Of the same shape, and of half the size."""
    x = start(n=64)
    state = solver.init(_system(x), x)
    kept = [part for part in _histories(state)]
    assert kept and all(history.buffer.dtype == torch.bfloat16 for history in kept)
    plain = [h for h in _histories(replace(solver, history_dtype=None).init(_system(x), x))]
    assert all(history.buffer.dtype == torch.float32 for history in plain)
    assert [h.buffer.shape for h in kept] == [h.buffer.shape for h in plain]


def _system(x: Tensor) -> Any:
    """What a solver's first state asks of a system."""

    class System:
        backend = ic.TorchBackend()

    return System()


def _histories(state: Any) -> list[Any]:
    names = ("pairs", "steps", "left", "right")
    return [getattr(state, name) for name in names if hasattr(state, name)]


@each_solver
def test_on_a_device_it_finds_what_a_cpu_finds(solver, monkeypatch):
    f, x = maps()["shifted"], start(n=500)
    found = []
    for on_host in (True, False):
        with monkeypatch.context() as patch, torch.no_grad():
            patch.setattr(host, "on_host", lambda tensor, on_host=on_host: on_host)
            found.append(ic.fixed_point(f, torch.zeros_like(x), x, solver=solver))
    here, there = found
    assert here.converged.all() and torch.equal(here.steps, there.steps)
    torch.testing.assert_close(here.z, there.z)


@each_solver
def test_samples_may_leave_the_batch(solver):
    x = start(n=500)
    rates = torch.tensor([[0.2], [0.9]])
    f = lambda z, x: torch.tanh(x[1] * z.roll(1, 1) + x[0])  # noqa: E731
    all_in, apart = (
        ic.fixed_point(f, torch.zeros_like(x), (x, rates), solver=each)
        for each in (solver, replace(solver, compact=True))
    )
    assert torch.equal(all_in.steps, apart.steps) and all_in.steps[0] < all_in.steps[1]
    torch.testing.assert_close(all_in.z, apart.z)


@each_solver
def test_where_a_graph_is_recorded_the_history_has_the_dtype_of_the_state(solver):
    x, gradients = start(torch.float64, 20).requires_grad_(), []
    for each in (solver, replace(solver, history_dtype=None)):
        f = maps()["shifted"]
        found = ic.fixed_point(f, torch.zeros_like(x), x, solver=each, gradient=ic.Unrolled())
        gradients.append(torch.autograd.grad(found.z.sum(), x)[0])
    assert torch.equal(*gradients)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@each_solver
def test_half_precision_is_as_it_was(solver, dtype):
    x, found = start(dtype, 50), []
    for each in (solver, replace(solver, history_dtype=None)):
        f = maps()["shifted"]
        found.append(ic.fixed_point(f, torch.zeros_like(x), x, solver=replace(each, tol=2e-2)))
    assert torch.equal(found[0].z, found[1].z)
    assert found[0].evaluations == found[1].evaluations


@pytest.mark.parametrize("backward", SOLVERS, ids=["anderson", "good", "bad"])
def test_a_backward_solve_may_have_it(backward):
    x = start(torch.float64, 40).requires_grad_()
    f = maps()["shifted"]
    gradients = []
    for solver in (replace(backward, tol=1e-8), ic.GMRES(tol=1e-12)):
        found = ic.fixed_point(
            f, torch.zeros_like(x), x, solver=ic.Anderson(tol=1e-12), gradient=ic.Implicit(solver)
        )
        gradients.append(torch.autograd.grad(found.z.square().sum(), x)[0])
    error = (gradients[0] - gradients[1]).norm() / gradients[1].norm()
    assert error < 1e-7


def test_shine_takes_the_estimate_of_a_narrow_history():
    x = start(torch.float64, 40).requires_grad_()
    f, strategy = maps()["shifted"], ic.Shine(ic.GMRES(tol=1e-10))
    solver = ic.Broyden(tol=1e-10, **NARROW)
    found = ic.fixed_point(f, torch.zeros_like(x), x, solver=solver, gradient=strategy)
    exact = ic.fixed_point(f, torch.zeros_like(x), x, solver=ic.Anderson(tol=1e-12))
    one, other = (torch.autograd.grad(it.z.square().sum(), x)[0] for it in (found, exact))
    torch.testing.assert_close(one, other, rtol=1e-6, atol=1e-8)


@pytest.mark.parametrize("where", ["solver", "gradient"])
def test_a_compiled_layer_refuses_it(where):
    parts = {"solver": ic.Anderson(), "gradient": ic.Implicit(ic.Anderson())}
    narrow = ic.Broyden(**NARROW)
    parts[where] = narrow if where == "solver" else ic.Implicit(narrow)
    with pytest.raises(ic.ConfigError, match="history_dtype: a graph keeps .* 'bfloat16' of Broyd"):
        ic.compile(ic.ImplicitLayer(ic.FixedPoint(lambda z, x: 0.5 * z + x), **parts))


@each_solver
def test_a_complex_state_is_one_of_its_parts(solver):
    x = torch.complex(*torch.randn(2, 3, 40, generator=torch.Generator().manual_seed(2)))
    f = lambda z, x: 0.8j * z.roll(1, 1) + x  # noqa: E731
    found = ic.fixed_point(f, torch.zeros_like(x), x, solver=replace(solver, tol=1e-5))
    assert found.converged.all() and found.z.dtype == torch.complex64
    assert (f(found.z, x) - found.z).norm() <= 1e-4 * found.z.norm()


@each_solver
def test_a_backend_with_whole_iterations_leaves_them_to_torch(solver):
    backend = CppBackend()
    reason = backend.unavailable_reason()
    if reason is not None:
        pytest.skip(reason)
    f, x = maps()["shifted"], start(n=500)
    own, torchs = (
        ic.fixed_point(f, torch.zeros_like(x), x, solver=solver, backend=each)
        for each in (backend, None)
    )
    assert own.converged.all() and torch.equal(own.steps, torchs.steps)
    torch.testing.assert_close(own.z, torchs.z)


def test_another_word_is_refused():
    with pytest.raises(ic.ConfigError, match="history_dtype"):
        ic.Anderson(history_dtype="float16")  # pyright: ignore[reportArgumentType]


@each_solver
@pytest.mark.parametrize("unit", [1e-25, 1e-12, 1e25])
def test_sums_are_in_the_dtype_of_the_state_whatever_its_unit(solver, unit):
    """A float64 step was squared in float32: not finite from 1e19 on, zero below 1e-22."""
    x = start(torch.float64, 200) * unit
    found, plain = (
        ic.fixed_point(
            lambda z, x: torch.tanh(0.9 * z.roll(1, 1) / unit) * unit + x,
            torch.zeros_like(x),
            x,
            solver=replace(solver, tol=1e-9, history_dtype=kept),
        )
        for kept in ("bfloat16", None)
    )
    assert found.converged.all()
    assert found.evaluations <= plain.evaluations + 5
    assert ((found.z - plain.z).norm() <= 1e-7 * plain.z.norm()).item()
