"""What the dynamics may read beside z and x."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from torch import nn

from implicitcore.graph.constants import is_plain
from implicitcore.system.captured_modules import captured_modules, reached, used_modules


@dataclass(frozen=True, eq=False)
class Reads:
    """What f may read beside z and x.

    Attributes:
        dynamics: what is solved.
        modules: the dynamics, what it captured, and their parts.
        owned: the module and the name of each parameter and buffer.
        built: of each module its parts, functions and hooks, and the names of its tensors.
        values: of each module, and of each function that they reach, the numbers, strings and such
            that it has, by their names.
        written: the module's place and the name of those that f itself writes, as a count of calls.
    """

    dynamics: nn.Module
    modules: tuple[nn.Module, ...]
    owned: tuple[tuple[nn.Module, str], ...]
    built: tuple[Any, ...]
    values: list[dict[str, Any]]
    written: set[tuple[int, str]]

    @classmethod
    def of(cls, dynamics: nn.Module) -> Reads:
        """By a look at all modules, which takes longer than a call."""
        roots = (dynamics, *captured_modules(dynamics))
        modules = tuple(dict.fromkeys(part for root in roots for part in root.modules()))
        owned = tuple((module, name) for module in modules for name in _tensors(module))
        return cls(dynamics, modules, owned, *_seen(modules), set())

    def compared(self, dynamics: nn.Module) -> tuple[bool, bool]:
        """Whether all is where it was, and whether the constants of a graph are what they were.

        The tensors may be others.
        """
        built, now = _seen(self.modules)
        if dynamics is not self.dynamics or self.built != built:
            return False, False
        return True, now == self.values or self._changed(now, self.values) <= self.written

    @contextmanager
    def tracing(self) -> Iterator[None]:
        """What f writes in the block is no constant that another call has changed."""
        before = _seen(self.modules)[1]
        try:
            yield
        finally:
            self.written.update(self._changed(_seen(self.modules)[1], before))

    @staticmethod
    def _changed(now: list[dict[str, Any]], before: list[dict[str, Any]]) -> set[tuple[int, str]]:
        pairs = enumerate(zip(now, before, strict=True))
        return {
            (place, name)
            for place, (new, old) in pairs
            for name in new.keys() | old.keys()
            if name not in new or name not in old or new[name] != old[name]
        }


def _seen(modules: tuple[nn.Module, ...]) -> tuple[tuple[Any, ...], list[dict[str, Any]]]:
    """``built`` and ``values`` of :class:`Reads`, by one look at each function."""
    # The mode is looked at by itself: what was compiled in the other one stays.
    values = [_plain(vars(module), _is_no_mode) for module in modules]
    built = []
    for module in modules:
        reaches = list(reached(module))
        for _, names, known in reaches:
            values.append(_plain(known, None))
            for value in known.values():
                if isinstance(value, nn.Module):
                    values.append(_plain(vars(value), names.__contains__))
        parts = [part for reach in reaches for part in _parts(reach)]
        hooks = *module._forward_pre_hooks.values(), *module._forward_hooks.values()
        built.append((*module._modules.values(), *parts, *hooks, *_tensors(module)))
    return tuple(built), values


def _is_no_mode(name: str) -> bool:
    return name != "training"


def _plain(values: dict[str, Any], takes: Callable[[str], bool] | None) -> dict[str, Any]:
    return {k: v for k, v in values.items() if is_plain(type(v)) and (takes is None or takes(k))}


def _tensors(module: nn.Module) -> list[str]:
    owned = module._parameters, module._buffers
    return [name for tensors in owned for name, tensor in tensors.items() if tensor is not None]


def _parts(reach: tuple[Any, Any, dict[str, Any]]) -> list[Any]:
    """A function, its code, the modules that it refers to, and the parts of these that it uses."""
    function, names, known = reach
    modules = [value for value in known.values() if isinstance(value, nn.Module)]
    code = getattr(function, "__code__", None)
    return [function, code, *modules, *used_modules(names, known)]
