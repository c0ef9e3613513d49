"""The order conditions of a Runge-Kutta method, one for each rooted tree."""

from __future__ import annotations

import functools
from collections.abc import Iterator

import torch
from torch import Tensor

Tree = tuple["Tree", ...]  # a rooted tree is the sorted tuple of its branches


@functools.cache
def trees(order: int) -> set[Tree]:
    """The rooted trees with ``order`` nodes."""
    return {tuple(sorted(branches)) for branches in _forests(order - 1, order - 1)}


def _forests(nodes: int, largest: int) -> Iterator[Tree]:
    if nodes == 0:
        yield ()
    for size in range(1, min(nodes, largest) + 1):
        for tree in trees(size):
            for rest in _forests(nodes - size, size):
                yield (tree, *rest)


def size(tree: Tree) -> int:
    return 1 + sum(map(size, tree))


def density(tree: Tree) -> int:
    result = size(tree)
    for branch in tree:
        result *= density(branch)
    return result


def elementary_weights(tree: Tree, a: Tensor) -> Tensor:
    """Hairer, Norsett, Wanner, Solving Ordinary Differential Equations I (1993), theorem II.2.1,
    without the b."""
    result = torch.ones(len(a), dtype=a.dtype)
    for branch in tree:
        result = result * (a @ elementary_weights(branch, a))
    return result


def defects(a: Tensor, b: Tensor, order: int) -> list[float]:
    return [float(b @ elementary_weights(tree, a)) - 1 / density(tree) for tree in trees(order)]
