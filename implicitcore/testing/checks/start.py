"""What every start promises for the z0 that it makes."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from implicitcore.layers.initial import InitialGuess
from implicitcore.options.options import options_of
from implicitcore.testing.check import contract
from implicitcore.testing.expect import expect
from implicitcore.testing.factory import Maker


@contract("start")
def makes_a_state(maker: Maker) -> None:
    """z0 has the batch of x first, x's dtype and finite values, in float32 and float64."""
    for dtype in (torch.float32, torch.float64):
        start = maker.make(dtype)
        is_one = isinstance(start, InitialGuess)
        expect(is_one, "made one", type(start).__name__, "an InitialGuess")
        leaves = pytree.tree_leaves(start(maker.inputs(3, dtype)))
        did = f"called the start with 3 samples in {dtype}"
        expect(bool(leaves), did, "no tensor", "a state")
        for leaf in leaves:
            expect(isinstance(leaf, Tensor), did, type(leaf).__name__, "a tensor")
            expect(leaf.shape[:1] == (3,), did, f"shape {list(leaf.shape)}", "[3, ...]")
            expect(leaf.dtype == dtype, did, leaf.dtype, dtype)
            expect(bool(leaf.isfinite().all()), did, "values that are not finite", "finite ones")


@contract("start")
def costs_what_it_says(maker: Maker) -> None:
    """``evaluations`` is how often f(z, x) is evaluated for z0; a prediction from x is none."""
    start = maker.make()
    given = [each.name for each in options_of(type(start)).values() if each.from_python]
    counters = {
        name: _Counted(getattr(start, name)) for name in given if callable(getattr(start, name))
    }
    for name, counter in counters.items():
        setattr(start, name, counter)
    start(maker.inputs())
    found = sum(counter.evaluations for counter in counters.values())
    did = f"called the start, whose evaluations are {start.evaluations!r}"
    expect(start.evaluations == found, did, f"{found} evaluations of f", start.evaluations)


class _Counted(nn.Module):
    """A function that counts its calls with a state and an input."""

    def __init__(self, function: Any) -> None:
        super().__init__()
        self.function, self.evaluations = function, 0

    def forward(self, *arguments: Any) -> Any:
        self.evaluations += len(arguments) > 1
        return self.function(*arguments)
