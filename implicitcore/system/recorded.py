"""What a recorded evaluation of f depends on, and the system that it is recorded from."""

from __future__ import annotations

from collections import deque
from collections.abc import Hashable, Iterable, Iterator, Mapping, Set
from dataclasses import fields, is_dataclass, replace
from types import CodeType, SimpleNamespace
from typing import Any, NamedTuple

from torch import Tensor, nn
from torch.nn.modules import module as global_hooks
from torch.utils import _pytree as pytree

from implicitcore.errors import show
from implicitcore.system.captured_modules import functions_of, reached
from implicitcore.system.system import System
from implicitcore.tensors.amended import amended
from implicitcore.tensors.shared import unwrapped
from implicitcore.tensors.watched import CaptureError, described, placed

# What every module has, its parts and hooks among it, which are looked at by themselves.
_OF_MODULES = frozenset(vars(nn.Module())) - {"training"}
_CONSTANTS = (bool, int, float, complex, str, type(None), CodeType)


class FunctionKey(NamedTuple):
    """What f reads beside its input."""

    tensors: Hashable  # where they are, and how they are laid out
    constants: Hashable  # of modules, in the order of these, and their types


def function_key(system: System) -> FunctionKey:
    """What f reads, as far as modules, attributes and what functions among these refer to tell.

    Raises:
        CaptureError: f has hooks, or a tensor that is no plain one.
    """
    if global_hooks._global_forward_hooks or global_hooks._global_forward_pre_hooks:
        raise CaptureError("there are hooks for all modules")
    tensors: list[Hashable] = []
    constants: list[Hashable] = []
    for module in _modules(system):
        if module._forward_hooks or module._forward_pre_hooks:
            raise CaptureError(f"{type(module).__name__} has hooks")
        constants += (type(module), system.scope.modes.get(module))
        for value in _values(module):
            if isinstance(value, Tensor):
                tensors.append(placed(value))
            elif isinstance(value, _CONSTANTS):
                constants += (type(value), value)
    return FunctionKey(tuple(tensors), tuple(constants))


def input_key(system: System) -> Hashable:
    """What else is fixed in a record: shapes, dtypes, and what in x is no tensor.

    Raises:
        CaptureError: x holds something that is neither a tensor nor a constant.
    """
    leaves, spec = pytree.tree_flatten(system.problem.marked)
    shapes = tuple(_of_leaf(leaf) for leaf in leaves)
    return type(system.dynamics), spec, shapes, system.packing, system.context.autocast


def tensors_of(system: System) -> list[Tensor]:
    """The tensors that f reads beside its input."""
    return [
        value
        for module in _modules(system)
        for value in _values(module)
        if isinstance(value, Tensor)
    ]


def inputs_of(system: System) -> list[Tensor]:
    """What differs from solve to solve: the tensors of x, what was drawn, parametrised weights."""
    scope = system.scope
    weights = [list(own.values()) for own in scope.weights.values()]
    leaves = pytree.tree_leaves((system.x, unwrapped(list(scope.drawn.values())), weights))
    return [leaf.detach() for leaf in leaves if isinstance(leaf, Tensor)]


def with_inputs(system: System, inputs: Iterable[Tensor]) -> System:
    """The same system that reads these in place of its own :func:`inputs_of`; counts by itself."""
    given, scope = iter(inputs), system.scope

    def exchanged(tree: Any) -> Any:
        return pytree.tree_map_only(Tensor, lambda _: next(given), tree)

    x = exchanged(system.x)
    drawn = {key: exchanged(value) for key, value in scope.drawn.items()}
    weights = {module: exchanged(own) for module, own in scope.weights.items()}
    own = replace(scope, drawn=drawn, weights=weights)
    return System(system.problem.bind(x), amended(system.context.recounted(), scope=own))


def _modules(system: System) -> Iterable[nn.Module]:
    return system.scope.modules(system.dynamics)


def _values(module: nn.Module) -> Iterator[Any]:
    """What a module, and the functions among its attributes, refer to by name, and what is in it.

    A list, a dictionary or such is changed in place, and stays the object that it was.
    """
    yield from module._parameters.values()
    yield from module._buffers.values()
    for name, value in vars(module).items():
        if name not in _OF_MODULES:
            yield from _within(value)
    if functions_of(module):
        for function, _, known in reached(module):
            yield getattr(function, "__code__", None)
            for value in known.values():
                yield from _within(value)


def _within(value: Any, around: tuple[Any, ...] = ()) -> Iterator[Any]:
    """A value; of one with others in it what it is, and how many and which these are."""
    if is_dataclass(value) and not isinstance(value, type | nn.Module):
        held = [getattr(value, each.name, None) for each in fields(value)]
    elif isinstance(value, SimpleNamespace):
        held = [part for pair in vars(value).items() for part in pair]
    elif isinstance(value, Mapping):
        held = [part for pair in value.items() for part in pair]
    elif isinstance(value, Set):
        held = sorted(value, key=repr)
    elif isinstance(value, list | tuple | deque):
        held = [*value]
    else:
        yield value
        return
    yield f"{type(value).__qualname__} of {len(held)}"
    if not any(value is other for other in around):  # it may hold itself
        for part in held:
            yield from _within(part, (*around, value))


def _of_leaf(leaf: Any) -> Hashable:
    if isinstance(leaf, Tensor):
        return described(leaf)
    if isinstance(leaf, _CONSTANTS):
        return type(leaf), leaf
    raise CaptureError(f"x holds {show(leaf)}, which is neither a tensor nor a number or text")
