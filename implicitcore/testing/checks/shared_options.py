"""What the parts promise whose options are the fields of a dataclass."""

from __future__ import annotations

import copy
import dataclasses
import json
import math
import pickle
from typing import Any

from implicitcore.config.build import create, describe
from implicitcore.errors import ConfigError, UnknownPartError
from implicitcore.options.kinds import CLASS_KINDS, DATA_KINDS, PIECE_KINDS
from implicitcore.options.options import options_of
from implicitcore.registry.registry import REGISTRY
from implicitcore.testing.check import contract
from implicitcore.testing.expect import NotApplicable, expect
from implicitcore.testing.factory import Maker
from implicitcore.testing.options import parts_in
from implicitcore.testing.subjects import MADE_FROM_CELLS

OBJECT_KINDS = (*(kind for kind in CLASS_KINDS if kind not in MADE_FROM_CELLS), *DATA_KINDS)
DATACLASS_KINDS = tuple(kind for kind in OBJECT_KINDS if kind != "backend")
CHECKED_KINDS = (*OBJECT_KINDS, *PIECE_KINDS)


@contract(*DATACLASS_KINDS)
def is_a_frozen_dataclass(part: Any) -> None:
    """Is a frozen dataclass: comparable and hashable."""
    cls = type(part)
    frozen = dataclasses.is_dataclass(cls) and cls.__dataclass_params__.frozen  # pyright: ignore[reportAttributeAccessIssue]
    expect(frozen, f"looked at {cls.__name__}", "another class", "@dataclass(frozen=True)")
    twin = dataclasses.replace(part)
    expect(twin == part, "compared the part with its copy", "unequal", "equal")
    expect(hash(twin) == hash(part), "hashed the part and its copy", "two values", "one")


@contract(*OBJECT_KINDS)
def deepcopy(part: Any) -> None:
    """A deep copy is its equal, and shares no parameter."""
    twin = copy.deepcopy(part)
    expect(_same(twin, part), "copied the part", twin, part)


@contract(*OBJECT_KINDS)
def pickle_round_trip(part: Any) -> None:
    """Pickled and loaded it is its equal."""
    twin = pickle.loads(pickle.dumps(part))  # noqa: S301 - our own bytes
    expect(_same(twin, part), "pickled the part", twin, part)


@contract(*OBJECT_KINDS)
def config_round_trip(part: Any) -> None:
    """The configuration of a registered part is data, and builds its equal."""
    for inner in parts_in(part):
        try:
            REGISTRY.find_class(type(inner))
        except UnknownPartError as error:
            raise NotApplicable(str(error)) from error
    config = json.loads(json.dumps(describe(part)))
    twin = create(part.kind, config)
    expect(_same(twin, part), f"created a part from {config}", twin, part)


@contract(*CHECKED_KINDS)
def refuses_a_value_of_another_type(subject: Any) -> None:
    """A value of another type than an option's annotation is an error."""
    part = _made(subject)
    options = [option for option in options_of(type(part)).values() if option.annotation is not Any]
    if not options:
        raise NotApplicable(f"{type(part).__name__} has no options")
    for option in options:
        values = {name: getattr(part, name) for name in options_of(type(part))}
        try:
            type(part)(**{**values, option.name: object()})
        except (TypeError, ValueError):
            continue
        expect(
            False,
            f"gave {option.name} an object()",
            "no error",
            f"a ConfigError that asks for {option.type_text}; derive from Options",
        )


@contract(*CHECKED_KINDS)
def refuses_an_unknown_option(subject: Any) -> None:
    """A misspelt option, and one value too many, are a ConfigError that says so."""
    cls = type(_made(subject))
    extra = (object(),) * (1 + len(options_of(cls)))
    for did, args, options in (
        ("gave it no_such_option=1", (), {"no_such_option": 1}),
        ("gave it more values than it has options", extra, {}),
    ):
        try:
            cls(*args, **options)
        except ConfigError:
            continue
        except TypeError as error:
            found: object = f"a TypeError: {error}"
        else:
            found = "no error"
        expect(False, did, found, "a ConfigError; derive from the base class of its kind")


@contract(*CHECKED_KINDS)
def refuses_an_infinite_value(subject: Any) -> None:
    """An option that is infinite is an error."""
    part = _made(subject)
    cls = type(part)
    options = [item for item in options_of(cls).values() if "float" in item.type_text]
    if not options:
        raise NotApplicable(f"{cls.__name__} has no option that is a float")
    for option in options:
        values = {name: getattr(part, name) for name in options_of(cls)}
        try:
            cls(**{**values, option.name: math.inf})
        except ConfigError:
            continue
        expect(False, f"gave {option.name} an infinity", "no error", "a ConfigError")


def _made(subject: Any) -> Any:
    return subject.make() if isinstance(subject, Maker) else subject


def _same(a: Any, b: Any) -> bool:
    return type(a) is type(b) and all(
        getattr(a, name) == getattr(b, name) for name in options_of(type(a))
    )
