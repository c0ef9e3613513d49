"""Complex states: every root solver is right for any map of the real and imaginary parts."""

import functools

import pytest
import torch

import implicitcore as ic

C = torch.complex128
GENERATOR = torch.Generator().manual_seed(0)
W = torch.randn(3, 3, dtype=C, generator=GENERATOR) * 0.15
X = torch.randn(4, 3, dtype=C, generator=GENERATOR)
MAPS = {
    "holomorphic": lambda z, x: 0.5 * torch.sin(z @ W) + (0.3 + 0.4j) * x,
    "conjugate": lambda z, x: 0.3 * z.conj() @ W + (0.2 - 0.1j) * z + x,
    "modulus": lambda z, x: 0.3 * z / (1 + z.abs().square()) + x,
}
SOLVERS = {
    "picard": ic.Picard(tol=1e-11, max_steps=300),
    "compact": ic.Picard(tol=1e-11, max_steps=300, compact=True),
    "anderson": ic.Anderson(tol=1e-11, max_steps=100),
    "broyden": ic.Broyden(tol=1e-11, max_steps=100),
    "bad broyden": ic.Broyden(variant="bad", tol=1e-11, max_steps=100),
    "newton": ic.Newton(tol=1e-11),
    "newton by gmres": ic.Newton(tol=1e-11, dense_below=0),
    "pseudo transient": ic.PseudoTransient(tol=1e-11, max_steps=300),
    "pseudo transient by gmres": ic.PseudoTransient(tol=1e-11, max_steps=300, dense_below=0),
    "gmres": ic.GMRES(tol=1e-11),
    "bicgstab": ic.BiCGSTAB(tol=1e-11),
    "steady state": ic.SteadyState(tol=1e-10, max_steps=500),
    "implicit steady state": ic.SteadyState(tol=1e-10, max_steps=500, ode_solver=ic.ESDIRK()),
    "homotopy": ic.Homotopy(corrector=ic.Newton(tol=1e-11)),
    "homotopy by s": ic.Homotopy(corrector=ic.Newton(tol=1e-11), dense_below=0),
    "chain": ic.Chain((ic.Picard(max_steps=3), ic.Newton(tol=1e-11))),
}


def parts(z):
    return torch.view_as_real(z).flatten()


def whole(y):
    return torch.view_as_complex(y.reshape(-1, 3, 2).contiguous())


def loss(z):
    return (z.real.square() + 2 * z.imag).sum()


@functools.cache
def dense(name):
    """The equilibrium and the gradient of the loss, by dense Newton in real numbers."""
    f, y = MAPS[name], parts(torch.zeros_like(X))
    unit = jacobian = torch.eye(len(y), dtype=y.dtype)
    for _ in range(60):
        jacobian = torch.autograd.functional.jacobian(lambda y: parts(f(whole(y), X)), y)
        y = y + torch.linalg.solve(unit - jacobian, parts(f(whole(y), X)) - y)
    z, x = whole(y).clone().requires_grad_(), X.clone().requires_grad_()
    v = torch.autograd.grad(loss(z), z)[0]
    u = torch.linalg.solve((unit - jacobian).T, parts(v))
    return z.detach(), torch.autograd.grad(f(z.detach(), x), x, whole(u))[0]


def check(name, solver, gradient, tolerance=1e-8):
    z, expected = dense(name)
    x = X.clone().requires_grad_()
    solution = ic.fixed_point(
        MAPS[name], torch.zeros_like(X), x, solver=solver, gradient=gradient, on_failure="ignore"
    )
    assert solution.converged.all()
    assert solution.z.dtype == C
    torch.testing.assert_close(solution.z.detach(), z, rtol=0, atol=tolerance)
    found = torch.autograd.grad(loss(solution.z), x)[0]
    torch.testing.assert_close(found, expected, rtol=0, atol=10 * tolerance)


@pytest.mark.parametrize("gradient", [ic.Implicit(ic.GMRES(tol=1e-11)), ic.Unrolled()])
@pytest.mark.parametrize("solver", SOLVERS)
@pytest.mark.parametrize("name", MAPS)
def test_every_solver_forward(name, solver, gradient):
    check(name, SOLVERS[solver], gradient)


@pytest.mark.parametrize("solver", SOLVERS)
@pytest.mark.parametrize("name", MAPS)
def test_every_solver_backward(name, solver):
    check(name, SOLVERS["anderson"], ic.Implicit(SOLVERS[solver]))


@pytest.mark.parametrize(
    "gradient", [ic.Phantom(steps=100), ic.Neumann(steps=200), ic.Shine(ic.GMRES(tol=1e-11))]
)
@pytest.mark.parametrize("name", MAPS)
def test_every_strategy(name, gradient):
    check(name, SOLVERS["broyden"], gradient)


@pytest.mark.parametrize("name", MAPS)
def test_steps_taken_back(name):
    check(name, ic.Reversible(tol=1e-11, max_steps=500), ic.ReversibleGradient())


@pytest.mark.parametrize("solver", ["newton", "pseudo transient", "homotopy", "broyden"])
def test_complex_roots(solver):
    x = torch.tensor([[-1 + 0.5j], [2 - 3j]], dtype=C)
    start = torch.ones_like(x) + 1j * x.imag.sign()
    solution = ic.find_root(lambda z, x: z**2 - x, start, x, solver=SOLVERS[solver])
    assert (solution.z**2 - x).abs().max() < 1e-8


@pytest.mark.parametrize("size", [1e-25, 1.0, 1e25])
def test_iterates_and_trace_are_those_of_the_complex_state(size):
    gradient = ic.Unrolled(iterates=(1, 2))
    f = lambda z, x: 0.5j * z + size * x  # noqa: E731
    x = X.to(torch.complex64)
    solution = ic.fixed_point(f, torch.zeros_like(x), x, solver=ic.Picard(), gradient=gradient)
    torch.testing.assert_close(solution.iterates[0], size * x)
    torch.testing.assert_close(solution.iterates[1], (1 + 0.5j) * size * x)
    torch.testing.assert_close(solution.z, size * x / (1 - 0.5j), rtol=1e-3, atol=0)
