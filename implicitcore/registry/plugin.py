"""What became of each plugin: a record, and the names that several share."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal

from implicitcore.errors import readable
from implicitcore.layers.observers import Observer
from implicitcore.registry.part import Part

DISABLE = "IMPLICITCORE_DISABLE_PLUGINS"

Status = Literal["ok", "conflict", "broken", "incompatible", "disabled"]


@dataclass(frozen=True, kw_only=True)
class Plugin:
    """What became of a plugin.

    Attributes:
        name: of its entry point.
        distribution: the distribution that the entry point belongs to.
        version: that distribution's version.
        status: ok; conflict, where a name of it is also another distribution's; or why it was left
            out.
        error: the cause in one line; empty where ok or disabled.
        parts: what it registered; empty where it was left out.
        observers: those of its functions that are called after solves; empty where it was left
            out.
        seconds: how long its import and registration took.
        cause: the exception behind ``error``, where there is one.
        conflicts: for each name that it shares, the parts of that name, its own among them.
    """

    name: str
    distribution: str
    version: str | None
    status: Status
    error: str = ""
    parts: tuple[Part, ...] = ()
    observers: tuple[Observer, ...] = ()
    seconds: float = 0.0
    cause: BaseException | None = None
    conflicts: tuple[tuple[Part, ...], ...] = ()

    def __post_init__(self) -> None:
        # A distribution's metadata may hold anything, and a terminal shows it.
        for name in ("name", "distribution", "version", "error"):
            text = getattr(self, name)
            object.__setattr__(self, name, text and readable(text))

    @property
    def usable(self) -> bool:
        """Whether its parts can be had.

        A shared name is an error where it is used, and nothing is left out for it.
        """
        return self.status in ("ok", "conflict")

    @property
    def problem(self) -> str:
        """One message that names the plugin, the cause and what to do about it."""
        version = f" {self.version}" if self.version else ""
        if self.status == "conflict":
            return (
                f"plugin {self.name!r} of {self.distribution}{version} shares names: {self.error}"
            )
        return (
            f"plugin {self.name!r} of {self.distribution}{version} was left out: {self.error} "
            f"(to silence this, set {DISABLE}={self.name}, or uninstall {self.distribution})"
        )


def with_conflicts(plugins: list[Plugin]) -> tuple[Plugin, ...]:
    """The records again, with a mark on those that share a name."""
    named: dict[tuple[str, str], list[Part]] = {}
    for plugin in plugins:
        for part in plugin.parts:
            named.setdefault((part.kind, part.name), []).append(part)
    return tuple(
        _with_conflict(plugin, [named[part.kind, part.name] for part in plugin.parts])
        for plugin in plugins
    )


def _with_conflict(plugin: Plugin, named: list[list[Part]]) -> Plugin:
    shared = tuple(tuple(parts) for parts in named if len(parts) > 1)
    if not shared:
        return plugin
    return replace(
        plugin, status="conflict", error="; ".join(map(_clash, shared)), conflicts=shared
    )


def _clash(parts: tuple[Part, ...]) -> str:
    """What several distributions provide, and the names that tell it apart."""
    choices = " or ".join(repr(part.qualified_name) for part in parts)
    return (
        f"{parts[0].kind} {parts[0].name!r} is provided by {len(parts)} distributions: "
        f"say {choices}"
    )
