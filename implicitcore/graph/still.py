"""Whether all that f may read is where it was, by one comparison of objects."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from functools import partial
from types import CodeType, FunctionType, MethodType
from typing import Any

from torch import nn

from implicitcore.system.captured_modules import global_names, reached


@dataclass(frozen=True, eq=False)
class Still:
    """All attributes of modules, and all that their functions refer to, at some moment.

    It is compared by the objects themselves, which takes much less time than what
    :class:`~implicitcore.graph.reads.Reads` makes of them: where this holds, that is the same.

    Attributes:
        modules: each with copies of its attributes, and of those of them that change in place.
        functions: each function with its code, its defaults, and a copy of those by name alone.
        scopes: names in the globals of functions, and the objects of these names.
        cells: variables of closures, and their objects.
        keywords: those of partial functions, with copies.
    """

    modules: list[tuple[nn.Module, list[dict[Any, Any]]]]
    functions: list[tuple[FunctionType, CodeType, Any, Any]]
    scopes: list[tuple[dict[str, Any], str, Any]]
    cells: list[tuple[Any, Any]]
    keywords: list[tuple[Any, dict[str, Any]]]

    @classmethod
    def of(cls, modules: Iterable[nn.Module]) -> Still:
        """As it is now."""
        found = cls([], [], [], [], [])
        seen: dict[int, nn.Module] = {id(module): module for module in modules}
        for module in [*seen.values()]:
            for function, _, known in reached(module):
                found._add(function)
                for value in known.values():
                    if isinstance(value, nn.Module):
                        seen[id(value)] = value
        for module in seen.values():
            found.modules.append((module, [{**part} for part in _attributes(module)]))
        return found

    def _add(self, function: Any) -> None:
        while isinstance(function, MethodType):
            function = function.__func__
        if isinstance(function, partial):
            self.keywords.append((function, {**function.keywords}))
            return
        code: CodeType | None = getattr(function, "__code__", None)
        if code is None:
            return
        named = function.__kwdefaults__
        self.functions.append((function, code, function.__defaults__, named and {**named}))
        scope = function.__globals__
        self.scopes.extend((scope, name, scope.get(name, _NONE)) for name in global_names(code))
        self.cells.extend((cell, _content(cell)) for cell in function.__closure__ or ())

    def holds(self, first: nn.Module) -> bool:
        """Whether it is so now, and this is the first of the modules."""
        if self.modules[0][0] is not first:
            return False
        try:
            for module, parts in self.modules:
                for now, before in zip(_attributes(module), parts, strict=True):
                    if now != before or [*now] != [*before]:  # f may go through them in order
                        return False
            if any(f.__kwdefaults__ != named for f, _, _, named in self.functions):
                return False
        except Exception:
            return False  # another tensor, of which none can say that it is the same
        return (
            all(f.__code__ is code and f.__defaults__ is it for f, code, it, _ in self.functions)
            and all(scope.get(name, _NONE) is value for scope, name, value in self.scopes)
            and all(_content(cell) is value for cell, value in self.cells)
            and all(function.keywords == before for function, before in self.keywords)
        )


_NONE = object()


def _attributes(module: nn.Module) -> tuple[dict[Any, Any], ...]:
    """All attributes of a module, and those of them that have others in them."""
    hooks = module._forward_hooks, module._forward_pre_hooks
    return vars(module), module._modules, module._parameters, module._buffers, *hooks


def _content(cell: Any) -> Any:
    try:
        return cell.cell_contents
    except ValueError:  # which has no value yet
        return _NONE
