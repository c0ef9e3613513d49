"""Products of the solvers keep the precision of their dtype where those of f may be rounded to
TF32."""

from __future__ import annotations

import pytest
import torch
from support.tf32 import allowed, emulated

import implicitcore as ic

BATCH, N = 3, 16
MATMUL = torch.backends.cuda.matmul
EQUILIBRIA = {
    "anderson": ic.Anderson(tol=1e-5),
    "narrow": ic.Anderson(tol=1e-5, history_dtype="bfloat16"),
    "broyden": ic.Broyden(tol=1e-5),
    "bad broyden": ic.Broyden(tol=1e-5, variant="bad"),
    "newton": ic.Newton(tol=1e-5),
    "krylov": ic.Newton(tol=1e-5, dense_below=0),
    "pseudo_transient": ic.PseudoTransient(tol=1e-5),
    "homotopy": ic.Homotopy(),
    "adams": ic.SteadyState(tol=1e-5),
}
TRAJECTORIES = {
    "adams": ic.Adams(),
    "tsit5": ic.Tsit5(),
    "dop853": ic.DOP853(),
    "esdirk": ic.ESDIRK(),
    "radau": ic.RadauIIA5(),
}
NONE_AT_ALL = {"pseudo_transient", "esdirk"}  # their systems are solved, and not multiplied


def f(z, x):
    """A map without a product of matrices, whose entries depend on each other."""
    return torch.tanh(0.6 * z.roll(1, 1) - 0.3 * z.roll(2, 1) ** 2 + x)


def inputs():
    return torch.zeros(BATCH, N), torch.linspace(-1, 1, BATCH * N).view(BATCH, N)


def equilibrium(solver):
    z0, x = inputs()
    x.requires_grad_()
    solution = ic.fixed_point(f, z0, x, solver=solver, gradient=ic.Implicit(ic.GMRES(tol=1e-5)))
    (slope,) = torch.autograd.grad(solution.z.square().sum(), x)
    return solution.z.detach(), slope


def trajectory(solver, gradient):
    z0, x = inputs()
    x.requires_grad_()
    times = torch.linspace(0, 1, 5)
    found = ic.integrate(
        lambda t, z, x: f(z, x) - z, z0, x, times=times, solver=solver, gradient=gradient
    )
    (slope,) = torch.autograd.grad(found.z.square().sum(), x)
    return found.z.detach(), slope


def without_a_rounded_product(name, solve):
    with emulated():
        expected = solve()
    with emulated() as seen, allowed():
        found = solve()
        assert MATMUL.fp32_precision == "tf32"
    assert not seen.rounded
    assert seen.exact or name in NONE_AT_ALL
    assert all(map(torch.equal, found, expected))


@pytest.mark.parametrize("name", EQUILIBRIA)
def test_an_equilibrium_and_its_gradient(name):
    without_a_rounded_product(name, lambda: equilibrium(EQUILIBRIA[name]))


@pytest.mark.parametrize("name", TRAJECTORIES)
def test_a_trajectory_and_its_gradient(name):
    gradient = ic.Adjoint(ic.Tsit5()) if name == "adams" else ic.Adjoint()
    without_a_rounded_product(name, lambda: trajectory(TRAJECTORIES[name], gradient))


def test_products_of_f_are_as_they_were_asked_for():
    weight = 0.1 * torch.randn(N, N)
    z0, x = inputs()
    with emulated() as seen, allowed(), torch.no_grad():
        solution = ic.fixed_point(
            lambda z, x: torch.tanh(z @ weight + x), z0, x, solver=ic.Anderson(tol=1e-3)
        )
    assert seen.rounded == ["aten.mm"] * solution.evaluations
    assert seen.exact


def test_the_setting_of_all_operations_is_followed_afterwards():
    with emulated() as seen:
        with allowed(torch.backends):
            equilibrium(ic.Anderson(tol=1e-3))
            assert MATMUL.fp32_precision == "tf32"
        assert MATMUL.fp32_precision == "none"
    assert not seen.rounded


def test_an_exception_leaves_the_setting():
    rows = torch.zeros(BATCH, 2, N)
    with emulated(), allowed():
        with pytest.raises(RuntimeError):
            ic.TorchBackend().inner_products(rows, torch.zeros(BATCH, 1, N + 1))
        assert MATMUL.fp32_precision == "tf32"


def test_what_was_asked_for_in_the_older_way_can_be_read_so():
    torch.set_float32_matmul_precision("high")
    try:
        with emulated() as seen:
            equilibrium(ic.Broyden(tol=1e-4))
        assert torch.get_float32_matmul_precision() == "high"
        assert MATMUL.allow_tf32
    finally:
        torch.set_float32_matmul_precision("highest")
    assert not seen.rounded
    assert torch.get_float32_matmul_precision() == "highest"
