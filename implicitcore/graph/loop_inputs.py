"""What is changed in a graph that is compiled to C++: what a loop reads, and its products."""

from __future__ import annotations

import operator
from typing import Any

import torch
from torch import Tensor, fx
from torch._higher_order_ops.while_loop import while_loop_op
from torch._inductor.custom_graph_pass import CustomGraphPass, get_hash_for_files

from implicitcore.graph import products

TORCH = ("aten", "prims", "prim", "inductor")
"""The namespaces of torch's own operations."""


class ForCpp(CustomGraphPass):
    """See :func:`own_inputs` and :func:`~implicitcore.graph.products.plain_products`."""

    def __call__(self, graph: fx.Graph) -> None:
        """Change the graph, the last before it is lowered, in place; those of loops come first."""
        products.plain_products(graph)
        own_inputs(graph)

    def uuid(self) -> Any:
        """What a cache of compiled graphs knows this by."""
        return get_hash_for_files((__file__, products.__file__))


def own_inputs(graph: fx.Graph) -> None:
    """Copy, before a loop, what its iterations read and the graph has computed.

    In the C++ that torch 2.13 writes, for a call or as a package of AOTInductor, a tensor that a
    loop reads and that is a view shaped like its base is freed at each use of its name: in its
    first iteration, and in each one after. A copy is no view. It is fused with what it copies, and
    made once a solve. What an operation of a backend gives is no view, and is not copied: it may
    stand for what is not in the tensor.
    """
    for loop in graph.find_nodes(op="call_function", target=while_loop_op):
        going, step, carried, read = loop.args
        with graph.inserting_before(loop):
            loop.args = going, step, carried, tuple(_own(graph, node) for node in read)


def _own(graph: fx.Graph, node: Any) -> Any:
    if not isinstance(node, fx.Node) or node.op == "placeholder" or _is_of_backend(node):
        return node
    value = node.meta.get("val")
    if not isinstance(value, Tensor):  # a size of the batch
        return node
    copy = graph.call_function(torch.ops.aten.clone.default, (node,))
    copy.meta["val"] = value
    return copy


def _is_of_backend(node: fx.Node) -> bool:
    """Whether an operation that is none of torch's gives it."""
    made = node.all_input_nodes[0] if node.target is operator.getitem else node
    target = made.target
    return isinstance(target, torch._ops.OpOverload) and target.namespace not in TORCH
