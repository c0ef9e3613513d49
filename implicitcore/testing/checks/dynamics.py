"""What all dynamics promise."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from torch.utils import _pytree as pytree

from implicitcore.dynamics.base import Dynamics
from implicitcore.testing.calls import times_like
from implicitcore.testing.check import contract
from implicitcore.testing.expect import expect, expect_close
from implicitcore.testing.factory import Maker
from implicitcore.testing.tensors import (
    flat,
    parameters,
    require_grad,
    slope,
)

# Results of the same formula, in another order of operations.
ROUNDING = 1e-12


@contract("dynamics")
def is_a_module(maker: Maker) -> None:
    """Is a Dynamics: a module that owns the parameters of its parts."""
    dynamics = maker.make()
    expect(
        isinstance(dynamics, Dynamics),
        "made one",
        type(dynamics).__name__,
        "a subclass of implicitcore.Dynamics",
    )
    cells = [cell for cell in maker.cell() if isinstance(cell, nn.Module)]
    if cells:
        wanted = len(list(cells[0].parameters()))
        found = len(list(dynamics.parameters()))
        expect(
            found >= wanted,
            f"made one of a cell with {wanted} parameters",
            f"{found} parameters",
            f"at least {wanted}",
        )


@contract("dynamics")
def velocity_is_shaped_like_the_state(maker: Maker) -> None:
    """The velocity has the structure, shapes and dtype of z, in float32 and for no samples too."""
    for dtype in (torch.float32, torch.float64):
        for batch in (0, 3):
            z, x = maker.inputs(batch, dtype)
            velocity = maker.make(dtype).velocity(times_like(z, 0.0), z, x)
            found, wanted = _layout(velocity), _layout(z)
            expect(found == wanted, f"asked for the velocity of {batch} samples", found, wanted)


@contract("dynamics")
def update_is_the_state_plus_the_velocity(maker: Maker) -> None:
    """``update(z, x)`` is z + velocity(0, z, x): one equilibrium for both families of solvers."""
    dynamics, (z, x) = maker.make(), maker.inputs()
    expected = flat(z) + flat(dynamics.velocity(times_like(z, 0.0), z, x))
    expect_close(
        flat(dynamics.update(z, x)),
        expected,
        "compared update(z, x) with z + velocity(0, z, x)",
        ROUNDING,
    )


@contract("dynamics")
def gradient_matches_differences(maker: Maker) -> None:
    """Derivatives by the inputs and by the parameters agree with central differences.

    Of the velocity: by z, by x and by every parameter, none of which is left out.
    """
    dynamics, inputs = maker.make(), maker.inputs()
    (z, x), leaves = require_grad(inputs)
    v = torch.randn_like(flat(z))
    f = lambda: (flat(dynamics.velocity(times_like(z, 0.3), z, x)) * v).sum()  # noqa: E731
    wrt = [*leaves, *parameters(dynamics)]
    expect(
        f().requires_grad,
        "asked for the velocity",
        "no graph",
        "one that leads to z, x and the parameters",
    )
    found = torch.autograd.grad(f(), wrt, allow_unused=True)
    lost = [list(leaf.shape) for leaf, g in zip(wrt, found, strict=True) if g is None]
    expect(
        not lost,
        "differentiated the velocity by z, x and the parameters",
        f"no gradient for tensors of shapes {lost}",
        "one for each",
    )
    by_autograd, by_difference = slope(f, wrt)
    close = abs(by_autograd - by_difference) <= 1e-5 * abs(by_difference) + 1e-8
    expect(
        close,
        "compared its derivative in a direction with a difference",
        f"{by_autograd:.8g}",
        f"{by_difference:.8g}",
    )


@contract("dynamics")
def scales_each_sample(maker: Maker) -> None:
    """``scale``, which ``tol`` is relative to, is finite and not negative for each sample."""
    norms = torch.tensor([0.0, 1e-3, 2.0, 50.0], dtype=torch.float64)
    scale = maker.make().scale(norms, norms.flip(0))
    expect(
        list(scale.shape) == [4],
        "asked for the scale of 4 samples",
        f"shape {list(scale.shape)}",
        [4],
    )
    expect(
        bool((scale >= 0).all() and scale.isfinite().all()),
        "asked for the scale of 4 samples",
        scale.tolist(),
        "finite, at least 0",
    )


def _layout(tree: Any) -> list[tuple[list[int], torch.dtype]]:
    """The shapes and dtypes of the tensors of a state."""
    return [(list(leaf.shape), leaf.dtype) for leaf in pytree.tree_leaves(tree)]
