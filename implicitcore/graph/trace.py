"""f and its vector-Jacobian product as graphs of tensor operations, for any size of the batch."""

from __future__ import annotations

import operator
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from math import prod
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch._dispatch.python import enable_python_dispatcher
from torch._dynamo import maybe_mark_dynamic
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.fx import Graph, GraphModule, Node
from torch.fx.experimental.proxy_tensor import make_fx
from torch.fx.experimental.symbolic_shapes import (
    DimDynamic,
    ShapeEnv,
    StatelessSymbolicContext,
)
from torch.overrides import TorchFunctionMode

from implicitcore.errors import GradientError, InputError

BATCH = 3
"""The size of the batch in a trace, whose size may be any: one would be taken for a constant."""


class LinearOfAnySize(TorchFunctionMode):
    """Adds the bias of a linear map of more than vectors by itself.

    Under the transforms of a trace torch's own makes the sizes of its input constants.
    """

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func is torch.nn.functional.linear:
            return _linear(*args, **kwargs)
        return func(*args, **kwargs)


def _linear(input: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:  # noqa: A002
    if bias is None or input.ndim < 3:
        return torch.nn.functional.linear(input, weight, bias)
    return torch.nn.functional.linear(input, weight) + bias


class Kind(NamedTuple):
    """What a graph depends on in a tensor."""

    shape: tuple[int, ...]  # with another size of the batch, where it has one
    dtype: torch.dtype
    device: torch.device
    requires_grad: bool
    has_batch: bool

    @classmethod
    def of(cls, tensor: Tensor, has_batch: bool) -> Kind:
        """Of a tensor."""
        shape = tuple(tensor.shape)
        shape = (BATCH, *shape[1:]) if has_batch else shape
        return cls(shape, tensor.dtype, tensor.device, tensor.requires_grad, has_batch)

    def example(self) -> Tensor:
        """A tensor of the kind, with no values."""
        return torch.empty(self.shape, dtype=self.dtype, device=self.device)

    def zeros(self, batch: int) -> Tensor:
        """One of such a batch."""
        return torch.zeros((batch, *self.shape[1:]), dtype=self.dtype, device=self.device)

    def stack(self, count: int, batch: int) -> Tensor:
        """So many of them, with no values, each of such a batch; a graph serves any number."""
        shape = count, batch, *self.shape[1:]
        stack = torch.empty(shape, dtype=self.dtype, device=self.device)
        maybe_mark_dynamic(stack, 0)
        return stack

    def bytes(self, batch: int) -> int:
        """Of one with such a batch."""
        return batch * prod(self.shape[1:]) * self.dtype.itemsize


def kinds_of(
    tensors: Sequence[Tensor], shared: Sequence[bool], needs: Sequence[bool], *, coupled: bool
) -> tuple[Kind, ...]:
    """Of z, of the tensors of x, and of those that modules own.

    Arguments:
        tensors: all of them, in this order.
        shared: of those of x, which belong to the whole batch.
        needs: which of all get a gradient.
        coupled: the batch is one sample.
    """
    of_x = [t.ndim > 0 and not mark for t, mark in zip(tensors[1:], shared, strict=False)]
    batched = [True, *of_x, *(False for _ in tensors[1 + len(shared) :])]
    return tuple(
        Kind.of(tensor, has_batch and not coupled)._replace(requires_grad=need)
        for tensor, has_batch, need in zip(tensors, batched, needs, strict=True)
    )


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
    function: Callable[..., Sequence[Tensor]],
    kinds: Sequence[Kind],
    also: Callable[..., Sequence[Tensor]] | None = None,
) -> GraphModule:
    """The function as a graph.

    Arguments:
        function: of tensors, to tensors.
        kinds: of its arguments.
        also: of tensors of these kinds: more arguments are shaped like what it gives.

    Raises:
        InputError: the function draws random numbers, writes into an argument, or depends on
            values.
    """
    mode = FakeTensorMode(shape_env=ShapeEnv(), allow_non_fake_inputs=True)

    def fake(kind: Kind) -> Tensor:
        sizes = [DimDynamic.STATIC] * len(kind.shape)
        if kind.has_batch:
            sizes[0] = DimDynamic.DUCK
        context = StatelessSymbolicContext(dynamic_sizes=sizes)
        return mode.from_tensor(kind.example(), symbolic_context=context)

    examples = [fake(kind) for kind in kinds]
    try:
        # By torch's own rules in Python, of which those in C++ know no symbols.
        with mode, enable_python_dispatcher(), LinearOfAnySize():
            if also is not None:
                examples += [torch.empty_like(tensor) for tensor in also(*examples)]
            trace = make_fx(torch.func.functionalize(function), _allow_non_fake_inputs=True)
            graph = trace(*examples)
    except InputError:  # of what f returns
        raise
    except Exception as error:
        cause = f"{type(error).__name__}: {str(error).partition(chr(10))[0]}"
        raise InputError(f"f cannot be compiled: {cause}") from error
    _check_sizes(kinds, examples)
    graph.graph.eliminate_dead_code()
    _take_any_strides(graph.graph)
    graph.recompile()
    _check(graph)
    return graph


