"""Whether all that f may read is where it was, by the objects themselves."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from functools import partial
from itertools import chain
from operator import is_
from types import CodeType, FunctionType, MethodType
from typing import Any

from torch import nn

from implicitcore.system.captured_modules import global_names


@dataclass(frozen=True, eq=False)
class Still:
    """All attributes of modules, and all that functions refer to, at some moment.

    Nothing is compared by its value, which takes no time, and needs none to be comparable: another
    object in the place of one, though it may be equal, is a change.

    Attributes:
        modules: whose attributes are looked at.
        spaces: the dictionaries in them, and those that belong to functions.
        functions: with a code, and with defaults.
        scopes: the globals of functions, and names in them.
        cells: variables of closures.
        names: of all entries of the modules and dictionaries, in their order.
        objects: all values of these entries, and then what belongs to functions.
    """

    modules: list[nn.Module]
    spaces: list[dict[Any, Any]]
    functions: list[FunctionType]
    scopes: list[tuple[dict[str, Any], str]]
    cells: list[Any]
    names: list[Any]
    objects: list[Any]

    @classmethod
    def of(cls, modules: Iterable[nn.Module], functions: Iterable[Any]) -> Still:
        """As it is now."""
        found = cls([*dict.fromkeys(modules)], [], [], [], [], [], [])
        for module in found.modules:
            hooks = module._forward_hooks, module._forward_pre_hooks
            found.spaces.extend((module._modules, module._parameters, module._buffers, *hooks))
        for function in functions:
            found._add(function)
        found.names.extend(found._names())
        found.objects.extend(found._objects())
        return found

    def _add(self, function: Any) -> None:
        while isinstance(function, MethodType):
            function = function.__func__
        if isinstance(function, partial):
            self.spaces.append(function.keywords)
            return
        code: CodeType | None = getattr(function, "__code__", None)
        if code is None:
            return
        self.functions.append(function)
        if function.__kwdefaults__:
            self.spaces.append(function.__kwdefaults__)
        self.scopes.extend((function.__globals__, name) for name in global_names(code))
        self.cells.extend(function.__closure__ or ())

    def _names(self) -> list[Any]:
        return [*chain.from_iterable(map(vars, self.modules)), *chain.from_iterable(self.spaces)]

    def _objects(self) -> Iterable[Any]:
        attributes = chain(map(vars, self.modules), self.spaces)
        found = chain.from_iterable(map(dict.values, attributes))
        if not self.functions:
            return found
        made = ((f.__code__, f.__defaults__, f.__kwdefaults__) for f in self.functions)
        read = (scope.get(name, _NONE) for scope, name in self.scopes)
        return chain(found, chain.from_iterable(made), read, map(_content, self.cells))

    def holds(self) -> bool:
        """Whether it is so now."""
        try:
            # In their order, in which f may go through them.
            return self._names() == self.names and all(map(is_, self._objects(), self.objects))
        except RuntimeError:  # another thread writes to one of them
            return False


_NONE = object()


def _content(cell: Any) -> Any:
    try:
        return cell.cell_contents
    except ValueError:  # which has no value yet
        return _NONE
