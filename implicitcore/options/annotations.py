"""What the type annotation of an option says.

Which parts it takes, its bounds, its type in words.
"""

from __future__ import annotations

import inspect
import types
import typing
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from annotated_types import Ge, GroupedMetadata, Gt, Le, Lt, MaxLen, MinLen, MultipleOf

from implicitcore.errors import show, with_article
from implicitcore.options.kinds import NAMED_KINDS

_BOUNDS: dict[type, tuple[str, str]] = {
    Gt: ("gt", ">"),
    Ge: ("ge", ">="),
    Lt: ("lt", "<"),
    Le: ("le", "<="),
    MultipleOf: ("multiple_of", "a multiple of"),
    MinLen: ("min_length", "length >="),
    MaxLen: ("max_length", "length <="),
}


@dataclass(frozen=True)
class OtherWords:
    """Under which other names an option is looked for, in its annotation.

    Attributes:
        names: no options themselves, and too far from its name for a near match.
        advice: what is said then.
    """

    names: tuple[str, ...]
    advice: str


@dataclass(frozen=True)
class PartType:
    """What an option that holds parts takes.

    Attributes:
        kinds: the kinds of part.
        classes: the base classes among those kinds; empty for any.
        many: it holds a tuple of them.
        optional: it may be None.
    """

    kinds: tuple[str, ...]
    classes: tuple[type, ...] = ()
    many: bool = False
    optional: bool = False

    def __str__(self) -> str:
        return " or ".join(self.kinds)

    def problem(self, value: Any) -> str:
        """Why that cannot stand here, though names and mappings are resolved.

        Empty where it can.
        """
        if value is None and self.optional:
            return ""
        if _kind(type(value)) in self.kinds:
            if not self.classes or isinstance(value, self.classes):
                return ""
            names = " or ".join(cls.__name__ for cls in self.classes)
            return f"expected {with_article(names)}, received {show(value)}"
        if isinstance(value, type):
            return (
                f"expected {with_article(str(self))} object, received the class "
                f"{value.__name__}; call it: {value.__name__}()"
            )
        return f"expected {with_article(str(self))}, received {show(value)}"


def slot_of(annotation: Any) -> PartType | None:
    """What the option holds, where its type names base classes of parts."""
    members = _union(plain(annotation))
    many = [typing.get_args(member)[0] for member in members if _is_many(member)]
    classes = tuple(cls for member in many or members for cls in _union(member) if _kind(cls))
    kinds = tuple(dict.fromkeys(map(_kind, classes)))
    return (
        PartType(kinds, classes, many=bool(many), optional=type(None) in members)
        if classes
        else None
    )


def _is_many(annotation: Any) -> bool:
    origin = typing.get_origin(annotation)
    items = typing.get_args(annotation)[:1]
    return (
        isinstance(origin, type)
        and issubclass(origin, Sequence)
        and any(_kind(cls) for item in items for cls in _union(item))
    )


def _kind(cls: Any) -> str:
    kind = getattr(cls, "kind", None) if isinstance(cls, type) else None
    return kind if kind in NAMED_KINDS else ""


def _union(annotation: Any) -> tuple[Any, ...]:
    is_union = typing.get_origin(annotation) in (typing.Union, types.UnionType)
    return typing.get_args(annotation) if is_union else (annotation,)


def plain(annotation: Any) -> Any:
    """The annotation without bounds, at every depth."""
    return typing.get_type_hints(types.SimpleNamespace(__annotations__={"it": annotation}))["it"]


def type_text(annotation: Any) -> str:
    """The type as a reader writes it: ``float``, ``int | None``, ``'a' | 'b'``."""
    members = _union(annotation)
    if typing.get_origin(annotation) is typing.Literal:
        return " | ".join(map(repr, typing.get_args(annotation)))
    if len(members) > 1:
        return " | ".join(map(type_text, members))
    if isinstance(annotation, type):
        return "None" if annotation is type(None) else annotation.__name__
    return (
        inspect.formatannotation(annotation).replace("collections.abc.", "").replace("typing.", "")
    )


def bounds_text(annotation: Any) -> str:
    """The bounds: ``> 0, <= 1``; empty where there are none."""
    found = [mark for mark in _metadata(annotation) if type(mark) in _BOUNDS]
    return ", ".join(
        f"{_BOUNDS[type(mark)][1]} {getattr(mark, _BOUNDS[type(mark)][0])}" for mark in found
    )


def advice_for(name: object, annotation: Any) -> str:
    """What is said to who looks for the option under such a name; empty where it is not one."""
    found = (mark for mark in _metadata(annotation) if isinstance(mark, OtherWords))
    return next((mark.advice for mark in found if name in mark.names), "")


def _metadata(annotation: Any) -> Iterator[Any]:
    """The bounds and other marks in an annotation, at every depth."""
    for mark in getattr(annotation, "__metadata__", ()):
        for item in getattr(mark, "metadata", [mark]):  # pydantic's Field holds a list of them
            yield from item if isinstance(item, GroupedMetadata) else (item,)
    inner = (
        (annotation.__origin__,)
        if hasattr(annotation, "__metadata__")
        else typing.get_args(annotation)
    )
    for argument in inner:
        yield from _metadata(argument)
