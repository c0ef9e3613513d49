"""The modules that a plain function calls: of its closure, its object and its globals."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dis import get_instructions
from functools import lru_cache, partial
from types import CodeType, FunctionType, MethodType
from typing import Any

from torch import nn

_FUNCTIONS = frozenset({FunctionType, MethodType, partial})


def captured_modules(module: nn.Module) -> list[nn.Module]:
    """What the functions among a module's attributes call: ``lambda z, x: cell(z, x)``.

    Where a function takes an attribute of a module (``self.cell(z, x)``), the attribute counts and
    not the rest of that module.
    """
    if not functions_of(module):  # as of most modules, which every solve asks for theirs
        return []
    return [used for _, names, known in reached(module) for used in used_modules(names, known)]


def used_modules(names: Iterable[str], known: dict[str, Any]) -> Iterator[nn.Module]:
    """The modules among what a function refers to; of each the parts that it mentions, if any."""
    for value in known.values():
        if isinstance(value, nn.Module):
            yield from _used(value, names)


def functions_of(module: nn.Module) -> list[Any]:
    """The functions among a module's attributes."""
    return [value for value in vars(module).values() if type(value) in _FUNCTIONS]


def reached(module: nn.Module) -> Iterator[tuple[Any, frozenset[str], dict[str, Any]]]:
    """Each function that those among a module's attributes reach.

    With the attribute names that it mentions, and the objects that it refers to by their names.
    """
    for function in functions_of(module):
        yield from _reached(function)


def _reached(function: Any) -> Iterator[tuple[Any, frozenset[str], dict[str, Any]]]:
    seen: list[Any] = []
    todo = [function]
    while todo:
        function = todo.pop()
        if any(function is other for other in seen):
            continue
        seen.append(function)
        names, known = _references(function)
        yield function, names, known
        todo += [value for value in known.values() if type(value) in _FUNCTIONS]


def _references(function: Any) -> tuple[frozenset[str], dict[str, Any]]:
    """The attribute names that a function mentions, and the objects that it refers to."""
    if isinstance(function, partial):
        given = {str(place): value for place, value in enumerate(function.args)}
        return frozenset(), {"": function.func, **given, **function.keywords}
    if isinstance(function, MethodType):
        names, known = _references(function.__func__)
        return names, {"": function.__self__, **known}
    code: CodeType | None = getattr(function, "__code__", None)
    if code is None:
        return frozenset(), {}
    scope = function.__globals__
    cells = zip(code.co_freevars, function.__closure__ or (), strict=True)
    known = {name: cell.cell_contents for name, cell in cells if _filled(cell)}
    known.update((name, scope[name]) for name in global_names(code) if name in scope)
    known.update((str(place), value) for place, value in enumerate(function.__defaults__ or ()))
    known.update(function.__kwdefaults__ or {})
    return frozenset(code.co_names), known


@lru_cache(maxsize=1024)
def global_names(code: CodeType) -> tuple[str, ...]:
    """The names that code reads as globals; ``co_names`` has those of attributes too."""
    loaded = (each for each in get_instructions(code) if each.opname == "LOAD_GLOBAL")
    return tuple(dict.fromkeys(each.argval for each in loaded))


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
