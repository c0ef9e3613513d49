"""One option of a part: its name, type, bounds and default."""

from __future__ import annotations

import dataclasses
import functools
import inspect
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from pydantic import (
    ConfigDict,
    PydanticInvalidForJsonSchema,
    PydanticUserError,
    TypeAdapter,
    ValidationError,
)

from implicitcore.errors import ConfigError, show
from implicitcore.lazy import provided
from implicitcore.options.annotations import PartType, bounds_text, plain, type_text

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


LARGEST = 2**63 - 1
"""The largest whole number that torch can read."""


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
        """Check a value, and convert it where nothing is lost: an int for a float, say.

        Arguments:
            value: what was given; where the option holds parts, the parts themselves, their names
                or mappings.
            from_config: numbers may be texts, as YAML has ``1e-5``.

        Returns:
            The value to use and the problems, each beginning with the option's name.

        Raises:
            RegistryError: a name is ambiguous, or the code of the part that it names cannot be
                imported.
        """
        if self.slot is not None:
            return self._read_parts(value, self.slot)
        # Lax conversion, except that True is not 1 and that code, unlike a configuration, can write
        # a number.
        strict = isinstance(value, bool) or (isinstance(value, str) and not from_config)
        try:
            found = self._adapter.validate_python(value, strict=strict)
        except ValidationError as error:
            return value, self._problems(error, value)
        if any(isinstance(item, int) and abs(item) > LARGEST for item in _flat(found)):
            limit = "no number has more than 63 bits"
            return value, [f"{self.name}: {limit}, received {show(value)}"]
        return found, []

    def _read_parts(self, value: Any, slot: PartType) -> tuple[Any, list[str]]:
        if not slot.many:
            return read_part(value, slot, self.name)
        if value is None and slot.optional:
            return None, []
        if isinstance(value, str) or not isinstance(value, Sequence):
            return value, [f"{self.name}: expected a list of {slot}, received {show(value)}"]
        one = dataclasses.replace(slot, many=False, optional=False)
        read = [read_part(item, one, f"{self.name}[{i}]") for i, item in enumerate(value)]
        return tuple(part for part, _ in read), [line for _, found in read for line in found]

    @functools.cached_property
    def _adapter(self) -> TypeAdapter[Any]:
        # No option of a part is infinite: a tolerance that everything meets, a step without an end.
        settings = ConfigDict(arbitrary_types_allowed=True, allow_inf_nan=False)
        try:
            return TypeAdapter(self.annotation, config=settings)
        except PydanticUserError:
            # A dataclass or a model brings its own settings and refuses others.
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


def _expected(code: str, message: str) -> str:
    """pydantic's message in our words."""
    text = message.removeprefix("Input should be ").split(", unable to parse")[0]
    text = text.replace("a valid integer", "an integer").replace("a valid ", "a ")
    if text == message:
        return message
    return f"expected a number {text}" if code in _NUMBER_BOUNDS else f"expected {text}"


def read_part(value: Any, slot: PartType, path: str) -> tuple[Any, list[str]]:
    """The part, and what is wrong with it; names and mappings become the parts that they name.

    Arguments:
        value: a part, a name or a mapping.
        slot: what is expected.
        path: the option, for the messages.

    Raises:
        RegistryError: a name is ambiguous, or the code of the part that it names cannot be
            imported.
    """
    if not isinstance(value, str | Mapping):
        problem = slot.problem(value)
        return value, [f"{path}: {problem}"] if problem else []
    try:
        return provided("read_part")(slot, value, path), []
    except ConfigError as error:
        return value, list(error.problems)


def _flat(value: Any) -> tuple[Any, ...]:
    return value if isinstance(value, tuple) else (value,)
