"""f may write into what it is given and give one buffer again; outputs are the caller's own."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

import implicitcore as ic
from implicitcore.testing.dense import relative_error
from implicitcore.testing.problems import inputs

ROOT_SOLVERS = [
    ic.Picard(tol=1e-10, max_steps=300),
    ic.Picard(tol=1e-10, max_steps=300, compact=True),
    ic.Anderson(tol=1e-10, max_steps=300),
    ic.Broyden(tol=1e-10, max_steps=300),
    ic.Newton(tol=1e-10),
    ic.PseudoTransient(tol=1e-10, max_steps=300),
    ic.SteadyState(ode_solver=ic.Tsit5(), tol=1e-9, max_steps=500),
    ic.Homotopy(),
    ic.Chain((ic.Picard(tol=1e-2, max_steps=5), ic.Newton(tol=1e-10))),
]
ODE_SOLVERS = [
    ic.Euler(dt=0.1),
    ic.Midpoint(dt=0.1),
    ic.Heun(dt=0.1),
    ic.RK4(dt=0.1),
    ic.Bosh3(),
    ic.Dopri5(),
    ic.Tsit5(),
    ic.DOP853(),
    ic.Adams(),
    ic.ImplicitEuler(),
    ic.Trapezoid(),
    ic.ESDIRK(),
    ic.Kvaerno5(),
    ic.RadauIIA5(),
]
TRAJECTORIES = [ic.Unrolled(), ic.Adjoint(), ic.Checkpointed()]
TIMES = torch.tensor([0.0, 0.4, 1.0], dtype=torch.float64)


def name(part):
    return type(part).__name__ + ("-compact" if getattr(part, "compact", False) else "")


class Plain(nn.Module):
    """f(z, x) = W relu(z) + x - 1/2, and the same as a field f - z."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.weight = nn.Parameter(torch.randn(6, 6, dtype=torch.float64) / 8)

    def first(self, z):
        return z.relu()

    def last(self, out):
        return out

    def forward(self, *arguments):
        z, x = arguments[-2:]
        return self.last(self.first(z) @ self.weight + x - 0.5)


class InPlace(Plain):
    def first(self, z):
        return z.relu_()


class InPlaceView(Plain):
    def first(self, z):
        z.view(-1, 2, 3).relu_()
        return z


class Buffer(Plain):
    """One output buffer, kept outside autograd's view of the module."""

    def __init__(self):
        super().__init__()
        self.out: Any = None

    def last(self, out):
        if self.out is None or self.out.shape != out.shape:
            self.out = torch.empty_like(out.detach())
        self.out.copy_(out.detach())
        return self.give()

    def give(self):
        return self.out


class DetachedBuffer(Buffer):
    """As a CUDA graph gives its output: a new tensor in the old memory."""

    def give(self):
        return self.out.detach()


class ViewedBuffer(Buffer):
    def give(self):
        return self.out[:]


class NumpyBuffer(Buffer):
    def give(self):
        return torch.from_numpy(self.out.numpy())


WRITES = [InPlace, InPlaceView]
BUFFERS = [Buffer, DetachedBuffer, ViewedBuffer, NumpyBuffer]


def root(cell, solver, x):
    z0 = torch.ones_like(x)
    solution = ic.fixed_point(cell, z0, x, solver=solver, on_failure="ignore")
    assert bool((z0 == 1).all())
    return solution


def trajectory(cell, solver, x, gradient=None):
    z0 = torch.ones_like(x)
    z = ic.integrate(
        cell, z0, x, times=TIMES, solver=solver, gradient=gradient, on_failure="ignore"
    ).z
    assert bool((z0 == 1).all())
    return z


@pytest.mark.parametrize("kind", [*WRITES, *BUFFERS], ids=lambda kind: kind.__name__)
@pytest.mark.parametrize("solver", ROOT_SOLVERS, ids=name)
def test_a_root_without_a_graph(solver, kind):
    if kind in BUFFERS and name(solver) in ("Newton", "PseudoTransient", "Homotopy", "Chain"):
        pytest.skip("needs Jacobian products, which the buffer of this test cuts")
    x = inputs(n=6)
    with torch.no_grad():
        expected, found = (root(each(), solver, x) for each in (Plain, kind))
    assert bool(expected.converged.all()) and bool(found.converged.all())
    assert found.evaluations == expected.evaluations
    assert torch.equal(found.z, expected.z)


