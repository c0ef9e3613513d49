"""A graph with loops, taken apart: what is between them is compiled, and they run on the host."""

from __future__ import annotations

import operator
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch._dispatch.python import enable_python_dispatcher
from torch._guards import TracingContext, detect_fake_mode
from torch._higher_order_ops.while_loop import while_loop_op, while_loop_stack_output_op
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.fx.passes.split_module import split_module

from implicitcore.graph.host_loop import LoopOfGraphs, LoopOfLoops, Signature

Build = Callable[[fx.GraphModule, Sequence[Any]], Callable[..., Any]]
"""Compiles a graph without loops, for arguments like some examples."""


def in_parts(
    module: fx.GraphModule, examples: Sequence[Any], build: Build
) -> Callable[..., Any] | None:
    """What the graph does, with its loops on the host; None where one of them cannot be there.

    Arguments:
        module: of Dynamo.
        examples: of its arguments, as Dynamo gives them to a compiler.
        build: for what is between the loops, and for their iterations.
    """
    if not _has_loops(module) or not _all_plain(module):
        return None
    return _taken_apart(module, [_without_values(example) for example in examples], build)


def _without_values(example: Any) -> Any:
    """An example as the compiler takes it, of the sizes that Dynamo has found to differ."""
    if not isinstance(example, Tensor):
        return example
    context = TracingContext.get().tensor_to_context.get(example)
    source = None if context is None else context.tensor_source  # pyright: ignore[reportAttributeAccessIssue] - of the contexts there
    with _without_numbers() as mode:
        return mode.from_tensor(example, symbolic_context=context, source=source)


def _has_loops(module: fx.GraphModule) -> bool:
    return bool(module.graph.find_nodes(op="call_function", target=while_loop_op))


def _all_plain(module: fx.GraphModule) -> bool:
    """Whether loops give their last iterate, entry by entry, those within loops too."""
    parts = [part for part in module.modules() if isinstance(part, fx.GraphModule)]
    nodes = [node for part in parts for node in part.graph.nodes]
    users = [user for node in nodes if node.target is while_loop_op for user in node.users]
    stacking = any(node.target is while_loop_stack_output_op for node in nodes)
    inner = [node for part in parts[1:] for node in part.graph.find_nodes(op="get_attr")]
    held = [getattr(node.graph.owning_module, node.target) for node in inner]
    constants = any(isinstance(value, Tensor) for value in held)
    return not (stacking or constants) and all(user.target is operator.getitem for user in users)


def _taken_apart(
    module: fx.GraphModule, examples: Sequence[Any], build: Build
) -> Callable[..., Any]:
    for loop in module.graph.find_nodes(op="call_function", target=while_loop_op):
        _put_aside(module, loop)
    module.graph.lint()
    places = _places(module)
    parts = split_module(
        module, module, places.__getitem__, keep_original_order=True, tuple_return=True
    )
    _Compiler(parts, build).run(*examples)
    parts.recompile()
    return parts.forward


@dataclass(frozen=True)
class _Loop:
    """A loop that is to be on the host: its predicate, an iteration, and what is wanted of it."""

    going: fx.GraphModule
    step: fx.GraphModule
    wanted: list[bool]  # of each tensor that it carries


class _Aside(nn.Module):
    """Stands for a loop in a graph, of whether there is an iteration and what the loop takes."""

    def __init__(self, loop: _Loop) -> None:
        super().__init__()
        self.loop = (loop,)  # no part of it


def _put_aside(module: fx.GraphModule, loop: Any) -> None:
    """Put a module in the place of a loop."""
    going, step, carried, read = loop.args
    name, given = f"host_{loop.name}", [*carried, *read]
    parts: Any = [module.get_submodule(str(node.target)) for node in (going, step)]
    taken = {user.args[1] for user in loop.users if user.users}
    module.add_module(name, _Aside(_Loop(*parts, wanted=[i in taken for i in range(len(carried))])))
    with module.graph.inserting_before(loop):
        first = _inlined(module, parts[0], given)
        loop.replace_all_uses_with(module.graph.call_module(name, (first, *given)))
    module.graph.erase_node(loop)
    for node in (going, step):
        if not node.users:
            module.graph.erase_node(node)


def _places(module: fx.GraphModule) -> dict[fx.Node, int]:
    """The part that each node is in: a loop is one, with what takes its results apart."""
    found, part = dict[fx.Node, int](), 0
    for node in module.graph.nodes:
        aside = _is_aside(module, node)
        taken = node.target is operator.getitem and _is_aside(module, node.args[0])
        part += aside
        found[node] = found[node.args[0]] if taken else part
        part += aside
    return found


