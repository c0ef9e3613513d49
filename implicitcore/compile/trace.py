"""f and its vector-Jacobian product as graphs of tensor operations, for any size of the batch."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.fx import Graph, GraphModule, Node
from torch.fx.experimental.proxy_tensor import make_fx
from torch.fx.experimental.symbolic_shapes import (
    DimDynamic,
    ShapeEnv,
    StatelessSymbolicContext,
)

from implicitcore.errors import GradientError, InputError, describe_error


@dataclass(frozen=True, eq=False)
class Split:
    """A function of which a loop changes some arguments: what they do not reach is computed once.

    Attributes:
        before: the other arguments -> what the rest needs of them.
        inside: the arguments that change, and what ``before`` gave -> the results.
    """

    before: GraphModule
    inside: GraphModule


def traced(
    function: Callable[..., Sequence[Tensor]], arguments: Sequence[Tensor], batched: Sequence[bool]
) -> GraphModule:
    """The function as a graph.

    Arguments:
        function: of tensors, to tensors.
        arguments: examples.
        batched: which of them have the batch first.

    Raises:
        InputError: the function draws random numbers, writes into an argument, or depends on values.
    """
    mode = FakeTensorMode(shape_env=ShapeEnv(), allow_non_fake_inputs=True)

    def fake(tensor: Tensor, has_batch: bool) -> Tensor:
        sizes = [DimDynamic.STATIC] * tensor.ndim
        if has_batch:
            sizes[0] = DimDynamic.DUCK
        context = StatelessSymbolicContext(dynamic_sizes=sizes)
        # A tensor that is given twice is two arguments.
        return mode.from_tensor(tensor.detach().clone(), symbolic_context=context)

    examples = [fake(*pair) for pair in zip(arguments, batched, strict=True)]
    try:
        with mode:
            trace = make_fx(torch.func.functionalize(function), _allow_non_fake_inputs=True)
            graph = trace(*examples)
    except Exception as error:
        raise InputError(f"f cannot be compiled: {describe_error(error)}") from error
    graph.graph.eliminate_dead_code()
    _check(graph)
    return graph


def _check(module: GraphModule) -> None:
    for node in module.graph.nodes:
        if node.op == "get_attr":
            constant = getattr(module, node.target)
            if isinstance(constant, Tensor) and constant.requires_grad:
                raise GradientError(
                    f"f reads a tensor of shape {[*constant.shape]} that requires a gradient and "
                    "is neither in x nor a parameter of a module: make it one of them"
                )
        if not isinstance(node.target, torch._ops.OpOverload):
            continue
        if torch.Tag.nondeterministic_seeded in node.target.tags:
            raise InputError(
                f"f draws random numbers ({node.target}), in each evaluation of a graph anew: "
                "compile it in eval(), or use the layer as it is"
            )
        if node.target._schema.is_mutable:
            raise InputError(
                f"f writes into a tensor that it is given or keeps ({node.target}), as statistics "
                "in training: compile it in eval(), or use the layer as it is"
            )


def split(module: GraphModule, changing: int, outputs: Sequence[int]) -> Split:
    """The first ``changing`` arguments change in a loop; only some ``outputs`` are wanted."""
    nodes = list(module.graph.nodes)
    places = [node for node in nodes if node.op == "placeholder"]
    results = [list(nodes[-1].args[0])[index] for index in outputs]
    varying = set(places[:changing])
    needed = _reaching(results)
    for node in nodes:
        if node in needed and any(source in varying for source in node.all_input_nodes):
            varying.add(node)
    body = [node for node in nodes if node in needed and node in varying]
    ends = {source for node in body for source in node.all_input_nodes} | set(results)
    given = [node for node in nodes if node in ends and node not in varying]
    head = [node for node in nodes if node not in varying and node.op not in ("placeholder", "output")]
    return Split(
        _part(module, places[changing:], [node for node in head if node in needed], given),
        _part(
            module, [*places[:changing], *given], [n for n in body if n not in places], results
        ),
    )


def _reaching(results: Sequence[Node]) -> set[Node]:
    """The nodes that the results are made of."""
    found, todo = set(), list(results)
    while todo:
        node = todo.pop()
        if node not in found:
            found.add(node)
            todo.extend(node.all_input_nodes)
    return found


def _part(
    module: GraphModule, inputs: Sequence[Node], nodes: Sequence[Node], outputs: Sequence[Node]
) -> GraphModule:
    """A graph of some nodes of another one."""
    graph, copies = Graph(), {}
    for index, node in enumerate(inputs):
        copies[node] = graph.placeholder(f"a{index}")
    for node in nodes:
        copies[node] = graph.node_copy(node, copies.__getitem__)
    graph.output(tuple(copies[node] for node in outputs))
    return GraphModule(module, graph)
