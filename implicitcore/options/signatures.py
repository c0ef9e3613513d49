"""How a class is called: the parameters of its ``__init__``, and those that ``**options`` pass on.

``**options: Unpack[Names]`` passes on the options that a TypedDict names, and a plain ``**options``
all that the base class takes.
"""

from __future__ import annotations

import functools
import inspect
import types
import typing
from collections.abc import Iterator
from dataclasses import dataclass
from inspect import Parameter
from typing import Any


@dataclass(frozen=True)
class Initialiser:
    """One ``__init__`` among those that a call reaches.

    Attributes:
        function: the method.
        parameters: those that can be given here: not what a subclass gives itself, or keeps back.
    """

    function: Any
    parameters: tuple[Parameter, ...]


@dataclass(frozen=True)
class CallSignature:
    """What a class can be called with.

    Attributes:
        initialisers: its ``__init__``, then those that its ``**options`` reach.
        closed: every name that it takes is known: no ``*args``, and no ``**options`` without a
            TypedDict.
    """

    initialisers: tuple[Initialiser, ...]
    closed: bool

    @functools.cached_property
    def parameters(self) -> dict[str, Parameter]:
        """By name; what is passed on to a base class goes by keyword."""
        own, *passed = [item.parameters for item in self.initialisers] or [()]
        inherited = [
            item.replace(kind=Parameter.KEYWORD_ONLY) for found in passed for item in found
        ]
        return {item.name: item for item in (*own, *inherited)}

    @functools.cached_property
    def positional(self) -> tuple[str, ...]:
        """The names of those that take a position."""
        by_name = (Parameter.KEYWORD_ONLY,)
        return tuple(name for name, item in self.parameters.items() if item.kind not in by_name)

    @functools.cached_property
    def required(self) -> tuple[str, ...]:
        """The names of those without a default."""
        return tuple(n for n, item in self.parameters.items() if item.default is Parameter.empty)

    @property
    def signature(self) -> inspect.Signature:
        """The same for :func:`inspect.signature`."""
        return inspect.Signature(sorted(self.parameters.values(), key=lambda item: item.kind))


@functools.cache
def call_signature(cls: type) -> CallSignature:
    """What a class can be called with."""
    found: list[Initialiser] = []
    seen = {"self"}
    accepted: frozenset[str] | None = None  # by the TypedDicts so far; None: any name
    closed = True
    for function in _functions(cls):
        parameters = inspect.signature(function).parameters.values()
        plain = [item for item in parameters if item.kind not in _VARIADIC]
        given = [item for item in plain if _can_be_given(item, accepted, passed=bool(found))]
        fresh = tuple(item for item in given if item.name not in seen)
        found.append(Initialiser(function, fresh))
        seen |= {item.name for item in plain}
        names = _passed_on(function)
        closed = closed and names is not None and _takes_no_args(function)
        if names is not None:
            accepted = names if accepted is None else accepted & names
    return CallSignature(tuple(found), closed)


_VARIADIC = (Parameter.VAR_POSITIONAL, Parameter.VAR_KEYWORD)


def _functions(cls: type) -> Iterator[Any]:
    """The class's ``__init__``, and those of the base classes that its ``**options`` reach."""
    for owner in cls.__mro__:
        function = vars(owner).get("__init__")
        if inspect.isfunction(function):
            yield function
            if _rest(function) is None:
                return


def _can_be_given(item: Parameter, accepted: frozenset[str] | None, *, passed: bool) -> bool:
    """Whether a call can give it; what a base class requires, the class that calls it gives."""
    if accepted is not None and item.name not in accepted:
        return False
    return not (passed and item.default is Parameter.empty)


def _rest(function: Any) -> Parameter | None:
    """The ``**options`` of a function."""
    parameters = inspect.signature(function).parameters.values()
    return next((item for item in parameters if item.kind is Parameter.VAR_KEYWORD), None)


def _takes_no_args(function: Any) -> bool:
    parameters = inspect.signature(function).parameters.values()
    return all(item.kind is not Parameter.VAR_POSITIONAL for item in parameters)


def _passed_on(function: Any) -> frozenset[str] | None:
    """The names that ``**options: Unpack[Names]`` takes, none without; None where it takes any."""
    rest = _rest(function)
    if rest is None:
        return frozenset()
    holder = types.SimpleNamespace(__annotations__={"it": rest.annotation})
    try:
        hint = typing.get_type_hints(holder, globalns=function.__globals__)["it"]
    except Exception:  # an annotation is code of the part
        return None
    named = typing.get_args(hint)[0] if typing.get_origin(hint) is typing.Unpack else None
    return frozenset(typing.get_type_hints(named)) if typing.is_typeddict(named) else None
