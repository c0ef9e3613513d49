"""The modules that a plain function calls: of its closure, its object and its globals."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from functools import partial
from types import CodeType, FunctionType, MethodType
from typing import Any

from torch import nn

_FUNCTIONS = frozenset({FunctionType, MethodType, partial})


def captured_modules(module: nn.Module) -> list[nn.Module]:
    """What the functions among a module's attributes call: ``lambda z, x: cell(z, x)``.

    Where a function takes an attribute of a module (``self.cell(z, x)``), the attribute counts and
    not the rest of that module.
    """
    functions = functions_of(module)
    return [found for function in functions for found in _modules(function)] if functions else []


def functions_of(module: nn.Module) -> list[Any]:
    """The functions among a module's attributes."""
    return [value for value in vars(module).values() if type(value) in _FUNCTIONS]


def _modules(function: Any) -> Iterator[nn.Module]:
    seen: list[Any] = []
    todo = [function]
    while todo:
        function = todo.pop()
        if any(function is other for other in seen):
            continue
        seen.append(function)
        names, values = _references(function)
        for value in values:
            if isinstance(value, nn.Module):
                yield from _used(value, names)
            elif type(value) in _FUNCTIONS:
                todo.append(value)


def _references(function: Any) -> tuple[frozenset[str], list[Any]]:
    """The attribute names that a function mentions, and the objects that it refers to."""
    if isinstance(function, partial):
        return frozenset(), [function.func, *function.args, *function.keywords.values()]
    if isinstance(function, MethodType):
        names, values = _references(function.__func__)
        return names, [function.__self__, *values]
    code: CodeType | None = getattr(function, "__code__", None)
    if code is None:
        return frozenset(), []
    scope = function.__globals__
    cells = [cell.cell_contents for cell in function.__closure__ or () if _filled(cell)]
    known = [scope[name] for name in code.co_names if name in scope]
    return frozenset(code.co_names), [*cells, *known, *(function.__defaults__ or ())]


def _filled(cell: Any) -> bool:
    try:
        cell.cell_contents  # noqa: B018 - raises where the variable has no value yet
    except ValueError:
        return False
    return True


def _used(module: nn.Module, names: Iterable[str]) -> Iterator[nn.Module]:
    """The module, or those of its parts that are named."""
    parts = [part for name in names if (part := module._modules.get(name)) is not None]
    if not parts:
        yield module
    for part in parts:
        yield from _used(part, names)