def _check_sizes(kinds: Sequence[Kind], examples: Sequence[Tensor]) -> None:
    """Require that the batch has any size still, which what f calls may have taken for its own."""
    for kind, example in zip(kinds, examples, strict=False):
        size: Any = example.shape[0] if kind.has_batch else None
        if isinstance(size, int) or (size is not None and size.node.maybe_as_int() is not None):
            raise InputError(
                "f cannot be compiled: it, or an operation that it calls, takes the size of the "
                "batch for a constant, so that the graph is of no other one; use the layer as it is"
            )


def _take_any_strides(graph: Graph) -> None:
    """Views of any strides: the arguments of the trace are dense, and others need not be."""
    for node in graph.find_nodes(op="call_function", target=torch.ops.aten.view.default):
        node.target = torch.ops.aten.reshape.default


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
        if torch.Tag.nondeterministic_seeded in node.target.tags and not _drops_nothing(node):
            raise InputError(
                f"f draws random numbers ({node.target}), in each evaluation of a graph anew: "
                "compile it in eval(), or use the layer as it is"
            )
        if node.target._schema.is_mutable:
            raise InputError(
                f"f writes into a tensor that it is given or keeps ({node.target}), as statistics "
                "in training: compile it in eval(), or use the layer as it is"
            )


def _drops_nothing(node: Node) -> bool:
    """Whether an operation draws for its dropout alone, as attention does, and that is zero."""
    target: Any = node.target
    for place, entry in enumerate(target._schema.arguments):
        if entry.name == "dropout_p":
            given = node.args[place] if place < len(node.args) else node.kwargs.get(entry.name)
            return bool((entry.default_value if given is None else given) == 0)
    return False


def split(module: GraphModule, changing: int, outputs: Sequence[int]) -> Split:
    """The first ``changing`` arguments change in a loop; only some ``outputs`` are wanted."""
    nodes = list(module.graph.nodes)
    places = [node for node in nodes if node.op == "placeholder"]
    results = [list(nodes[-1].args[0])[index] for index in outputs]
    varying = reached_from(nodes, set(places[:changing]))
    # A loop takes no two views of one tensor: it makes them itself, which costs nothing.
    inside = reaching(results, lambda node: node in varying or shares_memory(node))
    ends = {source for node in inside for source in node.all_input_nodes} | set(results)
    given = [node for node in nodes if node in ends and node not in inside]
    head = reaching(given, lambda node: True)
    return Split(
        part(module, places[changing:], [node for node in nodes if node in head], given),
        part(
            module,
            [*places[:changing], *given],
            [node for node in nodes if node in inside],
            results,
        ),
    )


def reached(module: GraphModule, places: Sequence[int]) -> list[int]:
    """Which results, of floating point numbers, some arguments reach."""
    nodes = list(module.graph.nodes)
    arguments = [node for node in nodes if node.op == "placeholder"]
    varying = reached_from(nodes, {arguments[place] for place in places})
    values = [(node, node.meta["val"]) for node in nodes[-1].args[0]]
    return [
        i
        for i, (node, value) in enumerate(values)
        if node in varying and isinstance(value, Tensor) and value.is_floating_point()
    ]


def reached_from(nodes: Sequence[Node], begin: set[Node]) -> set[Node]:
    """The nodes that are made of some of them, and these."""
    found = set(begin)
    for node in nodes:
        if any(source in found for source in node.all_input_nodes):
            found.add(node)
    return found


def reaching(results: Sequence[Node], through: Callable[[Node], bool]) -> set[Node]:
    """The nodes that the results are made of, as far as they are to be gone through."""
    found, todo = set(), list(results)
    while todo:
        node = todo.pop()
        if node not in found and through(node):
            found.add(node)
            todo.extend(node.all_input_nodes)
    return found


def shares_memory(node: Node) -> bool:
    """Whether a node shares the memory of what it is made of."""
    if node.target is operator.getitem:
        return shares_memory(node.all_input_nodes[0])
    if not isinstance(node.target, torch._ops.OpOverload):
        return False
    return any(value.alias_info is not None for value in node.target._schema.returns)


def part(
    module: GraphModule, inputs: Sequence[Node], nodes: Sequence[Node], outputs: Sequence[Node]
) -> GraphModule:
    """A graph of some nodes of another one."""
    graph, copies = Graph(), {}
    for index, node in enumerate(inputs):
        copies[node] = graph.placeholder(f"a{index}")
        copies[node].meta = dict(node.meta)
    for node in (node for node in nodes if node not in copies):
        copies[node] = graph.node_copy(node, copies.__getitem__)
    graph.output(tuple(copies[node] for node in outputs))
    return GraphModule(module, graph)
