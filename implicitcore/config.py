"""From names and mappings to parts, and back: the edge at which names end.

A specification of a part is its name, a mapping with its ``name`` and options, or the part itself. It is data: it names
registered parts and never an import path, so that a configuration cannot run code.
"""

from __future__ import annotations

import dataclasses
import warnings
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from implicitcore.annotations import Slot
from implicitcore.errors import AmbiguousPartError, ConfigError, PluginError, PluginWarning, UnknownPartError
from implicitcore.options import Option, options_of
from implicitcore.parts import CLASS_KINDS
from implicitcore.registry import REGISTRY
from implicitcore.wording import did_you_mean, show

if TYPE_CHECKING:
    from implicitcore.layers.base import ImplicitLayer

_FAILED: Any = object()
"""Stands for a part or a value that has a problem, so that the search for further problems goes on."""

_NOT_DATA: Any = object()


def build(spec: str | Mapping[str, Any] | ImplicitLayer, cell: Any = None, /, **options: Any) -> ImplicitLayer:
    """Build a layer.

    Arguments:
        spec: the name of a registered layer, or a mapping with its ``name`` and options.
        cell: the layer's f(z, x), a module or function.
        **options: options of the layer, over those in ``spec``; each part among them is a name, a mapping or an object.

    Returns:
        A plain module: it knows nothing of names or the registry.

    Raises:
        ConfigError: lists every problem with its path (``root_solver.toll``) and the near matches.
        AmbiguousPartError: several distributions provide a name; ``distribution:name`` chooses.
        PluginError: the code of a named part cannot be imported.
    """
    return create("layer", spec, *(() if cell is None else (cell,)), **options)


def create(kind: str, spec: Any, /, *args: Any, path: str = "", **options: Any) -> Any:
    """Create a part of any kind.

    Arguments:
        kind: layer, dynamics, root_solver, ode_solver, gradient or backend.
        spec: a name, a mapping with ``name``, or an object, which is returned.
        *args: positional arguments of the part: the cell of a layer or of dynamics.
        path: where the specification stands, for the messages.
        **options: options of the part, over those in ``spec``.

    Returns:
        The part.

    Raises:
        ConfigError: lists every problem with its path.
        UnknownPartError: there is no such kind.
        AmbiguousPartError: several distributions provide a name; ``distribution:name`` chooses.
        PluginError: the code of a named part cannot be imported.

    >>> create("root_solver", "anderson", depth=3).depth
    3
    """
    if kind not in CLASS_KINDS:
        raise UnknownPartError(f"unknown kind {kind!r}{did_you_mean(kind, CLASS_KINDS)} (kinds: {', '.join(CLASS_KINDS)})")
    reader = _Reader()
    part = reader.part(Slot((kind,)), spec, path, args, options)
    if reader.problems:
        raise ConfigError(reader.problems)
    return part


def describe(part: Any) -> dict[str, Any]:
    """The configuration of a part: :func:`build` and :func:`create` make its equal from it.

    Every option is there, so that a later default changes nothing, but for those that are None by default and are None.
    What a layer was given as a Python object (the cell, a predictor) is left out; it must be given again.

    Arguments:
        part: an object of any kind.

    Returns:
        Its ``name`` and its options; a part among them is a mapping too, or its name where it has no options.

    Raises:
        ConfigError: a part is not registered, or has an option that is not data.

    >>> from implicitcore import Picard
    >>> describe(Picard())["name"]
    'picard'
    """
    return _describe(part, "")


