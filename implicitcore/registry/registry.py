"""The parts by kind and name.

The built-in ones, those of the plugins, and those registered in this process.
"""

from __future__ import annotations

import sys
import threading
import warnings
from collections.abc import Sequence
from typing import TYPE_CHECKING

from implicitcore.errors import (
    AmbiguousPartError,
    PluginError,
    PluginWarning,
    UnknownPartError,
    did_you_mean,
    with_article,
)
from implicitcore.layers.observers import observe_from_plugins
from implicitcore.options.kinds import KINDS, check_kind
from implicitcore.registry.part import Part, canonical, listed

if TYPE_CHECKING:
    from implicitcore.registry.discovery import Plugin

LOCAL = "local"
"""The provider of parts registered in this process."""

_HOMES = {
    "layer": "implicitcore-layers",
    "cell": "implicitcore-layers",
    "dataset": "implicitcore-lab",
    "model": "implicitcore-lab",
    "table": "implicitcore-lab",
    "command": "implicitcore-lab",
}
"""The distributions of the kinds of which the core has none."""

_FAMILIES = ("cpp", "cupy", "triton", "scipy", "torchdiffeq")
"""Backends, and what begins the names of solvers, that ``implicitcore-NAME`` brings."""


class Registry:
    """Finds parts by name.

    The plugins are discovered at the first question, once, whichever thread asks. The module's
    :data:`REGISTRY` is the one that configurations and the command line use.
    """

    def __init__(self) -> None:
        self._lock = (
            threading.RLock()
        )  # re-entrant: a plugin that asks while it is being imported must fail, not hang
        self._discovering = False
        self._plugins: tuple[Plugin, ...] | None = None
        self._local: dict[tuple[str, str], Part] = {}

    def register(
        self,
        kind: str,
        name: str,
        target: str | type,
        *,
        summary: str = "",
        requires: Sequence[str] = (),
    ) -> Part:
        """Register a part for this process, as a notebook or a test does.

        A distribution registers in its plugin's hook. Registering a name again replaces what this
        process registered under it before.

        Arguments:
            kind: layer, dynamics, root_solver, ode_solver, gradient, backend, start, cell, dataset,
                model, table or command.
            name: lower-case letters and digits, with ``_``, ``-`` or ``.`` between them.
            target: a class, or ``"module:attribute"``.
            summary: one line that says what it is.
            requires: names of the distributions that the target imports.

        Returns:
            The part. Its provider is ``local``.

        Raises:
            UnknownPartError: there is no such kind.
            PluginError: a part cannot have that name or target, or the class is not of that kind.
        """
        part = Part(
            kind=kind,
            name=name,
            target=target,
            summary=summary,
            requires=listed(requires),
            provider=LOCAL,
        )
        if not isinstance(target, str):
            part.load()  # an unusable class is refused at once
        self._local[kind, name] = part
        return part

    def plugins(self) -> tuple[Plugin, ...]:
        """What became of each plugin, the built-in one first.

        Raises:
            PluginError: a plugin cannot be used and ``IMPLICITCORE_STRICT_PLUGINS`` is set.
        """
        with self._lock:
            if self._plugins is not None:
                return self._plugins
            found = self._discover()
        for plugin in _left_out(found):
            warnings.warn(plugin.problem, PluginWarning, stacklevel=2)
        return found

    def parts(self, kind: str | None = None) -> tuple[Part, ...]:
        """Every part, ordered by kind, name and provider.

        Arguments:
            kind: only the parts of this kind.

        Raises:
            UnknownPartError: there is no such kind.
        """
        if kind is not None:
            check_kind(kind)
        found = [part for plugin in self.plugins() for part in plugin.parts] + list(
            self._local.values()
        )
        kept = [part for part in found if kind in (None, part.kind)]
        return tuple(
            sorted(kept, key=lambda part: (KINDS.index(part.kind), part.name, part.provider))
        )

    def find(self, kind: str, name: str) -> Part:
        """The part of that name.

        Arguments:
            kind: one of :data:`~implicitcore.options.kinds.KINDS`.
            name: ``"name"``, or ``"distribution:name"`` where several distributions provide it.

        Raises:
            UnknownPartError: there is no such part; the message gives the near matches.
            AmbiguousPartError: several distributions provide it; the message lists them.
        """
        provider, colon, plain = name.rpartition(":")
        found = [
            part
            for part in self.parts(kind)
            if part.name == plain and (not colon or part.provider == canonical(provider))
        ]
        if not found:
            raise UnknownPartError(self._unknown(kind, name))
        if len(found) > 1:
            choices = " or ".join(f"{part.qualified_name!r} ({part.target})" for part in found)
            raise AmbiguousPartError(
                f"{kind} {name!r} is provided by {len(found)} distributions; say which: {choices}"
            )
        return found[0]

    def find_class(self, cls: type) -> Part:
        """The part whose target is that class.

        Raises:
            UnknownPartError: it is not registered.
        """
        kind = getattr(cls, "kind", None)
        for part in self.parts(kind) if kind in KINDS else ():
            if _is_target(part, cls):
                return part
        raise UnknownPartError(
            f"{cls.__module__}.{cls.__qualname__} is not a registered {kind or 'part'}: "
            "register it with implicitcore.register or in the hook of a plugin"
        )

    def name_of(self, cls: type) -> str:
        """The name under which a configuration finds that class.

        Qualified where several distributions provide the name.

        Raises:
            UnknownPartError: it is not registered.
        """
        part = self.find_class(cls)
        shared = sum(part.name == other.name for other in self.parts(part.kind)) > 1
        return part.qualified_name if shared else part.name

    def install_hint(self, kind: str) -> str:
        """How to get parts of a kind of which there are none, as the end of a sentence.

        Empty where there are some.
        """
        return f" (pip install {_HOMES[kind]})" if kind in _HOMES and not self.parts(kind) else ""

    def _discover(self) -> tuple[Plugin, ...]:
        from implicitcore.registry.discovery import discover, is_strict

        if self._discovering:
            raise PluginError(
                "a plugin asked for parts while it was being loaded; it may only register its own"
            )
        self._discovering = True
        try:
            found = discover()
        finally:
            self._discovering = False
        left_out = _left_out(found)
        if left_out and is_strict():
            raise PluginError("; ".join(plugin.problem for plugin in left_out)) from left_out[
                0
            ].cause
        observe_from_plugins(observer for plugin in found for observer in plugin.observers)
        self._plugins = found
        return found

    def _unknown(self, kind: str, name: str) -> str:
        """Why there is no such part, and what there is."""
        known = {part.name for part in self.parts(kind)}
        other = next((part.kind for part in self.parts() if part.name == name), None)
        if other:
            message = f"{name!r} is {with_article(other)}, not {with_article(kind)}"
            if (other, kind) == ("ode_solver", "root_solver"):  # what it is a root solver with
                message += f': {{"name": "steady_state", "ode_solver": "{name}"}}'
        else:
            near = {part.qualified_name for part in self.parts(kind)} if ":" in name else known
            message = f"unknown {kind} {name!r}{did_you_mean(name, near)}"
        message += f" (known: {', '.join(sorted(known))})" if known else self.install_hint(kind)
        family = name.partition("-")[0]
        if family in _FAMILIES and all(plugin.name != family for plugin in self.plugins()):
            message += f" (pip install implicitcore-{family})"
        left_out = [plugin.name for plugin in self.plugins() if not plugin.usable]
        return message + (f" (plugins left out: {', '.join(left_out)})" if left_out else "")


REGISTRY = Registry()
"""The registry that :func:`implicitcore.build` and the command line use."""

register = REGISTRY.register


def _left_out(plugins: Sequence[Plugin]) -> list[Plugin]:
    return [plugin for plugin in plugins if plugin.status in ("broken", "incompatible")]


def _is_target(part: Part, cls: type) -> bool:
    """Whether the part is that class, told without importing anything.

    The module of an object's class is imported already.
    """
    if not isinstance(part.target, str):
        return part.target is cls
    module, _, attribute = part.target.partition(":")
    return module in sys.modules and getattr(sys.modules[module], attribute, None) is cls
