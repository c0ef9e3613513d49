"""torch.func and forward mode over a layer: the right number, or an error that says what to do."""

from __future__ import annotations

import pytest
import torch
from torch.autograd import forward_ad
from torch.func import functional_call, grad, jacrev, jvp, vjp, vmap

import implicitcore as ic
from implicitcore.testing.dense import relative_error
from implicitcore.testing.expect import known
from implicitcore.testing.problems import Cell, inputs

SOLVERS = [
    ic.Picard(tol=1e-11, max_steps=100),
    ic.Anderson(tol=1e-11),
    ic.Broyden(tol=1e-11),
    ic.SteadyState(tol=1e-8, max_steps=300),
]
TRANSFORMS = {
    "grad": lambda f, x: grad(lambda x: f(x).sum())(x),
    "vjp": lambda f, x: vjp(f, x)[1](torch.ones_like(x))[0],
    "jacrev": lambda f, x: jacrev(f)(x).sum((0, 1)),
}


# torch's own: the rules of forward mode are compiled with torch.jit.
pytestmark = pytest.mark.filterwarnings("ignore:.*torch.jit:DeprecationWarning")


def name(part):
    return type(part).__name__


def layer(solver=SOLVERS[1], gradient=None):
    return ic.ImplicitLayer(ic.FixedPoint(Cell(contraction=0.3)), solver=solver, gradient=gradient)


@pytest.mark.parametrize("transform", TRANSFORMS)
@pytest.mark.parametrize("gradient", [ic.Unrolled(), ic.Phantom(steps=3)], ids=name)
@pytest.mark.parametrize("solver", SOLVERS, ids=name)
def test_strategies_of_plain_operations_pass_through(solver, gradient, transform):
    f, x = layer(solver, gradient), inputs().requires_grad_()
    expected = torch.autograd.grad(f(x).sum(), x)
    assert relative_error([TRANSFORMS[transform](f, x.detach())], expected) < 1e-12


@pytest.mark.parametrize("solver", SOLVERS, ids=name)
def test_unrolled_passes_forward_mode(solver):
    f, x, v = layer(solver, ic.Unrolled()), inputs(), inputs(seed=5)
    exact = torch.autograd.functional.jvp(layer(SOLVERS[0], ic.Unrolled()), x, v)[1]
    assert isinstance(exact, torch.Tensor)
    expected = [exact]
    assert relative_error([jvp(f, (x,), (v,))[1]], expected) < 1e-6
    with forward_ad.dual_level():
        tangent = forward_ad.unpack_dual(f(forward_ad.make_dual(x, v))).tangent
    assert relative_error([known(tangent)], expected) < 1e-6


@pytest.mark.parametrize("transform", TRANSFORMS)
@pytest.mark.parametrize("gradient", [ic.Implicit(), ic.Neumann()], ids=name)
def test_strategies_of_autograd_refuse(gradient, transform):
    with pytest.raises(
        ic.GradientError,
        match=r"for torch\.autograd, not for torch\.func.*use torch\.autograd\.grad",
    ):
        TRANSFORMS[transform](layer(gradient=gradient), inputs())


@pytest.mark.parametrize("gradient", [ic.Implicit(), ic.Neumann(), ic.Phantom()], ids=name)
def test_all_others_refuse_forward_mode(gradient):
    with pytest.raises(ic.GradientError, match="not for forward-mode"):
        jvp(layer(gradient=gradient), (inputs(),), (inputs(),))
    with forward_ad.dual_level(), pytest.raises(ic.GradientError, match="not for forward-mode"):
        layer(gradient=gradient)(forward_ad.make_dual(inputs(), inputs()))


@pytest.mark.parametrize("gradient", [ic.Adjoint(), ic.Checkpointed()], ids=name)
def test_a_trajectory_solved_without_a_graph_refuses(gradient):
    with pytest.raises(ic.GradientError, match=type(gradient).__name__):
        grad(lambda x: layer(ic.Tsit5(), gradient)(x).sum())(inputs())


@pytest.mark.parametrize("solver", [ic.Newton(), ic.GMRES(), ic.Homotopy()], ids=name)
def test_solvers_that_need_products_refuse(solver):
    with pytest.raises(ic.GradientError, match="use Picard, Anderson or Broyden"):
        grad(lambda x: layer(solver, ic.Unrolled())(x).sum())(inputs())


@pytest.mark.parametrize("gradient", [ic.Implicit(), ic.Unrolled(), ic.Phantom()], ids=name)
def test_vmap_says_what_to_do(gradient):
    f, x = layer(gradient=gradient), inputs()
    with pytest.raises(ic.InputError, match="call it on the whole batch"):
        vmap(lambda x: f(x[None])[0])(x)
    with pytest.raises((ic.InputError, ic.GradientError)):
        vmap(grad(lambda x: f(x[None]).sum()))(x)
    with pytest.raises(ic.InputError):
        ic.fixed_point(lambda z, x: vmap(lambda x: f(x[None])[0])(x), x, x)


@pytest.mark.parametrize("gradient", [ic.Implicit(), ic.Unrolled()], ids=name)
def test_functional_call_uses_the_given_parameters(gradient):
    f, x = layer(gradient=gradient), inputs()
    other = {key: (0.5 * value).detach().requires_grad_() for key, value in f.named_parameters()}
    z = functional_call(f, other, (x,))
    found = torch.autograd.grad(z.sum(), list(other.values()))
    with torch.no_grad():
        for parameter in f.parameters():
            parameter.mul_(0.5)
    expected = f(x)
    assert torch.equal(z, expected)
    assert relative_error(found, torch.autograd.grad(expected.sum(), list(f.parameters()))) < 1e-12


def test_grad_over_functional_call():
    f, x = layer(gradient=ic.Unrolled()), inputs()
    parameters = dict(f.named_parameters())
    found = grad(lambda p: functional_call(f, p, (x,)).square().sum())(
        {key: value.detach() for key, value in parameters.items()}
    )
    expected = torch.autograd.grad(f(x).square().sum(), list(parameters.values()))
    assert relative_error(list(found.values()), expected) < 1e-12


def test_the_jacobian_of_a_layer_by_autograd():
    f, x = layer(gradient=ic.Implicit(ic.GMRES(tol=1e-12))), inputs(batch=2)
    expected = jacrev(layer(gradient=ic.Unrolled()))(x)
    assert relative_error([torch.autograd.functional.jacobian(f, x)], [expected]) < 1e-8


@pytest.mark.slow
def test_a_compiled_layer_says_what_to_do():
    compiled, x = ic.compile(layer()), inputs()
    for transform in TRANSFORMS.values():
        with pytest.raises(ic.GradientError, match="compile made .* torch.autograd.grad"):
            transform(compiled, x)
    with pytest.raises(ic.InputError, match="call it on the whole batch"):
        vmap(compiled)(x[None])
    with forward_ad.dual_level(), pytest.raises(ic.GradientError, match="compiled.layer"):
        compiled(x)
    expected = compiled.layer(x)
    assert torch.allclose(compiled(x), expected, rtol=1e-6)  # nothing of it was kept