class _Reader:
    """Turns specifications into parts, and collects every problem on the way."""

    def __init__(self) -> None:
        self.problems: list[str] = []

    def part(self, slot: Slot, spec: Any, path: str, args: Sequence[Any] = (), more: Mapping[str, Any] | None = None) -> Any:
        """The part, or ``_FAILED``."""
        if isinstance(spec, str):
            spec = {"name": spec}
        if isinstance(spec, Mapping):
            part = self._named(slot, {**spec, **(more or {})}, path, args)
        elif args or more:
            return self._fail(path, f"options and arguments go with a name, not with {show(spec)}")
        else:
            part = spec
        problem = "" if part is _FAILED else slot.problem(part)
        return self._fail(path, problem) if problem else part

    def _named(self, slot: Slot, spec: dict[str, Any], path: str, args: Sequence[Any]) -> Any:
        name = spec.pop("name", None)
        if not isinstance(name, str):
            return self._fail(path, f"needs a 'name', the name of a registered {slot}; received {show(name)}")
        if (slot.kinds, name) == (("backend",), "auto"):
            return _best_backend()
        cls = self._find(slot, name, path)
        return _FAILED if cls is _FAILED else self._make(cls, name, spec, path, args)

    def _find(self, slot: Slot, name: str, path: str) -> Any:
        """The class of that name in one of the slot's kinds, or ``_FAILED``."""
        found, unknown = [], []
        try:
            for kind in slot.kinds:
                try:
                    found.append(REGISTRY.find(kind, name))
                except UnknownPartError as error:
                    unknown.append(str(error))
            if len(found) == 1:
                return found[0].load()
        except (AmbiguousPartError, PluginError) as error:
            raise type(error)(_join(path, str(error), ": ")) from error
        if found:
            return self._fail(path, f"{name!r} is the name of several parts; create the one you mean: {' or '.join(map(str, found))}")
        hint = " (a configuration names registered parts, never an import path)" if {":", "."} & set(name) else ""
        return self._fail(path, " and ".join(unknown) + hint)

    def _make(self, cls: type, owner: str, spec: Mapping[str, Any], path: str, args: Sequence[Any]) -> Any:
        known = options_of(cls)
        positional = [option.name for option in known.values() if option.positional]
        before = len(self.problems)
        if len(args) > len(positional):
            self._fail(path, f"{owner} takes {len(positional)} positional arguments, received {len(args)}")
        given = dict(zip(positional, args, strict=False))
        for name in given.keys() & spec.keys():
            self._fail(_join(path, name), f"given to {owner} twice, by name and by position")
        values = self._options(known, owner, {**spec, **given}, path)
        if len(self.problems) > before:
            return _FAILED
        arguments = [values.pop(name) for name in positional]
        try:
            return cls(*arguments, **values)
        except ConfigError as error:
            self.problems += [_join(path, problem) for problem in error.problems]
            return _FAILED

    def _options(self, known: Mapping[str, Option], owner: str, spec: Mapping[str, Any], path: str) -> dict[str, Any]:
        """The values of the options that were given."""
        values = {}
        for key, value in spec.items():
            if key in known:
                values[key] = self._value(known[key], value, path)
            else:
                options = ", ".join(sorted(option.name for option in known.values() if not option.positional))
                self._fail(_join(path, str(key)), f"unknown option of {owner}{did_you_mean(key, known)} (options: {options or 'none'})")
        for option in known.values():
            if option.required and option.name not in values:
                self._fail(_join(path, option.name), f"required by {owner}: {option.type_text}")
        return values

    def _value(self, option: Option, value: Any, path: str) -> Any:
        if option.slot is not None:
            return self._slot(option.slot, value, _join(path, option.name))
        value, problems = option.read(value, from_config=True)
        self.problems += [_join(path, problem) for problem in problems]
        return value

    def _slot(self, slot: Slot, value: Any, path: str) -> Any:
        if value is None and slot.optional:
            return None
        if not slot.many:
            return self.part(slot, value, path)
        if isinstance(value, str) or not isinstance(value, Sequence):
            return self._fail(path, f"expected a list of {slot}, received {show(value)}")
        item = dataclasses.replace(slot, many=False, optional=False)
        return tuple(self.part(item, spec, f"{path}[{index}]") for index, spec in enumerate(value))

    def _fail(self, path: str, problem: str) -> Any:
        self.problems.append(_join(path, problem, ": "))
        return _FAILED


def _join(path: str, rest: str, separator: str = ".") -> str:
    return f"{path}{separator}{rest}" if path else rest


def _best_backend() -> Any:
    """The first backend that can run here; torch, which always can, is asked last."""
    parts = sorted(REGISTRY.parts("backend"), key=lambda part: part.name == "torch")
    for part in parts:
        try:
            backend = part.load()()
        except PluginError as error:
            warnings.warn(f"backend 'auto' passed over {error}", PluginWarning, stacklevel=2)
            continue
        if backend.unavailable_reason() is None:
            return backend
    raise PluginError("no backend can run here")


def _describe(part: Any, path: str) -> dict[str, Any]:
    try:
        name = REGISTRY.name_of(type(part))
    except UnknownPartError as error:
        raise ConfigError([_join(path, str(error), ": ")]) from error
    values: dict[str, Any] = {}
    for option in options_of(type(part)).values():
        place = _join(path, option.name)
        value = getattr(part, option.name, _NOT_DATA)
        if value is _NOT_DATA and not option.positional:
            raise ConfigError([f"{place}: {type(part).__name__} must keep this option as an attribute"])
        if value is None and option.default is None:
            continue  # so that an object that was not given and one that only Python can give look the same
        data = _data(value, place)
        if data is not _NOT_DATA:
            values[option.name] = data
        elif not _is_module(part) and value is not option.default:
            raise ConfigError([f"{place}: {show(value)} cannot be written in a configuration"])
    return {"name": name, **values}


def _data(value: Any, path: str) -> Any:
    """The value as a configuration has it, or ``_NOT_DATA``."""
    if value is None or isinstance(value, bool | int | float | str):
        return value
    if isinstance(value, tuple | list):
        items = [_data(item, f"{path}[{index}]") for index, item in enumerate(value)]
        return _NOT_DATA if any(item is _NOT_DATA for item in items) else items
    if getattr(value, "kind", None) in CLASS_KINDS and not _is_module(value):
        described = _describe(value, path)
        return described if len(described) > 1 else described["name"]
    return _NOT_DATA


def _is_module(part: Any) -> bool:
    """Layers and dynamics hold modules and functions, which are given from Python and not by a configuration."""
    return getattr(part, "kind", None) in ("layer", "dynamics")
