"""What the dynamics may read beside z and x."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field, replace
from threading import RLock
from typing import Any

from torch import Tensor, nn
from torch.nn.utils.stateless import _reparametrize_module

from implicitcore.graph.constants import is_plain, told_apart
from implicitcore.graph.still import Still
from implicitcore.layers.base import ImplicitLayer
from implicitcore.system.captured_modules import captured_modules, reached, used_modules

Reach = tuple[Any, frozenset[str], dict[str, Any]]
"""See :func:`~implicitcore.system.captured_modules.reached`."""

_IN_PLACE = RLock()
"""While f is traced its modules hold other tensors, which no other thread may take for theirs."""


@dataclass(frozen=True, eq=False)
class Reads:
    """What f may read beside z and x, at some moment.

    Attributes:
        layer: whose dynamics are solved.
        modules: the dynamics, what it captured, and their parts.
        owned: the module and the name of each parameter and buffer.
        tensors: these.
        still: the objects themselves. Where it holds, so does all else; where not, it may.
        built: of each module its parts, functions and hooks, and the names of its tensors.
        values: of each module, and of each function that they reach, the numbers, strings and such
            that it has, by their names.
        written: the module's place and the name of those that f itself writes, as a count of calls.
    """

    layer: ImplicitLayer
    modules: tuple[nn.Module, ...]
    owned: tuple[tuple[nn.Module, str], ...]
    tensors: list[Tensor]
    still: Still
    built: tuple[Any, ...]
    values: list[dict[str, Any]]
    written: set[tuple[int, str]] = field(default_factory=set)

    @classmethod
    def of(cls, layer: ImplicitLayer) -> Reads:
        """By a look at all modules and functions, which takes longer than a call."""
        with _IN_PLACE:
            return cls._of(layer)

    @classmethod
    def _of(cls, layer: ImplicitLayer) -> Reads:
        roots = (layer.dynamics, *captured_modules(layer.dynamics))
        modules = tuple(dict.fromkeys(part for root in roots for part in root.modules()))
        reaches = _reaches(modules)
        functions = [reach for each in reaches for reach in each]
        captured = [value for _, value in _captured(functions)]
        still = Still.of((layer, *modules, *captured), (function for function, _, _ in functions))
        owned = tuple((module, name) for module in modules for name in _tensors(module))
        tensors = [getattr(module, name) for module, name in owned]
        built = layer.dynamics, *map(_built, modules, reaches)
        return cls(layer, modules, owned, tensors, still, built, _values(modules, reaches))

    def hold(self, layer: ImplicitLayer) -> bool:
        """Whether this is the layer, and nothing of it was replaced."""
        with _IN_PLACE:
            return layer is self.layer and self.still.holds()

    def renewed(self, layer: ImplicitLayer) -> tuple[Reads, bool, bool]:
        """As it is now, whether f has the same parts, and the constants of a graph are the same.

        The tensors may be others.
        """
        now = Reads.of(layer)
        if now.modules != self.modules or now.built != self.built:
            return now, False, False
        # One set: what was compiled before traces its gradient later.
        now = replace(now, written=self.written)
        return now, True, _changed(now.values, self.values) <= self.written

    @contextmanager
    def tracing(self, tensors: Sequence[Tensor]) -> Iterator[None]:
        """In the block the modules hold these tensors, for one thread alone.

        What f writes in it is no constant that another call has changed.
        """
        owned: dict[nn.Module, dict[str, Tensor]] = {}
        for (module, name), tensor in zip(self.owned, tensors, strict=True):
            owned.setdefault(module, {})[name] = tensor
        with _IN_PLACE, ExitStack() as stack:
            before = _values(self.modules, _reaches(self.modules))
            try:
                for module, values in owned.items():
                    stack.enter_context(_reparametrize_module(module, values))
                yield
            finally:
                after = _values(self.modules, _reaches(self.modules))
                self.written.update(_changed(after, before))


def _reaches(modules: Sequence[nn.Module]) -> list[list[Reach]]:
    return [[*reached(module)] for module in modules]


def _captured(functions: Sequence[Reach]) -> Iterator[tuple[frozenset[str], nn.Module]]:
    """The modules that functions refer to, and the names of what they take of each."""
    for _, names, known in functions:
        for value in known.values():
            if isinstance(value, nn.Module):
                yield names, value


def _values(modules: Sequence[nn.Module], reaches: Sequence[list[Reach]]) -> list[dict[str, Any]]:
    # The mode is looked at by itself: what was compiled in the other one stays.
    values = [_plain(vars(module), _is_no_mode) for module in modules]
    for functions in reaches:
        values.extend(_plain(known, None) for _, _, known in functions)
        values.extend(_plain(vars(it), names.__contains__) for names, it in _captured(functions))
    return values


def _changed(now: list[dict[str, Any]], before: list[dict[str, Any]]) -> set[tuple[int, str]]:
    return {
        (place, name)
        for place, (new, old) in enumerate(zip(now, before, strict=True))
        for name in new.keys() | old.keys()
        if new.get(name) != old.get(name)
    }


def _built(module: nn.Module, functions: Sequence[Reach]) -> tuple[Any, ...]:
    parts = [part for reach in functions for part in _parts(reach)]
    hooks = *module._forward_pre_hooks.values(), *module._forward_hooks.values()
    return (*module._modules.values(), *parts, *hooks, *_tensors(module))


def _is_no_mode(name: str) -> bool:
    return name != "training"


def _plain(known: dict[str, Any], takes: Callable[[str], bool] | None) -> dict[str, Any]:
    """The values of some names that are constants, as they are told apart."""
    found = [k for k, v in known.items() if is_plain(type(v)) and (takes is None or takes(k))]
    return dict(zip(found, told_apart(known[k] for k in found), strict=True))


def _tensors(module: nn.Module) -> list[str]:
    owned = module._parameters, module._buffers
    return [name for tensors in owned for name, tensor in tensors.items() if tensor is not None]


def _parts(reach: Reach) -> list[Any]:
    """A function, its code, the modules that it refers to, and the parts of these that it uses."""
    function, names, known = reach
    modules = [value for value in known.values() if isinstance(value, nn.Module)]
    code = getattr(function, "__code__", None)
    return [function, code, *modules, *used_modules(names, known)]
