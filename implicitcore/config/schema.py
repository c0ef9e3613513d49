"""The JSON schema of configurations, from the registered parts.

Editors complete and check a file with it.
"""

from __future__ import annotations

import copy
import warnings
from collections.abc import Iterator
from typing import Any

from implicitcore.config.build import NOT_DATA, as_data
from implicitcore.errors import ConfigError, PluginError, PluginWarning
from implicitcore.options.annotations import PartType
from implicitcore.options.docstrings import first_paragraph, option_texts
from implicitcore.options.kinds import NAMED_KINDS, check_kind
from implicitcore.options.option import Option
from implicitcore.options.options import options_of
from implicitcore.registry.part import Part
from implicitcore.registry.registry import REGISTRY

DIALECT = "https://json-schema.org/draft/2020-12/schema"
_TEXTS = {
    "number": r"^\s*[-+]?(\d+\.?\d*|\.\d+)([eE][-+]?\d+)?\s*$",
    "integer": r"^\s*[-+]?\d+\s*$",
}
"""Numbers as texts, which a configuration may have for numbers: YAML 1.1 reads ``1e-5`` as one."""


def config_schema(kind: str = "layer", name: str | None = None) -> dict[str, Any]:
    """The JSON schema (draft 2020-12) of the configuration of a part.

    The configuration is a mapping with the part's ``name`` and options.
    What only Python can give, a layer's cell, is not in it.

    Arguments:
        kind: layer, dynamics, root_solver, ode_solver, gradient, backend, dataset or model.
        name: of the one part that the configuration is for; None for any of the kind.

    Raises:
        UnknownPartError: there is no such kind or part.
        AmbiguousPartError: several distributions provide the name.
        PluginError: the code of the named part cannot be imported. Of the others, such parts are
            left out with a warning.

    >>> definitions = config_schema("root_solver", "picard")["$defs"]
    >>> definitions["root_solver.picard"]["properties"]["damping"]["default"]
    1.0
    """
    check_kind(kind, NAMED_KINDS)
    builder = _Builder()
    if name is None:
        title = f"implicitcore {kind} configuration"
        schema = {"anyOf": [builder.mapping(part) for part, _ in builder.loaded(kind)]}
    else:
        part = REGISTRY.find(kind, name)
        part.load()
        title = f"implicitcore {kind} {part.name} configuration"
        schema = builder.mapping(part)
    return {
        "$schema": DIALECT,
        "title": title,
        **schema,
        "$defs": dict(sorted(builder.definitions.items())),
    }


class _Builder:
    """Collects the definitions that a schema refers to."""

    def __init__(self) -> None:
        self.definitions: dict[str, Any] = {}
        self._parts: dict[str, list[tuple[Part, type]]] = {}

    def loaded(self, kind: str) -> list[tuple[Part, type]]:
        """The parts of a kind with their classes."""
        if kind not in self._parts:
            self._parts[kind] = list(_load(kind))
        return self._parts[kind]

    def mapping(self, part: Part) -> dict[str, Any]:
        """A reference to the mapping that makes this part."""
        key = f"{part.kind}.{_names(part)[0]}"
        if key not in self.definitions:
            self.definitions[key] = {}  # for those in it that refer to it
            self.definitions[key] = self._mapping(part)
        return {"$ref": f"#/$defs/{key}"}

    def _mapping(self, part: Part) -> dict[str, Any]:
        cls = part.load()
        texts = option_texts(cls)
        options = [option for option in options_of(cls).values() if not option.from_python]
        properties = {
            option.name: self._option(option, texts.get(option.name)) for option in options
        }
        return {
            "type": "object",
            "title": f"{part.kind} {part.name}",
            "description": part.summary or first_paragraph(cls),
            "properties": {"name": {"enum": _names(part)}, **properties},
            "required": ["name", *(option.name for option in options if option.required)],
            "additionalProperties": False,
        }

    def _option(self, option: Option, text: str | None) -> dict[str, Any]:
        schema = self._slot(option.slot) if option.slot else self._value(option)
        known = {"description": text, "default": _default(option)}
        return schema | {key: value for key, value in known.items() if value is not None}

    def _value(self, option: Option) -> dict[str, Any]:
        schema = _with_texts(copy.deepcopy(option.schema))
        self.definitions |= schema.pop("$defs", {})
        return schema

    def _slot(self, slot: PartType) -> dict[str, Any]:
        kinds = [self._kind(kind, slot) for kind in slot.kinds]
        one = {"anyOf": kinds} if len(kinds) > 1 else kinds[0]
        held = {"type": "array", "items": one} if slot.many else one
        return {"anyOf": [held, {"type": "null"}]} if slot.optional else held

    def _kind(self, kind: str, slot: PartType) -> dict[str, Any]:
        """A part of a kind, as its name or a mapping.

        A reference, where every part of the kind will do.
        """
        fitting = [part for part, cls in self.loaded(kind) if issubclass(cls, slot.classes)]
        if len(fitting) < len(self.loaded(kind)):
            return self._any_of(kind, fitting)
        if kind not in self.definitions:
            self.definitions[kind] = {}
            self.definitions[kind] = self._any_of(kind, fitting)
        return {"$ref": f"#/$defs/{kind}"}

    def _any_of(self, kind: str, parts: list[Part]) -> dict[str, Any]:
        auto = ["auto"] if kind == "backend" else []
        names = [name for part in parts if not _required(part) for name in _names(part)]
        return {"anyOf": [{"enum": auto + names}, *map(self.mapping, parts)]}


def _load(kind: str) -> Iterator[tuple[Part, type]]:
    for part in REGISTRY.parts(kind):
        try:
            cls = part.load()
            options_of(cls)
        except PluginError as error:
            warnings.warn(f"left out of the schema: {error}", PluginWarning, stacklevel=2)
        else:
            yield part, cls


def _names(part: Part) -> list[str]:
    """What a configuration may call it.

    Its name, where no other distribution has it, and its qualified name.
    """
    shared = sum(part.name == other.name for other in REGISTRY.parts(part.kind)) > 1
    return [part.qualified_name] if shared else [part.name, part.qualified_name]


def _required(part: Part) -> bool:
    """Whether its name alone does not make it."""
    return any(option.required for option in options_of(part.load()).values())


def _default(option: Option) -> Any:
    """The default as data; None where there is none, or no configuration can have it."""
    try:
        data = as_data(option.default, option.name)
    except ConfigError:
        return None
    return None if data is NOT_DATA else data


def _with_texts(schema: Any) -> Any:
    """The schema with texts beside the numbers."""
    if isinstance(schema, list):
        return [_with_texts(item) for item in schema]
    if not isinstance(schema, dict):
        return schema
    number = next((number for number in _TEXTS if schema.get("type") == number), None)
    texts = {"type": [number, "string"], "pattern": _TEXTS[number]} if number else {}
    return {key: _with_texts(value) for key, value in schema.items()} | texts
