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
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from pydantic import (
    ConfigDict,
    PydanticInvalidForJsonSchema,
    PydanticUserError,
    TypeAdapter,
    ValidationError,
)

from implicitcore.errors import ConfigError, PluginError, describe_error, show
from implicitcore.options.annotations import PartType, bounds_text, plain, slot_of, type_text

REQUIRED = inspect.Parameter.empty
"""The default of an option that has none."""

DEFINITION = "#/$defs/{model}"
"""Where a JSON schema refers to the types that an option has of its own."""

_NUMBER_BOUNDS = (
    "greater_than",
    "greater_than_equal",
    "less_than",
    "less_than_equal",
    "multiple_of",
)


@dataclass(frozen=True)
class Option:
    """One option of a part.

    Attributes:
        name: the keyword.
        annotation: its type with its bounds.
        default: its default, or :data:`REQUIRED`.
        slot: what it holds where it holds parts, else None.
        positional: it has no default and may be given by position, as a layer's cell is.
    """

    name: str
    annotation: Any
    default: Any = REQUIRED
    slot: PartType | None = None
    positional: bool = False

    @property
    def required(self) -> bool:
        """Whether it has no default."""
        return self.default is REQUIRED

    @property
    def type_text(self) -> str:
        """The type as a reader writes it: ``float``, ``int | None``, ``root_solver``."""
        if self.slot is None:
            return type_text(plain(self.annotation))
        text = f"list of {self.slot}" if self.slot.many else str(self.slot)
        return f"{text} or None" if self.slot.optional else text

    @property
    def bounds_text(self) -> str:
        """The bounds: ``> 0, <= 1``; empty where there are none."""
        return bounds_text(self.annotation)

    @functools.cached_property
    def schema(self) -> dict[str, Any] | None:
        """The JSON schema of the values that a configuration can give it.

        None where it holds parts, or modules and functions.
        """
        if self.slot is not None:
            return None
        try:
            return self._adapter.json_schema(ref_template=DEFINITION)
        except PydanticInvalidForJsonSchema:
            return None

    @property
    def from_python(self) -> bool:
        """Whether only Python can give it, and no configuration: a module or a function."""
        return self.slot is None and self.schema is None

    def read(self, value: Any, *, from_config: bool = False) -> tuple[Any, list[str]]:
        """Check a value, and convert it where nothing is lost (an int for a float, a list for a tuple).

        Arguments:
            value: what was given; where the option holds parts, the parts themselves.
            from_config: numbers may be texts, as YAML has ``1e-5``.

        Returns:
            The value to use and the problems, each beginning with the option's name.
        """
        if self.slot is not None:
            return self._read_parts(value, self.slot)
        # Lax conversion, except that True is not 1 and that code, unlike a configuration, can write
        # a number.
        strict = isinstance(value, bool) or (isinstance(value, str) and not from_config)
        try:
            return self._adapter.validate_python(value, strict=strict), []
        except ValidationError as error:
            return value, self._problems(error, value)

    def _read_parts(self, value: Any, slot: PartType) -> tuple[Any, list[str]]:
        if not slot.many:
            problem = slot.problem(value)
            return value, [f"{self.name}: {problem}{_use_names(value)}"] if problem else []
        if value is None and slot.optional:
            return None, []
        if isinstance(value, str) or not isinstance(value, Sequence):
            return value, [f"{self.name}: expected a list of {slot}, received {show(value)}"]
        checked = [(index, item, slot.problem(item)) for index, item in enumerate(value)]
        return tuple(value), [
            f"{self.name}[{index}]: {problem}{_use_names(item)}"
            for index, item, problem in checked
            if problem
        ]

    @functools.cached_property
    def _adapter(self) -> TypeAdapter[Any]:
        try:
            return TypeAdapter(self.annotation, config=ConfigDict(arbitrary_types_allowed=True))
        except (
            PydanticUserError
        ):  # a dataclass or a model brings its own settings and refuses others
            return TypeAdapter(self.annotation)

    def _problems(self, error: ValidationError, value: Any) -> list[str]:
        """One line per place in the value; the branches of a union share theirs."""
        places: dict[str, list[str]] = {}
        received: dict[str, Any] = {}
        for detail in error.errors(include_url=False):
            place = "".join(f"[{step}]" for step in detail["loc"] if isinstance(step, int))
            received[place] = detail["input"] if place else value
            phrase = _expected(detail["type"], detail["msg"])
            if phrase not in places.setdefault(place, []):
                places[place].append(phrase)
        return [
            f"{self.name}{place}: {' or '.join(phrases)}, received {show(received[place])}"
            for place, phrases in places.items()
        ]


class Options:
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
    for field in dataclasses.fields(cls):
        if field.init:
            default = REQUIRED if field.default is dataclasses.MISSING else field.default
            if field.default_factory is not dataclasses.MISSING:
                default = field.default_factory()
            yield Option(field.name, hints[field.name], default, slot_of(hints[field.name]))


def _parameters(cls: type) -> Iterator[Option]:
    seen = {"self"}
    for depth, function in enumerate(_initialisers(cls)):
        hints = _hints(function, cls)
        for name, parameter in inspect.signature(function).parameters.items():
            required = parameter.default is REQUIRED
            # What the __init__ of a base class requires, the class that calls it gives.
            is_option = parameter.kind not in (
                parameter.VAR_POSITIONAL,
                parameter.VAR_KEYWORD,
            ) and not (required and depth > 0)
            if is_option and name not in seen:
                annotation = hints.get(name, Any)
                positional = required and parameter.kind is not parameter.KEYWORD_ONLY
                yield Option(name, annotation, parameter.default, slot_of(annotation), positional)
            seen.add(name)


def _initialisers(cls: type) -> Iterator[types.FunctionType]:
    """The class's ``__init__``, and those of the base classes that its ``**options`` reach."""
    for owner in cls.__mro__:
        function = vars(owner).get("__init__")
        if inspect.isfunction(function):
            yield function
            if all(
                parameter.kind is not parameter.VAR_KEYWORD
                for parameter in inspect.signature(function).parameters.values()
            ):
                return


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


def _expected(code: str, message: str) -> str:
    """pydantic's message in our words."""
    text = message.removeprefix("Input should be ").split(", unable to parse")[0]
    text = text.replace("a valid integer", "an integer").replace("a valid ", "a ")
    if text == message:
        return message
    return f"expected a number {text}" if code in _NUMBER_BOUNDS else f"expected {text}"


def _use_names(value: Any) -> str:
    """What to do about a name in a slot of an object that is built directly."""
    is_spec = isinstance(value, str | Mapping)
    return (
        "; pass an object, or use implicitcore.build or implicitcore.create, which take names"
        if is_spec
        else ""
    )
