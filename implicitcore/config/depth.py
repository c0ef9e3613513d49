"""How deep a configuration may be nested."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from implicitcore.errors import ConfigError

DEEPEST = 50
"""Levels of mappings and lists: parts within parts need two or three."""


def check_depth(data: Any, path: str = "") -> None:
    """Refuse data that is nested without end, or so deep that nobody wrote it.

    Raises:
        ConfigError: it is.
    """
    level, depth = [data], 0
    while level:
        if depth > DEEPEST:
            where = f"{path}: " if path else ""
            raise ConfigError([f"{where}nested more than {DEEPEST} levels deep, or without end"])
        # Each object once a level: references to one another may be many.
        inner = {id(item): item for node in level for item in _items(node)}
        level, depth = list(inner.values()), depth + 1


def _items(node: Any) -> list[Any]:
    items = node.values() if isinstance(node, Mapping) else node
    if not isinstance(node, Mapping | list | tuple):
        return []
    return [item for item in items if isinstance(item, Mapping | list | tuple)]
