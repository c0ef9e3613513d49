"""States whose tensors have different dtypes, against dense computations in float64."""

from __future__ import annotations

from typing import Any

import pytest
import torch

import implicitcore as ic
from implicitcore.testing.expect import known

SINGLE, DOUBLE = torch.float32, torch.float64


def name(part):
    return type(part).__name__


def relative(found, expected):
    def wide(tensor):
        return tensor.to(torch.complex128 if tensor.is_complex() else DOUBLE)

    return max(
        ((wide(a) - wide(b)).norm() / wide(b).norm()).item()
        for a, b in zip(found, expected, strict=True)
    )


class Pair:
    """(a, b) in float32 and float64 with weights of each, and the same in float64."""

    def __init__(self):
        draw = torch.Generator().manual_seed(1)

        def drawn(*shape, dtype):
            value = 0.3 * torch.randn(shape, generator=draw, dtype=DOUBLE)
            return value.to(dtype).requires_grad_()

        self.x = drawn(4, 3, dtype=SINGLE)
        self.A, self.B = drawn(3, 3, dtype=SINGLE), drawn(2, 2, dtype=DOUBLE)
        self.C = drawn(2, 3, dtype=SINGLE)
        self.z0 = drawn(4, 3, dtype=SINGLE), drawn(4, 2, dtype=DOUBLE)
        self.leaves = [self.x, self.A, self.B, self.C, *self.z0]

    def map(self, z, x):
        a, b = z
        if a.dtype == b.dtype:  # the dense one
            return torch.tanh(a @ self.A.double() + b @ self.C.double() + x.double()), torch.tanh(
                b @ self.B + a[:, :2]
            )
        assert (a.dtype, b.dtype) == (SINGLE, DOUBLE)
        return torch.tanh(a @ self.A + b.float() @ self.C + x), torch.tanh(
            b @ self.B + a[:, :2].double()
        )

    def field(self, t, z, x):
        return tuple(torch.cos(t) * f - z for f, z in zip(self.map(z, x), z, strict=True))

    def gradients(self, z):
        loss = z[0].double().sin().sum() + z[1].exp().sum()
        return torch.autograd.grad(loss, self.leaves, allow_unused=True)


def check_own_dtypes(pair, z, grads):
    assert [leaf.dtype for leaf in z] == [SINGLE, DOUBLE]
    assert all(
        grad is None or grad.dtype == leaf.dtype
        for grad, leaf in zip(grads, pair.leaves, strict=True)
    )


ROOTS = [
    ic.Anderson(tol=1e-12),
    ic.Broyden(tol=1e-12),
    ic.Newton(tol=1e-12),
    ic.Picard(tol=1e-12, max_steps=200),
    ic.SteadyState(tol=1e-6),
    ic.PseudoTransient(tol=1e-6),
]


@pytest.mark.parametrize("gradient", [ic.Implicit(), ic.Unrolled(), ic.Phantom(steps=60)], ids=name)
@pytest.mark.parametrize("solver", ROOTS, ids=name)
def test_equilibria(solver, gradient):
    """A tolerance that no float32 meets is met as far as it does; each sample converges."""
    pair = Pair()
    z = tuple(leaf.detach().double() for leaf in pair.z0)
    for _ in range(200):
        z = pair.map(z, pair.x)
    expected = pair.gradients(z)[:4]
    found = ic.fixed_point(pair.map, pair.z0, pair.x, solver=solver, gradient=gradient)
    assert relative(found.z, z) < 5e-6
    grads = pair.gradients(found.z)
    assert relative(grads[:4], expected) < 5e-5
    check_own_dtypes(pair, found.z, grads)


STEPS: dict[str, Any] = {"rtol": 1e-6, "atol": 1e-7}
BACK = ic.Adjoint(solver=ic.Tsit5(**STEPS))
ODES = [ic.Tsit5(**STEPS), ic.RK4(dt=0.02), ic.Adams(**STEPS), ic.RadauIIA5(**STEPS)]