def _is_aside(module: fx.GraphModule, node: Any) -> bool:
    if not isinstance(node, fx.Node) or node.op != "call_module":
        return False
    return isinstance(module.get_submodule(str(node.target)), _Aside)


def _inlined(into: fx.GraphModule, module: fx.GraphModule, given: Sequence[Any]) -> Any:
    """The nodes of a graph in another one, at its point of insertion; its results."""
    places = module.graph.find_nodes(op="placeholder")
    copies: dict[fx.Node, Any] = dict(zip(places, given, strict=True))
    for node in module.graph.nodes:
        if node.op == "output":
            return fx.map_arg(node.args[0], copies.__getitem__)
        if node in copies:
            continue
        copies[node] = copy = into.graph.node_copy(node, copies.__getitem__)
        if node.op in ("get_attr", "call_module"):
            copy.target = f"{node.target}_of_{copy.name}"
            setattr(into, copy.target, getattr(module, str(node.target)))
    raise AssertionError("a graph has an output")


class _Compiler(fx.Interpreter):
    """Runs the parts on examples, and puts what was compiled for these in their place."""

    def __init__(self, parts: fx.GraphModule, build: Build) -> None:
        super().__init__(parts)
        self.build = build

    def get_attr(self, target: Any, args: Any, kwargs: Any) -> Any:
        """A constant, as an example of one."""
        value = self.fetch_attr(target)
        return _without_values(value) if isinstance(value, Tensor) else value

    def call_module(self, target: Any, args: Any, kwargs: Any) -> Any:
        """A part, or within one a loop."""
        part = self.fetch_attr(target)
        if isinstance(part, _Aside):
            runs, found = _compiled(part.loop[0], args, self.build)
        elif any(isinstance(child, _Aside) for child in part.children()):
            return _Compiler(part, self.build).run(*args)  # pyright: ignore[reportArgumentType] - a graph
        else:
            with _without_numbers():
                found = part(*args)
            runs = self.build(part, args)  # pyright: ignore[reportArgumentType] - a graph
        delattr(self.module, target)
        setattr(self.module, target, runs)
        return found


@contextmanager
def _without_numbers() -> Iterator[FakeTensorMode]:
    """As the compiler traces: by torch's rules in Python, of which those in C++ know no symbols."""
    mode = detect_fake_mode()
    if mode is None:
        raise RuntimeError("a compiler was called by something other than Dynamo")
    with mode, enable_python_dispatcher():
        yield mode


def _compiled(loop: _Loop, args: Sequence[Any], build: Build) -> tuple[Callable[..., Any], Any]:
    """A loop on the host, and what it gives for examples."""
    going, *given = args
    with _without_numbers():
        # What a loop carries has memory of its own, and so has what it reads.
        own = [value.clone() if isinstance(value, Tensor) else value for value in given]
    many = len(loop.wanted)
    if _has_loops(loop.step):
        run = _taken_apart(_pure_step(loop), own, build)
        return LoopOfLoops(run, many), own[:many]
    step = _step_in_place(loop)
    before = [getattr(value, "_version", 0) for value in own]
    with _without_numbers():
        step(going.clone(), *own)
    written = [i for i in range(many, len(own)) if getattr(own[i], "_version", 0) != before[i]]
    signature = Signature.of(given, own, loop.wanted, written)
    return LoopOfGraphs(build(step, [going, *own]), signature), own[:many]


def _pure_step(loop: _Loop) -> fx.GraphModule:
    """What a loop takes -> whether there is another iteration, and the next iterate."""
    module, given = _empty(len(loop.step.graph.find_nodes(op="placeholder")))
    new = _inlined(module, loop.step, given)
    going = _inlined(module, loop.going, [*new, *given[len(loop.wanted) :]])
    module.graph.output((going, *new))
    module.recompile()
    return module


def _step_in_place(loop: _Loop) -> fx.GraphModule:
    """One iteration, written to where the loop keeps what it carries: nothing after the last."""
    module, (going, *given) = _empty(1 + len(loop.step.graph.find_nodes(op="placeholder")))
    call, many = module.graph.call_function, len(loop.wanted)
    carried, read = given[:many], given[many:]
    new = _inlined(module, loop.step, given)
    pairs = zip(new, carried, strict=True)
    kept = [call(torch.where, (going, value, before)) for value, before in pairs]
    goes_on = _inlined(module, loop.going, [*kept, *read])
    for place, value in zip([going, *carried], [goes_on, *kept], strict=True):
        module.graph.call_method("copy_", (place, value))
    module.graph.output(())
    module.recompile()
    return module


def _empty(count: int) -> tuple[fx.GraphModule, list[fx.Node]]:
    """A graph of so many arguments, and these."""
    graph = fx.Graph()
    return fx.GraphModule({}, graph), [graph.placeholder(f"a{i}") for i in range(count)]
