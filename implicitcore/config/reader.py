"""Reads specifications of parts.

A name, a mapping with its ``name`` and options, or the part itself.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from implicitcore.config.auto_backend import candidates, choose
from implicitcore.errors import (
    AmbiguousPartError,
    ConfigError,
    PluginError,
    RegistryError,
    UnknownPartError,
    show,
    with_article,
)
from implicitcore.options.annotations import PartType
from implicitcore.options.option import Option
from implicitcore.options.options import options_of, unknown_option

if TYPE_CHECKING:
    from implicitcore.registry.registry import Registry

FAILED: Any = object()
"""Stands for a part or a value that has a problem: the search for further problems goes on."""


class ConfigParser:
    """Turns specifications into parts, and collects every problem on the way.

    Arguments:
        registry: knows the names.

    Attributes:
        problems: those found so far, each with its path.
    """

    def __init__(self, registry: Registry) -> None:
        self.problems: list[str] = []
        self._registry = registry
        self._trouble: RegistryError | None = None

    def finish(self) -> None:
        """Raise what was found.

        Trouble with a provider, where there is nothing else, as what it is.
        """
        if self._trouble is not None and len(self.problems) == 1:
            raise type(self._trouble)(self.problems[0]) from self._trouble
        if self.problems:
            raise ConfigError(self.problems) from self._trouble

    def part(
        self,
        slot: PartType,
        spec: Any,
        path: str,
        args: Sequence[Any] = (),
        more: Mapping[str, Any] | None = None,
    ) -> Any:
        """The part, or ``FAILED``."""
        if isinstance(spec, str | Mapping):
            cls, name, options = self._class(slot, spec, path, more or {})
            part = FAILED if cls is FAILED else self._make(cls, name, options, path, args)
        elif args or more:
            return self._fail(path, f"options and arguments go with a name, not with {show(spec)}")
        else:
            part = spec
        problem = "" if part is FAILED else slot.problem(part)
        return self._fail(path, problem) if problem else part

    def prepared(self, slot: PartType, spec: Any, path: str, more: Mapping[str, Any]) -> Any:
        """The class of the part with its options, but for those that only Python can give.

        Or ``FAILED``.
        """
        if not isinstance(spec, str | Mapping):
            return self._fail(
                path,
                f"expected the name of {with_article(str(slot))} or a mapping with it, "
                f"received {show(spec)}",
            )
        cls, name, options = self._class(slot, spec, path, more)
        if cls is FAILED:
            return FAILED
        return functools.partial(
            cls, **self._options(options_of(cls), name, options, path, whole=False)
        )

    def _class(
        self, slot: PartType, spec: str | Mapping[str, Any], path: str, more: Mapping[str, Any]
    ) -> tuple[Any, str, dict[str, Any]]:
        """The class that a specification names, or ``FAILED``.

        The name and the options beside it.
        """
        options = {**({"name": spec} if isinstance(spec, str) else spec), **more}
        name = options.pop("name", None)
        if isinstance(name, str):
            is_auto = (slot.kinds, name) == (("backend",), "auto")
            cls = (
                type(choose(candidates(self._registry)).backend)
                if is_auto
                else self._find(slot, name, path)
            )
            return cls, name, options
        return (
            self._fail(
                path, f"needs a 'name', the name of a registered {slot}; received {show(name)}"
            ),
            "",
            options,
        )

    def _find(self, slot: PartType, name: str, path: str) -> Any:
        """The class of that name in one of the slot's kinds, or ``FAILED``."""
        found, unknown = [], []
        try:
            for kind in slot.kinds:
                try:
                    found.append(self._registry.find(kind, name))
                except UnknownPartError as error:
                    unknown.append(str(error))
            if len(found) == 1:
                return found[0].load()
        except (AmbiguousPartError, PluginError) as error:
            self._trouble = error
            return self._fail(path, str(error))
        if found:
            return self._fail(
                path,
                f"{name!r} is the name of several parts; create the one you mean: "
                f"{' or '.join(map(str, found))}",
            )
        hint = (
            " (a configuration names registered parts, never an import path)"
            if {":", "."} & set(name)
            else ""
        )
        return self._fail(path, " and ".join(unknown) + hint)

    def _make(
        self, cls: type, owner: str, spec: Mapping[str, Any], path: str, args: Sequence[Any]
    ) -> Any:
        known = options_of(cls)
        positional = [option.name for option in known.values() if option.positional]
        before = len(self.problems)
        if len(args) > len(positional):
            self._fail(
                path, f"{owner} takes {len(positional)} positional arguments, received {len(args)}"
            )
        given = dict(zip(positional, args, strict=False))
        for name in given.keys() & spec.keys():
            self._fail(join(path, name), f"given to {owner} twice, by name and by position")
        values = self._options(known, owner, {**spec, **given}, path)
        if len(self.problems) > before:
            return FAILED
        arguments = [values.pop(name) for name in positional]
        try:
            return cls(*arguments, **values)
        except ConfigError as error:
            self.problems += [join(path, problem) for problem in error.problems]
            return FAILED

    def _options(
        self,
        known: Mapping[str, Option],
        owner: str,
        spec: Mapping[str, Any],
        path: str,
        *,
        whole: bool = True,
    ) -> dict[str, Any]:
        """The values of the options that were given.

        Only where they are not the whole, what Python alone can give may be missing.
        """
        values = {}
        for key, value in spec.items():
            if key in known and not whole and known[key].from_python:
                self._fail(join(path, key), f"given to {owner} from Python, not by a configuration")
            elif key in known:
                values[key] = self._value(known[key], value, path)
            else:
                self.problems.append(join(path, unknown_option(key, owner, known)))
        for option in known.values():
            if option.required and option.name not in spec and (whole or not option.from_python):
                self._fail(join(path, option.name), f"required by {owner}: {option.type_text}")
        return values

    def _value(self, option: Option, value: Any, path: str) -> Any:
        if option.slot is not None:
            return self._slot(option.slot, value, join(path, option.name))
        value, problems = option.read(value, from_config=True)
        self.problems += [join(path, problem) for problem in problems]
        return value

    def _slot(self, slot: PartType, value: Any, path: str) -> Any:
        if value is None and slot.optional:
            return None
        if not slot.many:
            return self.part(slot, value, path)
        if isinstance(value, str) or not isinstance(value, Sequence):
            return self._fail(path, f"expected a list of {slot}, received {show(value)}")
        item = dataclasses.replace(slot, many=False, optional=False)
        return tuple(self.part(item, spec, f"{path}[{index}]") for index, spec in enumerate(value))

    def _fail(self, path: str, problem: str) -> Any:
        self.problems.append(join(path, problem, ": "))
        return FAILED


def join(path: str, rest: str, separator: str = ".") -> str:
    """A path and what follows it."""
    return f"{path}{separator}{rest}" if path else rest
