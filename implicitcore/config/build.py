"""From names and mappings to parts, and back: the edge at which names end.

A specification of a part is its name, a mapping with its ``name`` and options, or the part itself.
It is data: it names registered parts and never an import path, so that a configuration cannot run
code.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping
from pathlib import PurePath
from typing import TYPE_CHECKING, Any

from implicitcore.config.depth import check_depth
from implicitcore.config.reader import ConfigParser, join
from implicitcore.errors import ConfigError, UnknownPartError, show
from implicitcore.options.annotations import PartType
from implicitcore.options.kinds import CLASS_KINDS, MODULE_KINDS, NAMED_KINDS, check_kind
from implicitcore.options.option import REQUIRED
from implicitcore.options.options import options_of
from implicitcore.registry.registry import REGISTRY

if TYPE_CHECKING:
    from implicitcore.layers.base import ImplicitLayer

NOT_DATA: Any = object()
"""Stands for what a configuration cannot have."""


def build(
    spec: str | Mapping[str, Any] | ImplicitLayer, cell: Any = None, /, **options: Any
) -> ImplicitLayer:
    """Build a layer.

    Arguments:
        spec: the name of a registered layer, or a mapping with its ``name`` and options.
        cell: the layer's f(z, x), a module or function.
        **options: options of the layer, over those in ``spec``; each part among them is a name, a
            mapping or an object.

    Returns:
        A plain module: it knows nothing of names or the registry.

    Raises:
        ConfigError: lists every problem with its path (``root_solver.toll``) and the near matches.
        AmbiguousPartError: several distributions provide a name, and nothing else is wrong;
            ``distribution:name`` chooses.
        PluginError: the code of a named part cannot be imported, and nothing else is wrong.
    """
    return create("layer", spec, *(() if cell is None else (cell,)), **options)


def create(kind: str, spec: Any, /, *args: Any, path: str = "", **options: Any) -> Any:
    """Create a part of any kind.

    Arguments:
        kind: one of :data:`~implicitcore.options.kinds.NAMED_KINDS`: ``"layer"``, ``"cell"``, ...
        spec: a name, a mapping with ``name``, or an object, which is returned.
        *args: positional arguments of the part: the cell of a layer or of dynamics.
        path: where the specification stands, for the messages.
        **options: options of the part, over those in ``spec``.

    Returns:
        The part.

    Raises:
        ConfigError: lists every problem with its path.
        UnknownPartError: there is no such kind.
        AmbiguousPartError: several distributions provide a name, and nothing else is wrong;
            ``distribution:name`` chooses.
        PluginError: the code of a named part cannot be imported, and nothing else is wrong.

    >>> create("root_solver", "anderson", depth=3).depth
    3
    """
    check_depth({"": spec, **options}, path)
    reader = ConfigParser(REGISTRY)
    part = reader.part(_slot(kind), spec, path, args, options)
    reader.finish()
    return part


def prepare(kind: str, spec: Any, /, *, path: str = "", **options: Any) -> functools.partial[Any]:
    """Read a specification without making the part.

    What only Python can give it, the cell of a layer, is still missing.

    Arguments:
        kind: one of :data:`~implicitcore.options.kinds.NAMED_KINDS`: ``"layer"``, ``"cell"``, ...
        spec: a name, or a mapping with ``name``.
        path: where the specification stands, for the messages.
        **options: options of the part, over those in ``spec``.

    Returns:
        The class with the options that were given, checked: call it with the rest. :func:`describe`
        fills in the defaults.

    Raises:
        ConfigError: lists every problem with its path; no cell is none.
        UnknownPartError: there is no such kind.
        AmbiguousPartError: several distributions provide a name, and nothing else is wrong.
        PluginError: the code of a named part cannot be imported, and nothing else is wrong.

    >>> prepare("dynamics", {"name": "vector_field", "autonomous": True}).keywords
    {'autonomous': True}
    """
    check_depth({"": spec, **options}, path)
    reader = ConfigParser(REGISTRY)
    prepared = reader.prepared(_slot(kind), spec, path, options)
    reader.finish()
    return prepared


def describe(part: Any) -> dict[str, Any]:
    """The configuration of a part: :func:`build` and :func:`create` make its equal from it.

    Every option is there, so that a later default changes nothing, but for those that are None by
    default and are None. What a layer was given as a Python object (the cell, a predictor) is left
    out; it must be given again.

    Arguments:
        part: an object of any kind, or what :func:`prepare` has made of a configuration.

    Returns:
        Its ``name`` and its options; a part among them is a mapping too, or its name where it has
        no options.

    Raises:
        ConfigError: a part is not registered, or has an option that is not data.

    >>> from implicitcore import Picard
    >>> describe(Picard())["name"]
    'picard'
    """
    return _describe(part, "")


def read_part(slot: PartType, spec: Any, path: str) -> Any:
    """The part that a name or a mapping makes: what options and functions of Python call.

    Arguments:
        slot: what is expected.
        spec: a name or a mapping with ``name``.
        path: the option, for the messages.

    Raises:
        ConfigError: lists every problem with its path.
        RegistryError: a provider is in trouble, and nothing else is wrong.
    """
    check_depth(spec, path)
    reader = ConfigParser(REGISTRY)
    part = reader.part(slot, spec, path)
    reader.finish()
    return part


def _slot(kind: str) -> PartType:
    check_kind(kind, NAMED_KINDS)
    return PartType((kind,))


def _describe(part: Any, path: str) -> dict[str, Any]:
    prepared = isinstance(part, functools.partial)
    cls: Any = part.func if prepared else type(part)
    try:
        name = REGISTRY.name_of(cls)
    except UnknownPartError as error:
        raise ConfigError([join(path, str(error), ": ")]) from error
    values: dict[str, Any] = {}
    for option in options_of(cls).values():
        place = join(path, option.name)
        value = (
            part.keywords.get(option.name, option.default)
            if prepared
            else getattr(part, option.name, REQUIRED)
        )
        if (
            value is REQUIRED
            and not prepared
            and not (option.positional and cls.kind in MODULE_KINDS)
        ):
            raise ConfigError([f"{place}: {cls.__name__} must keep this option as an attribute"])
        if value is None and option.default is None:
            # so that an object that was not given and one that only Python can give look the same
            continue
        data = as_data(value, place)
        if data is not NOT_DATA:
            values[option.name] = data
        elif cls.kind not in MODULE_KINDS and value is not option.default:
            raise ConfigError([f"{place}: {show(value)} cannot be written in a configuration"])
    return {"name": name, **values}


def as_data(value: Any, path: str) -> Any:
    """The value as a configuration has it, or :data:`NOT_DATA`.

    Arguments:
        value: of an option.
        path: of the option, for the message.

    Raises:
        ConfigError: a part in it is not registered, or has an option that is not data.
    """
    if value is None or isinstance(value, bool | int | float | str):
        return value
    if isinstance(value, PurePath):
        return str(value)
    if isinstance(value, tuple | list):
        items = [as_data(item, f"{path}[{index}]") for index, item in enumerate(value)]
        return NOT_DATA if any(item is NOT_DATA for item in items) else items
    if isinstance(value, Mapping):
        data = {str(key): as_data(item, f"{path}.{key}") for key, item in value.items()}
        return NOT_DATA if any(item is NOT_DATA for item in data.values()) else data
    if getattr(value, "kind", None) in {*CLASS_KINDS, "start"}.difference(MODULE_KINDS):
        described = _describe(value, path)
        return described if len(described) > 1 else described["name"]
    return NOT_DATA
