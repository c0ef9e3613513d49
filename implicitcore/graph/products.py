"""Products of matrices in a compiled graph: right in a sum, and cheap where they are small."""

from __future__ import annotations

from math import prod
from typing import Any

import torch
from torch import Tensor, fx
from torch._inductor.custom_graph_pass import CustomGraphPass, get_hash_for_files

_FLOAT = (torch.float32, torch.float64)
_aten = torch.ops.aten

SMALLEST = 1024
"""Multiplications below which a product is a sum in the kernel around it."""


class ScaledSums(CustomGraphPass):
    """See :func:`scaled_sums`; before the compiler looks for products that are added."""

    def __call__(self, graph: fx.Graph) -> None:
        """Change the graph in place."""
        scaled_sums(graph)

    def uuid(self) -> Any:
        """What a cache of compiled graphs knows this by."""
        return get_hash_for_files((__file__,))


def scaled_sums(graph: fx.Graph) -> None:
    """Write the sums u + alpha v of matrices in a graph with a product of its own, in place.

    Where v is a product of matrices, or u is, torch 2.13 makes the sum one ``addmm``, and forgets
    alpha there.
    """
    for node in graph.find_nodes(op="call_function", target=_aten.add.Tensor):
        alpha, value = node.kwargs.get("alpha", 1), node.meta.get("val")
        if alpha == 1 or not isinstance(value, Tensor) or value.ndim != 2:
            continue
        first, second = node.args
        if not isinstance(second, fx.Node) or _value(second).dtype is not value.dtype:
            continue  # not of two matrices
        with graph.inserting_before(node):
            scaled = _call(graph, _aten.mul.Tensor, second, alpha)
            _replace(graph, node, _call(graph, _aten.add.Tensor, first, scaled))


def plain_products(graph: fx.Graph) -> None:
    """Change the products in a graph for a CPU, in place, before it is lowered.

    A bias is added by the kernel that takes the product on: ``addmm`` copies it into its result
    before. A product of few numbers, whose sizes are known, is in the kernels itself.
    """
    for node in graph.find_nodes(op="call_function", target=_aten.addmm.default):
        if node.kwargs or _value(node).dtype not in _FLOAT:
            continue
        bias, left, right = node.args
        with graph.inserting_before(node):
            product = _call(graph, _aten.mm.default, left, right)
            _replace(graph, node, _call(graph, _aten.add.Tensor, product, bias))
    for node in graph.find_nodes(op="call_function", target=_aten.mm.default):
        if not _is_small(node):
            continue
        left, right = node.args
        with graph.inserting_before(node):
            left = _call(graph, _aten.unsqueeze.default, left, 2)
            right = _call(graph, _aten.unsqueeze.default, right, 0)
            pairs = _call(graph, _aten.mul.Tensor, left, right)
            _replace(graph, node, _call(graph, _aten.sum.dim_IntList, pairs, [1]))


def _is_small(node: fx.Node) -> bool:
    left, right = map(_value, node.args)
    sizes = *left.shape, right.shape[1]
    known = all(isinstance(size, int) for size in sizes)
    return known and left.dtype in _FLOAT and 0 < prod(sizes) <= SMALLEST


def _value(node: Any) -> Tensor:
    return node.meta["val"]


def _call(graph: fx.Graph, target: Any, *arguments: Any) -> fx.Node:
    node = graph.call_function(target, arguments)
    given = [_value(each) if isinstance(each, fx.Node) else each for each in arguments]
    node.meta["val"] = target(*given)
    return node


def _replace(graph: fx.Graph, node: fx.Node, by: fx.Node) -> None:
    node.replace_all_uses_with(by)
    graph.erase_node(node)