@pytest.mark.parametrize("gradient", [ic.Unrolled(), ic.Checkpointed(), BACK], ids=name)
@pytest.mark.parametrize("solver", ODES, ids=name)
def test_trajectories(solver, gradient):
    """t comes in the lower of both, so that it mixes with both."""
    pair, times = Pair(), torch.linspace(0, 1.5, 4, dtype=DOUBLE)
    wide = tuple(leaf.double() for leaf in pair.z0)
    fine = ic.RK4(dt=0.01)
    z = ic.integrate(pair.field, wide, pair.x, times=times, solver=fine).z
    expected = pair.gradients(z)
    found = ic.integrate(pair.field, pair.z0, pair.x, times=times, solver=solver, gradient=gradient)
    assert relative(found.z, z) < 1e-5
    grads = pair.gradients(found.z)
    assert relative(grads, expected) < 1e-4
    check_own_dtypes(pair, found.z, grads)


@pytest.mark.parametrize("solver", [ic.Tsit5(**STEPS), ic.RadauIIA5(**STEPS)], ids=name)
def test_a_real_number_beside_complex_ones(solver):
    """A rotation whose rate decays: c = exp(i (1 - exp(-t))), also by a solver of real numbers."""
    z0 = torch.ones(2, 1, requires_grad=True), torch.ones(2, 1, dtype=torch.complex64)
    found = ic.integrate(
        lambda z, x: (-z[0], 1j * z[0] * z[1]), z0, times=[0.0, 1.0], solver=solver
    )
    rate, turned = (leaf[-1] for leaf in found.z)
    angle = 1 - torch.exp(torch.tensor(-1.0))
    assert (rate.dtype, turned.dtype) == (torch.float32, torch.complex64)
    assert torch.allclose(turned, torch.polar(torch.tensor(1.0), angle).expand(2, 1), atol=1e-5)
    (grad,) = torch.autograd.grad(turned.imag.sum(), z0[0])
    assert torch.allclose(grad, (angle * angle.cos()).expand(2, 1), atol=1e-5)


def test_events_output_times_and_what_is_saved():
    """a = exp(-t) in float32 and b = exp(-2 t) in float64; a = 1/2 at log 2."""
    z0 = torch.ones(2, 1), torch.ones(2, 1, dtype=DOUBLE)
    seen = []

    def save(t, z, x):
        seen.append((t.dtype, z[0].dtype, z[1].dtype))
        return z[1], z[0]

    found = ic.integrate(
        lambda z, x: (-z[0], -2 * z[1]),
        z0,
        times=torch.tensor([0.0, 0.5, 1.0], dtype=DOUBLE),
        solver=ic.Tsit5(**STEPS),
        event=lambda z, x: z[0][:, 0] - 0.5,
        save=save,
    )
    assert set(seen) == {(SINGLE, SINGLE, DOUBLE)}
    assert torch.allclose(
        known(found.event_times), torch.full((2,), 2.0, dtype=DOUBLE).log(), atol=1e-5
    )
    assert [leaf.dtype for leaf in found.z] == [DOUBLE, SINGLE]
    expected = torch.tensor([1.0, torch.exp(torch.tensor(-1.0)), 0.25], dtype=DOUBLE)
    assert torch.allclose(found.z[0][:, 0, 0], expected, atol=1e-5)
    assert torch.allclose(found.z[1][:, 0, 0], expected.sqrt().float(), atol=1e-5)


def test_what_f_returns_has_the_dtypes_of_the_state():
    z0 = torch.ones(2, 1), torch.ones(2, 1, dtype=DOUBLE)
    with pytest.raises(ic.InputError, match=r"returned torch.float64, expected torch.float32"):
        ic.integrate(lambda z, x: (z[1], z[1]), z0, times=[0.0, 1.0])


def test_tolerances_below_the_lower_dtype_are_warned_of():
    z0 = torch.ones(2, 1), torch.ones(2, 1, dtype=DOUBLE)
    with pytest.warns(ic.ConvergenceWarning, match="below the precision of torch.float32"):
        ic.integrate(
            lambda z, x: (-z[0], -z[1]), z0, times=[0.0, 0.1], solver=ic.Tsit5(rtol=1e-9, atol=1e-9)
        )


def test_a_solve_in_a_graph_takes_one_dtype():
    start = ic.Zeros(((1,), (1,)))

    def cell(z, x):
        return 0.5 * z[0] + x, 0.5 * z[1]

    layer = ic.ImplicitLayer(ic.FixedPoint(cell), solver=ic.Anderson(), start=start)
    with pytest.raises(ic.InputError, match="differ in dtype"):
        ic.compile(layer)(torch.ones(2, 1), (torch.ones(2, 1), torch.ones(2, 1, dtype=DOUBLE)))