@pytest.mark.parametrize("kind", WRITES, ids=lambda kind: kind.__name__)
@pytest.mark.parametrize("solver", ROOT_SOLVERS, ids=name)
def test_a_root_and_its_gradient(solver, kind):
    results = []
    for cell in (Plain(), kind()):
        x = inputs(n=6).requires_grad_()
        z = root(cell, solver, x).z
        results.append([z, *torch.autograd.grad(z.square().sum(), [cell.weight, x])])
    assert relative_error(*results) < 1e-12


@pytest.mark.parametrize("kind", [*WRITES, *BUFFERS], ids=lambda kind: kind.__name__)
@pytest.mark.parametrize("solver", ODE_SOLVERS, ids=name)
def test_a_trajectory_without_a_graph(solver, kind):
    if kind in BUFFERS and name(solver) in (
        "ImplicitEuler",
        "Trapezoid",
        "ESDIRK",
        "Kvaerno5",
        "RadauIIA5",
    ):
        pytest.skip("needs Jacobian products, which the buffer of this test cuts")
    with torch.no_grad():
        expected, found = (trajectory(each(), solver, inputs(n=6)) for each in (Plain, kind))
    assert torch.equal(found, expected)


@pytest.mark.parametrize("gradient", TRAJECTORIES, ids=name)
@pytest.mark.parametrize("kind", WRITES, ids=lambda kind: kind.__name__)
@pytest.mark.parametrize("solver", ODE_SOLVERS, ids=name)
def test_a_trajectory_and_its_gradient(solver, kind, gradient):
    if isinstance(solver, ic.Adams) and isinstance(gradient, ic.Adjoint):
        pytest.skip("Adams does not say what its stages are")
    results = []
    for cell in (Plain(), kind()):
        x = inputs(n=6).requires_grad_()
        z = trajectory(cell, solver, x, gradient)
        results.append([z, *torch.autograd.grad(z.square().sum(), [cell.weight, x])])
    assert relative_error(*results) < 1e-10


@pytest.mark.parametrize("solver", [ic.Tsit5(), ic.RK4(dt=0.1)], ids=name)
def test_f_that_begins_to_write_later_is_an_error(solver):
    def field(t, z, x):
        return (z.relu_() if bool(t.mean() > 0.5) else z.relu()) + x

    with pytest.raises(ic.InputError, match="writes into its state z in place"):
        trajectory(field, solver, inputs(n=6))


@pytest.mark.parametrize("solver", [*ODE_SOLVERS[:9], *ROOT_SOLVERS[:4]], ids=name)
def test_f_that_begins_to_give_one_buffer_later_is_an_error(solver):
    out, count = torch.empty(8, 6, dtype=torch.float64), iter(range(1000))

    def f(*arguments):
        fz = torch.tanh(0.5 * arguments[-2] + arguments[-1])
        return fz if next(count) < 3 else out.copy_(fz[: len(out)]).detach()

    solve = trajectory if isinstance(solver, ic.ODESolver) else root
    # Where the last result is the state itself, f writes into that.
    with pytest.raises(ic.InputError, match=r"static output buffer.*clone\(\)|state z in place"):
        solve(f, solver, inputs(n=6))


@pytest.mark.parametrize("solver", [*ODE_SOLVERS, ic.Leapfrog(), ic.KenCarp4()], ids=name)
def test_f_that_writes_into_its_time_is_an_error(solver):
    """The clock of each sample, where they have their own."""
    z0, times = torch.ones(2, 2).double(), [[0.0, 1.0], [0.5, 1.0]]
    halves = isinstance(solver, ic.Leapfrog)
    start = (z0, z0.clone()) if halves else z0

    def field(t, z, x):
        late = t.sub_(0.5)
        return (z[1] * late, -z[0] * late) if halves else -z * late

    with pytest.raises(ic.InputError, match="writes into its time t in place"):
        ic.integrate(field, start, times=times, solver=solver, on_failure="ignore")


