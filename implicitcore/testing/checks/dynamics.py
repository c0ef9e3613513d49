"""What all dynamics promise."""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from implicitcore.dynamics.base import Dynamics
from implicitcore.tensors.shared import unwrapped
from implicitcore.testing.check import contract
from implicitcore.testing.expect import NotApplicable, expect, expect_close, expect_equal
from implicitcore.testing.factory import Maker
from implicitcore.testing.tensors import (
    copied,
    flat,
    parameters,
    require_grad,
    rows,
    slope,
    with_nan,
)

# Results of the same formula, in another order of operations.
ROUNDING = 1e-12


def _times(z: Any, value: float | None = 0.0) -> Tensor:
    """[batch, 1, ..., 1]; another time for each sample where there is no value."""
    first = pytree.tree_leaves(z)[0]
    t = torch.linspace(0.1, 0.9, len(first)) if value is None else torch.full((len(first),), value)
    return t.to(first.dtype).reshape(-1, *(1,) * (first.ndim - 1))


@contract("dynamics")
def is_a_module(maker: Maker) -> None:
    """Is a Dynamics, so a module that owns the parameters of what it is made of."""
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
    """The velocity is a state.

    Of the same structure, shapes and dtype, also in float32 and for an empty batch.
    """
    for dtype in (torch.float32, torch.float64):
        for batch in (0, 3):
            z, x = maker.inputs(batch, dtype)
            velocity = maker.make(dtype).velocity(_times(z), z, x)
            found, wanted = (
                [(list(leaf.shape), leaf.dtype) for leaf in pytree.tree_leaves(tree)]
                for tree in (velocity, z)
            )
            expect(found == wanted, f"asked for the velocity of {batch} samples", found, wanted)


@contract("dynamics")
def update_is_the_state_plus_the_velocity(maker: Maker) -> None:
    """``update(z, x)`` is z + velocity(0, z, x).

    Root solvers and ODE solvers see the same equilibria.
    """
    dynamics, (z, x) = maker.make(), maker.inputs()
    expected = flat(z) + flat(dynamics.velocity(_times(z), z, x))
    expect_close(
        flat(dynamics.update(z, x)),
        expected,
        "compared update(z, x) with z + velocity(0, z, x)",
        ROUNDING,
    )


@contract("dynamics")
def per_sample(maker: Maker) -> None:
    """The velocity of a sample is the one that it has alone, at a time of its own."""
    dynamics, (z, x) = maker.make(), maker.inputs()
    t = _times(z, None)
    together = flat(dynamics.velocity(t, z, unwrapped(x)))
    for i in range(len(t)):
        alone = flat(dynamics.velocity(t[i : i + 1], rows(z, [i]), unwrapped(rows(x, [i]))))
        expect_close(
            together[i : i + 1],
            alone,
            f"compared sample {i} of {len(t)} with the same sample alone",
            ROUNDING,
        )


@contract("dynamics")
def keeps_a_nan_in_its_sample(maker: Maker) -> None:
    """A NaN in the state of one sample leaves the velocities of the others as they are."""
    dynamics, (z, x) = maker.make(), maker.inputs()
    clean, found = (flat(dynamics.velocity(_times(z), state, x)) for state in (z, with_nan(z, 1)))
    others = [i for i in range(len(clean)) if i != 1]
    expect_close(
        found[others],
        clean[others],
        "put a NaN into the state of sample 1, compared the others",
        ROUNDING,
    )


@contract("dynamics")
def differentiates(maker: Maker) -> None:
    """Autograd passes through the velocity: to z, to x and to every parameter, and right."""
    dynamics, inputs = maker.make(), maker.inputs()
    (z, x), leaves = require_grad(inputs)
    v = torch.randn_like(flat(z))
    f = lambda: (flat(dynamics.velocity(_times(z, 0.3), z, x)) * v).sum()  # noqa: E731
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
def no_input_mutation(maker: Maker) -> None:
    """Neither t nor z nor x is changed."""
    dynamics, (z, x) = maker.make(), maker.inputs()
    t = _times(z, None)
    before = copied((t, z, x))
    dynamics.velocity(t, z, x)
    dynamics.update(z, x)
    for found, expected in zip(
        pytree.tree_leaves((t, z, x)), pytree.tree_leaves(before), strict=True
    ):
        expect_equal(found, expected, "looked at t, z and x after the call")


@contract("dynamics")
def remembers_nothing(maker: Maker) -> None:
    """The same call gives the same velocity, whatever was asked in between."""
    dynamics, (z, x) = maker.make(), maker.inputs()
    first = flat(dynamics.velocity(_times(z), *copied((z, x))))
    dynamics.velocity(_times(z, 0.5), pytree.tree_map(lambda leaf: 0.5 * leaf, z), x)
    expect_equal(
        flat(dynamics.velocity(_times(z), *copied((z, x)))),
        first,
        "asked for the velocity again, after another one",
    )


@contract("dynamics")
def scales_each_sample(maker: Maker) -> None:
    """What ``tol`` is relative to is a finite number for each sample, and not negative."""
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


@contract("dynamics")
def copies_and_reloads(maker: Maker) -> None:
    """A deep copy, and another one with the same state_dict, have the same velocities."""
    dynamics, (z, x) = maker.make(), maker.inputs()
    velocity = flat(dynamics.velocity(_times(z), *copied((z, x))))
    found = copy.deepcopy(dynamics).velocity(_times(z), *copied((z, x)))
    expect_close(flat(found), velocity, "copied it", ROUNDING)
    if not dynamics.state_dict():
        raise NotApplicable("it has no state to reload")
    twin = maker.make(seed=1)
    twin.load_state_dict(dynamics.state_dict())
    expect_close(
        flat(twin.velocity(_times(z), z, x)),
        velocity,
        "loaded its state_dict into another one",
        ROUNDING,
    )
