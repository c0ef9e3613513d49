"""The options of a part.

Their names, types, bounds and defaults, read from the class that has them. The options of a
dataclass are its fields; those of any other class are the parameters of its ``__init__``. An option
whose type is the base class of a kind of part (``RootSolver``, ``ODESolver | None``,
``tuple[Backend, ...]``) is a *slot*: it holds parts.
"""

from __future__ import annotations

import dataclasses
import functools
import inspect
import types
import typing
from abc import ABCMeta
from collections.abc import Iterator, Mapping
from typing import Any, TypeVar

from implicitcore.errors import ConfigError, PluginError, describe_error, did_you_mean, show
from implicitcore.options.annotations import advice_for, slot_of
from implicitcore.options.option import REQUIRED, Option
from implicitcore.options.signatures import CallSignature, call_signature

T = TypeVar("T")


class PartMeta(ABCMeta):
    """The class of the classes of parts: a call that does not fit is a :class:`ConfigError`.

    It says what building the part by its name says: every problem, the near matches and the options
    that there are. A call that fits costs one comparison of names.
    """

    def __call__(cls: type[T], *args: Any, **options: Any) -> T:
        call = call_signature(cls)
        if call.closed and (len(args) > len(call.positional) or options.keys() - call.parameters):
            raise ConfigError(_problems(cls, args, options))
        try:
            return type.__call__(cls, *args, **options)
        except (TypeError, ValueError, RuntimeError) as error:
            # A TypeError may come from anywhere in an __init__ that takes any name.
            about_call = call.closed or "argument" in str(error)
            problems = _problems(cls, args, options) if about_call else []
            if len(problems) <= len(getattr(error, "problems", ())):
                raise
            raise ConfigError(problems) from None

    @property
    def __signature__(cls) -> inspect.Signature:
        return call_signature(cls).signature

    def checked_options(cls) -> Mapping[str, Option]:
        """The options whose values are checked when an object is made; none by default."""
        return {}


class CheckedMeta(PartMeta):
    """The class of the classes of modules that check each option before a new one is made.

    What an option reads (a part by its name, an int for a float) is what ``__init__`` is given. A
    subclass keeps every option as an attribute of the same name.
    """

    def __call__(cls: Any, *args: Any, **options: Any) -> Any:
        checked, places = cls.checked_options(), call_signature(cls).positional
        given = {**dict(zip(places, args, strict=False)), **options}
        read = {name: checked[name].read(value) for name, value in given.items() if name in checked}
        if any(problems for _, problems in read.values()):
            raise ConfigError(_problems(cls, args, options))
        values = {name: value for name, (value, _) in read.items()}
        by_place = [values.get(name, value) for name, value in zip(places, args, strict=False)]
        by_name = {name: values.get(name, value) for name, value in options.items()}
        return super().__call__(*by_place, *args[len(by_place) :], **by_name)

    def checked_options(cls) -> Mapping[str, Option]:
        """All of them."""
        return options_of(cls)


class Options(metaclass=PartMeta):
    """Base of the parts that are frozen dataclasses: each field is checked when an object is made.

    >>> from implicitcore import Anderson
    >>> Anderson(tol=1).tol
    1.0
    >>> Anderson(depth=0, damping=2)
    Traceback (most recent call last):
    implicitcore.errors.ConfigError: 2 problems:
      depth: expected a number greater than or equal to 1, received 0
      damping: expected a number less than or equal to 1, received 2
    """

    def __post_init__(self) -> None:
        problems: list[str] = []
        for option in options_of(type(self)).values():
            given = getattr(self, option.name)
            value, found = option.read(given)
            problems += found
            if value is not given:
                object.__setattr__(self, option.name, value)
        if problems:
            raise ConfigError(problems)

    @classmethod
    def checked_options(cls) -> Mapping[str, Option]:
        """All of them."""
        return options_of(cls)


@functools.cache
def options_of(cls: type) -> Mapping[str, Option]:
    """The options of a class, in the order of its definition.

    Arguments:
        cls: a dataclass, or a class with an annotated ``__init__``; where that takes ``**options``,
            those of the base class follow.

    Raises:
        PluginError: an annotation names something that is not there at run time.
    """
    found = _fields(cls) if dataclasses.is_dataclass(cls) else _parameters(cls)
    return types.MappingProxyType({option.name: option for option in found})


