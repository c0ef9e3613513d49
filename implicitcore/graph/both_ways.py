"""A function and its vector-Jacobian product as graphs of the way there and of the way back."""

from __future__ import annotations

import operator
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.fx import Graph, GraphModule, Node

from implicitcore.graph.trace import part, reached_from, reaching, shares_memory

_SIZE = torch.ops.aten.sym_size.int
_CHEAP = frozenset(
    getattr(torch.ops.aten, name)
    for name in ("add", "sub", "rsub", "mul", "div", "neg", "zeros_like", "new_zeros")
)


@dataclass(frozen=True, eq=False)
class BothWays:
    """A function of which some arguments change, with its vector-Jacobian product.

    The way back evaluates nothing again: the way there gives what its products need.

    Attributes:
        before: the arguments that never change -> what both ways need of them.
        there: the changing arguments, and what ``before`` gave -> the values, and what is kept.
        back: cotangents, the arguments in ``taken``, what was kept and what ``before`` gave -> the
            cotangents of the arguments.
        values: how many of the results of ``there`` are values.
        saves: how many of them are kept.
        knows: how many results ``before`` has.
        taken: the places of the changing arguments that ``back`` needs.
        has_rows: all that is kept has a row for each sample.
    """

    before: GraphModule
    there: GraphModule
    back: GraphModule
    values: int
    saves: int
    knows: int
    taken: tuple[int, ...]
    has_rows: bool

    @classmethod
    def of(cls, module: GraphModule, changing: int, cotangents: int, values: int) -> BothWays:
        """From a graph of both ways.

        Arguments:
            module: its arguments are those that change, the first of which has the batch first,
                the cotangents, and those that never change; its results values and then cotangents.
            changing: how many arguments change.
            cotangents: how many there are of the values.
            values: how many there are.
        """
        _name_sizes(module.graph)
        nodes = list(module.graph.nodes)
        places = [node for node in nodes if node.op == "placeholder"]
        early, late = places[:changing], places[changing:][:cotangents]
        rest, results = places[changing + cotangents :], list(nodes[-1].args[0])
        moving, linear = reached_from(nodes, {*early, *late}), reached_from(nodes, {*late})

        back = reaching(results[values:], lambda n: n in linear or _is_free(n))
        needed = _sources(nodes, back, results[values:])
        _recompute(back, needed, early, moving)
        kept = [node for node in nodes if node in needed & moving and node not in early]
        there = reaching([*results[:values], *kept], lambda n: n in moving or _is_free(n))
        known = needed | _sources(nodes, there, [*results[:values], *kept])
        given = [node for node in nodes if node in known - moving]
        head = reaching(given, lambda n: True)

        def cut(inputs: Sequence[Node], inside: set[Node], outputs: Sequence[Node]) -> GraphModule:
            return part(module, inputs, [node for node in nodes if node in inside], outputs)

        way_back = cut([*late, *early, *kept, *given], back, results[values:])
        taken = _taken(way_back, cotangents, changing)
        batch = str(early[0].meta["val"].shape[0])
        return cls(
            cut(rest, head, given),
            cut([*early, *given], there, [*results[:values], *kept]),
            way_back,
            values,
            len(kept),
            len(given),
            taken,
            all(_has_rows(node, batch) for node in kept),
        )


def _name_sizes(graph: Graph) -> None:
    """Have each size that depends on the batch taken of the first argument, in place.

    A tensor that is read for its size alone would be kept for it.
    """
    first = next(iter(graph.nodes))
    batch = first.meta["val"].shape[0]
    if isinstance(batch, int):
        return
    with graph.inserting_before(first.next):
        size = graph.call_function(_SIZE, (first, 0))
    size.meta["val"] = batch
    for node in graph.find_nodes(op="call_function", target=_SIZE):
        many = node.meta["val"].node.expr / batch.node.expr
        if node is size or not many.is_integer:
            continue
        with graph.inserting_before(node):
            times = graph.call_function(operator.mul, (size, int(many))) if many != 1 else size
        times.meta["val"] = node.meta["val"]
        node.replace_all_uses_with(times)
        graph.erase_node(node)


def _taken(module: GraphModule, cotangents: int, early: int) -> tuple[int, ...]:
    """The places of the early arguments that the way back needs; the others are taken out."""
    graph = module.graph
    places = graph.find_nodes(op="placeholder")
    for node in graph.find_nodes(op="call_function", target=_SIZE):
        if node.args == (places[cotangents], 0):
            node.args = (places[0], 0)  # which has as many rows, and has to be there
    found = tuple(i for i, node in enumerate(places[cotangents:][:early]) if node.users)
    for i, node in enumerate(places[cotangents:][:early]):
        if i not in found:
            graph.erase_node(node)
    module.recompile()
    return found


def _sources(nodes: Sequence[Node], inside: set[Node], results: Sequence[Node]) -> set[Node]:
    """What nodes and results are made of and is not among the nodes."""
    found = {source for node in inside for source in node.all_input_nodes} | {*results}
    return {node for node in nodes if node in found - inside}


def _recompute(
    inside: set[Node], needed: set[Node], early: Sequence[Node], moving: set[Node]
) -> None:
    """Have the way back compute what costs next to nothing and needs nothing else to be kept."""
    while True:
        free = [
            node
            for node in needed
            if node in moving
            and node not in early
            and (_is_per_sample(node) or _is_cheap(node))
            and all(
                # Of x nothing: on the way back the row of one sample may stand for another's.
                source in moving and (source in needed or source in early or _is_per_sample(source))
                for source in node.all_input_nodes
            )
        ]
        if not free:
            return
        node = free[0]
        needed.remove(node)
        inside.add(node)
        needed |= {source for source in node.all_input_nodes if source not in inside}


def _is_free(node: Node) -> bool:
    """Whether a node costs nothing: a view, or a size."""
    return shares_memory(node) or isinstance(node.meta.get("val"), int | torch.SymInt)


def _is_cheap(node: Node) -> bool:
    packet = getattr(node.target, "overloadpacket", None)
    return packet in _CHEAP


def _is_per_sample(node: Node) -> bool:
    """Whether it is made of one number of each sample, as a step size is."""
    if (value := _value(node)) is None or node.op != "call_function":
        return False
    rows = str(value.shape[0]) if value.ndim else ""
    return all(
        (each := _value(source)) is None
        or (str(each.numel()) == rows and str(each.shape[0]) == rows)
        for source in (node, *node.all_input_nodes)
    )


def _value(node: Node) -> Tensor | None:
    value = node.meta.get("val")
    return value if isinstance(value, Tensor) else None


def _has_rows(node: Node, batch: str) -> bool:
    value = _value(node)
    return value is not None and value.ndim > 0 and str(value.shape[0]) == batch
