"""Evaluations and products of f, counted at f, and the floor that they make.

The floor of a step is what its evaluations of f and its vector-Jacobian products cost by
themselves.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from torch import Tensor, nn

PIECES = F, GRAPH, VJP, LEAVES, ALL = (
    "f",
    "f with graph",
    "vjp",
    "vjp to the leaves",
    "vjp to z and the leaves",
)

Spent = dict[str, float]
"""How often each piece was spent, in whole batches."""


class Counted(nn.Module):
    """f, with its evaluations and the vector-Jacobian products through it counted, in whole
    batches.

    It needs nothing from the library that calls it: a hook on each value hears of each product. A
    call on a part of the batch counts as that part.

    Attributes:
        plain: evaluations without a graph.
        graphs: evaluations with one.
        products: vector-Jacobian products.
        differentiated: evaluations through which there was a product.
    """

    def __init__(self, f: nn.Module, batch: int) -> None:
        super().__init__()
        self.f, self.batch = f, batch
        self.plain = self.graphs = self.products = self.differentiated = 0.0

    def forward(self, *arguments: Any) -> Tensor:
        fz = self.f(*arguments)
        share = len(fz) / self.batch
        if fz.requires_grad:
            self.graphs += share
            fz.register_hook(self._listener(share))
        else:
            self.plain += share
        return fz

    def _listener(self, share: float) -> Callable[[Tensor], None]:
        first = [share]

        def heard(_: Tensor) -> None:
            self.products += share
            self.differentiated += first.pop() if first else 0.0

        return heard


def equilibrium(counted: Counted) -> Spent:
    """Of a solve with an implicit gradient: the last product is the one that reaches the leaves;
    the others solve for the adjoint."""
    return {F: counted.plain, GRAPH: counted.graphs, VJP: counted.products - 1, LEAVES: 1}


def trajectory(counted: Counted) -> Spent:
    """Of an integration: every evaluation that was differentiated is so once, to z and the leaves.

    Who takes a product for the state and another for the leaves of the same evaluation is granted
    no more than who takes one for both.
    """
    return {F: counted.plain, GRAPH: counted.graphs, ALL: counted.differentiated}


def evaluations(spent: Spent) -> float:
    """With and without a graph."""
    return spent[F] + spent[GRAPH]


def products(spent: Spent) -> float:
    """Of every kind."""
    return sum(spent.values()) - evaluations(spent)


def floor(spent: Spent, pieces: Mapping[str, float]) -> float:
    """Seconds, where ``pieces`` are those of one of each."""
    return sum(count * pieces[name] for name, count in spent.items())