def test_f_that_writes_into_x_is_an_error():
    with pytest.raises(ic.InputError, match="writes into its input x in place"):
        ic.fixed_point(
            lambda z, x: 0.5 * z + x["a"].relu_(), torch.zeros(2, 3), {"a": inputs(2, 3)}
        )


@pytest.mark.parametrize("solver", ODE_SOLVERS, ids=name)
def test_a_constant_result_is_no_buffer(solver):
    x = inputs(n=6)
    z = ic.integrate(lambda t, z, x: x, torch.zeros_like(x), x, times=TIMES, solver=solver).z
    assert torch.allclose(z[-1], x, atol=1e-6)

    def later(t, z, x):
        return x if bool(t.mean() > 0.5) else 1.0 * x

    z = ic.integrate(later, torch.zeros_like(x), x, times=TIMES, solver=solver).z
    assert torch.allclose(z[-1], x, atol=1e-6)


CALLS = {
    "fixed_point": lambda z0, x: ic.fixed_point(lambda z, x: 0 * z + x, z0, x).z,
    "to its input": lambda z0, x: ic.fixed_point(lambda z, x: x, z0, x, solver=ic.Picard()).z,
    "to its state": lambda z0, x: ic.fixed_point(lambda z, x: z, z0, x, solver=ic.Picard()).z,
    "expanded": lambda z0, x: ic.fixed_point(lambda z, x: x[:1].expand_as(z), z0, x).z,
    "one step": lambda z0, x: (
        ic.fixed_point(lambda z, x: x, z0, x, solver=ic.Picard(max_steps=1)).z
    ),
    "structured": lambda z0, x: ic.fixed_point(lambda z, x: {"a": z["a"]}, {"a": z0}, x).z["a"],
    "find_root": lambda z0, x: ic.find_root(lambda z, x: z - x, z0, x).z,
    "integrate": lambda z0, x: ic.integrate(lambda t, z, x: 0 * z, z0, x, times=TIMES).z,
    "layer": lambda z0, x: ic.ImplicitLayer(
        ic.FixedPoint(lambda z, x: 0 * z + x), solver=ic.Picard()
    )(x, z0),
    "layer of an ODE": lambda z0, x: ic.ImplicitLayer(
        ic.VectorField(lambda t, z, x: 0 * z), solver=ic.Tsit5()
    )(x, z0),
    "identity": lambda z0, x: ic.ImplicitLayer(
        ic.FixedPoint(lambda z, x: 0 * z + x), solver=ic.Picard(), start=ic.Identity()
    )(x),
    "masked": lambda z0, x: ic.ImplicitLayer(
        ic.FixedPoint(lambda z, x: z + 1), solver=ic.Picard(max_steps=2), on_failure="mask"
    )(x, z0),
}


@pytest.mark.parametrize("gradient", [False, True])
@pytest.mark.parametrize("call", CALLS)
@pytest.mark.parametrize("shape", [(2, 3), (2, 3, 4)])
def test_the_output_is_the_callers_own(shape, call, gradient):
    z0, x = torch.ones(shape), torch.ones(shape)
    with torch.set_grad_enabled(gradient):
        out = CALLS[call](z0, x)
    with torch.no_grad():
        out.add_(7)
    assert bool((z0 == 1).all()) and bool((x == 1).all())


@pytest.mark.parametrize("gradient", [False, True])
def test_the_output_does_not_share_memory_with_a_learned_start(gradient):
    start = ic.LearnedInitialGuess(3)
    layer = ic.ImplicitLayer(ic.FixedPoint(lambda z, x: z), solver=ic.Picard(), start=start)
    before = [value.clone() for value in start.state_dict().values()]
    with torch.set_grad_enabled(gradient):
        out = layer(torch.ones(1, 3))
    with torch.no_grad():
        out.add_(7)
    assert all(map(torch.equal, before, start.state_dict().values()))
