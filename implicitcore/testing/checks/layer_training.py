"""What every layer promises to whoever trains it."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from implicitcore.testing.check import contract
from implicitcore.testing.expect import NotApplicable, expect, expect_close
from implicitcore.testing.factory import Maker
from implicitcore.testing.tensors import (
    copied,
    flat,
    parameters,
    require_grad,
    slope,
)


@contract("layer")
def has_a_scalar_regularizer(maker: Maker) -> None:
    """``layer.regularizer(solution)`` is a finite scalar of z's dtype."""
    layer = maker.make()
    value = layer.regularizer(layer.solve(maker.inputs()))
    expect(
        isinstance(value, Tensor) and value.ndim == 0,
        "asked for the regularizer",
        value,
        "a scalar tensor",
    )
    expect(bool(value.isfinite()), "asked for the regularizer", value.item(), "a finite number")
    expect(
        value.dtype == torch.float64,
        "asked for the regularizer in float64",
        value.dtype,
        torch.float64,
    )


@contract("layer")
def every_parameter_gets_a_gradient(maker: Maker) -> None:
    """Each parameter gets a gradient, from the output or from the regularizer."""
    layer = maker.make()
    _backward(layer, maker.inputs())
    lost = [
        name
        for name, parameter in layer.named_parameters()
        if parameter.requires_grad and parameter.grad is None
    ]
    expect(
        not lost,
        "called backward on a loss with the regularizer",
        f"no gradient for {', '.join(lost)}",
        "one for each parameter",
    )


@contract("layer")
def trains_a_step(maker: Maker) -> None:
    """A small step against the gradient lowers the loss."""
    layer, x = maker.make(), maker.inputs()
    if not parameters(layer):
        raise NotApplicable("it has no parameters")
    before = _backward(layer, x)
    trained = [
        (parameter, parameter.grad) for parameter in parameters(layer) if parameter.grad is not None
    ]
    size = torch.stack([g.square().sum() for _, g in trained]).sum() if trained else torch.zeros(())
    expect(
        bool(size > 0) and bool(size.isfinite()),
        "summed the squares of the gradients",
        size.item(),
        "a positive number",
    )
    with torch.no_grad():
        for parameter, g in trained:
            parameter.sub_(g * (0.01 * before / size))
    after = _loss(layer, x).item()
    expect(
        after < before,
        "took a step that should lower the loss by 1 %",
        f"{before:.6g} before, {after:.6g} after",
        "a lower loss",
    )


@contract("layer")
def gradient_matches_differences(maker: Maker) -> None:
    """Derivatives by the inputs and by the parameters agree with central differences.

    At tight tolerances, of the output.
    """
    layer = maker.exact()
    x, leaves = require_grad(maker.inputs())
    v = torch.randn_like(flat(layer(x)).detach())
    f = lambda: (flat(layer(x)) * v).sum()  # noqa: E731
    for did, wrt in (("x", leaves), ("the parameters", parameters(layer))):
        if not wrt:
            continue  # x has no floating-point tensor, or there are no parameters
        found = torch.autograd.grad(f(), wrt, allow_unused=True)
        expect(
            any(g is not None for g in found),
            f"differentiated the output by {did}",
            "no gradient",
            "one",
        )
        by_autograd, by_difference = slope(f, wrt, 1e-4)
        close = abs(by_autograd - by_difference) <= 1e-3 * abs(by_difference)
        expect(
            close,
            f"compared the derivative by {did} with a difference",
            f"{by_autograd:.6g}",
            f"{by_difference:.6g}",
        )


@contract("layer")
def no_grad_mode(maker: Maker) -> None:
    """Under no_grad the result has no graph, and the same value."""
    layer, x = maker.make(), maker.inputs()
    layer.eval()
    with torch.no_grad():
        z = layer(copied(x))
    with_graph = any(leaf.requires_grad for leaf in pytree.tree_leaves(z))
    expect(
        not with_graph,
        "called the layer under no_grad",
        "an output that requires a gradient",
        "none",
    )
    expect_close(
        flat(z),
        flat(layer(x)).detach(),
        "compared the output under no_grad with that with a graph",
        1e-12,
    )


def _loss(layer: Any, x: Any) -> Tensor:
    solution = layer.solve(x)
    return flat(solution.z).square().mean() + layer.regularizer(solution)


def _backward(layer: Any, x: Any) -> float:
    """The loss, with its gradient in every ``.grad``."""
    loss = _loss(layer, x)
    expect(
        loss.requires_grad,
        "asked for a loss of the output",
        "no graph",
        "one that leads to the parameters",
    )
    loss.backward()
    return loss.item()