def _fields(cls: type) -> Iterator[Option]:
    hints = _hints(cls, cls)
    # In the order of a call: what goes by keyword alone comes last, an inherited field too.
    for field in sorted(dataclasses.fields(cls), key=lambda field: field.kw_only is True):
        if field.init:
            default = REQUIRED if field.default is dataclasses.MISSING else field.default
            if field.default_factory is not dataclasses.MISSING:
                default = field.default_factory()
            yield Option(field.name, hints[field.name], default, slot_of(hints[field.name]))


def _parameters(cls: type) -> Iterator[Option]:
    for initialiser in call_signature(cls).initialisers:
        hints = _hints(initialiser.function, cls)
        for parameter in initialiser.parameters:
            annotation = hints.get(parameter.name, Any)
            required = parameter.default is REQUIRED
            positional = required and parameter.kind is not parameter.KEYWORD_ONLY
            slot = slot_of(annotation)
            yield Option(parameter.name, annotation, parameter.default, slot, positional)


def _hints(annotated: Any, cls: type) -> dict[str, Any]:
    try:
        return typing.get_type_hints(annotated, include_extras=True)
    except NameError as error:
        raise PluginError(
            f"{cls.__qualname__}: {error}, but the type of an option needs it: import it "
            "outside `if TYPE_CHECKING`"
        ) from error
    except Exception as error:  # an annotation is code of the part
        raise PluginError(
            f"{cls.__qualname__}: the type of an option cannot be read: {describe_error(error)}"
        ) from error


def unknown_option(name: object, owner: str, known: Mapping[str, Any]) -> str:
    """What is said of an option that there is not: the near matches, and those that there are.

    Arguments:
        name: what was given.
        owner: the part, as the reader called it.
        known: its options by name; those given by position are not listed.
    """
    listed = sorted(
        key for key, option in known.items() if not getattr(option, "positional", False)
    )
    near, there = did_you_mean(name, known), ", ".join(listed) or "none"
    return f"{name}: unknown option of {owner}{near} (options: {there}{_inside(name, known)})"


def _inside(name: object, known: Mapping[str, Any]) -> str:
    """That a name is another word for an option, or an option of a part among the defaults."""
    for slot, option in known.items():
        if advice := advice_for(name, getattr(option, "annotation", None)):
            return f"; {advice}"
        part = option.default if getattr(option, "slot", None) else None
        if name in getattr(type(part), "__dataclass_fields__", ()):
            return f'; {name} is one of the {slot}: {slot}={{"name": ..., "{name}": ...}}'
    return ""


def _problems(cls: Any, args: tuple[Any, ...], given: Mapping[str, Any]) -> list[str]:
    """Everything that is wrong with a call: names, positions, what is missing, then the values."""
    call = call_signature(cls)
    try:
        known: Mapping[str, Any] = options_of(cls)
    except PluginError:  # a type that cannot be read is no reason to hide the names
        known = call.parameters
    by_place = dict(zip(call.positional, args, strict=False))
    missing = [name for name in call.required if name not in given and name not in by_place]
    checked = cls.checked_options()
    values = {name: value for name, value in {**by_place, **given}.items() if name in checked}
    return [
        *_too_many(cls, call, args),
        *(f"{name}: given twice, by name and by position" for name in by_place if name in given),
        *(unknown_option(name, cls.__name__, known) for name in given if name not in known),
        *(f"{name}: required by {cls.__name__}{_type_of(known[name])}" for name in missing),
        *(line for name, value in values.items() for line in checked[name].read(value)[1]),
    ]


def _too_many(cls: type, call: CallSignature, args: tuple[Any, ...]) -> list[str]:
    """A sentence where more is given by position than the class takes."""
    if len(args) <= len(call.positional):
        return []
    extra = ", ".join(map(show, args[len(call.positional) :]))
    if not call.parameters:
        return [f"{cls.__name__} takes no options; received {extra}"]
    first = next((name for name in call.parameters if name not in call.positional), None)
    example = f", as in {cls.__name__}({first}=...)" if first else ""
    beside = f" beside {', '.join(call.positional)}" if call.positional else ""
    return [
        f"{cls.__name__} takes its options by name{beside}{example}; received {extra} by position"
    ]


def _type_of(option: Any) -> str:
    return f": {option.type_text}" if isinstance(option, Option) else ""
