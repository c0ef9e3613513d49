"""A compiled layer in the graph of a model, under autocast: refused, or in the dtype it has."""

from __future__ import annotations

import pytest
import torch
from support.python_loop import while_loop
from torch import nn

import implicitcore as ic
from implicitcore.graph import loop

pytestmark = pytest.mark.usefixtures("plainly")

NET = nn.Linear(4, 4)
ROOT = ic.FixedPoint(lambda z, x: 0.5 * (NET(z) + x).tanh())
FIELD = ic.VectorField(lambda t, z, x: NET(z).tanh())
LAYERS = {
    "root": ic.ImplicitLayer(
        ROOT, solver=ic.Picard(tol=1e-5), gradient=ic.Implicit(ic.Picard(tol=1e-5))
    ),
    "trajectory": ic.ImplicitLayer(
        FIELD, solver=ic.Bosh3(), start=ic.Identity(), gradient=ic.Checkpointed()
    ),
}


@pytest.mark.parametrize("backend", ["eager", "aot_eager"])
@pytest.mark.parametrize("name", LAYERS)
def test_a_backward_pass_keeps_the_dtype(name, backend, monkeypatch):
    monkeypatch.setattr(loop, "while_loop", while_loop)
    torch._dynamo.reset()
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 4), ic.compile(LAYERS[name]))
    whole = torch.compile(model, fullgraph=True, backend=backend)
    x, weights = torch.randn(3, 4), [*model[0].parameters(), *NET.parameters()]
    loss = whole(x).square().sum()
    expected = torch.autograd.grad(loss, weights, retain_graph=True)
    with torch.autocast("cpu", torch.bfloat16):
        found = torch.autograd.grad(loss, weights)
    exact = torch.autograd.grad(LAYERS[name](model[0](x)).square().sum(), weights)
    # Autocast may round what is around the layer, and not the layer's own products.
    assert all(map(torch.equal, found[2:], expected[2:]))
    torch.testing.assert_close(expected, exact, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(found[:2], exact[:2], rtol=2e-2, atol=2e-2)
    torch._dynamo.reset()


@pytest.mark.parametrize("name", LAYERS)
def test_a_call_is_refused_as_that_of_the_layer_alone(name):
    compiled = ic.compile(LAYERS[name])
    with torch.autocast("cpu", torch.bfloat16):
        with pytest.raises(ic.InputError, match="this is autocast"):
            compiled(torch.ones(2, 4))
        with pytest.raises(ic.InputError, match="this is autocast"):
            compiled._as_operation(torch.ones(2, 4), None, None, {}, reports=True)
