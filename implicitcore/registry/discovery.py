"""Finds the plugins, entry point by entry point, so that a broken one harms no other."""

from __future__ import annotations

import importlib
import os
import re
import time
from collections.abc import Callable, Mapping
from importlib.metadata import EntryPoint, entry_points
from types import ModuleType
from typing import Any

import pluggy

from implicitcore.errors import PluginError, describe_error, did_you_mean, readable
from implicitcore.layers.observers import Observer
from implicitcore.registry import builtin, hookspecs
from implicitcore.registry.hookspecs import API_VERSION, PROJECT
from implicitcore.registry.part import Part, Registrar, canonical, is_interrupt
from implicitcore.registry.plugin import DISABLE, Plugin, Status, with_conflicts

HOOK = hookspecs.implicitcore_register.__name__
LISTENER = hookspecs.implicitcore_after_solve.__name__
STRICT = "IMPLICITCORE_STRICT_PLUGINS"


_MODULE = re.compile(r"[A-Za-z_][\w.]*")


class _Hooks:
    """The functions of a plugin's module.

    pluggy gets these and not the module: it reads every name in ``dir()``, and a module may import
    heavy code when a name is read.
    """

    def __init__(self, functions: Mapping[str, Callable[..., Any]]) -> None:
        vars(self).update(functions)


class _Incompatible(PluginError):
    """The plugin was written for another version of the hooks."""


def discover() -> tuple[Plugin, ...]:
    """Load the built-in parts and every plugin.

    Returns:
        One record per entry point, the built-in one first, then ordered by the names of
        distribution and entry point: neither the order of the path nor that of the entry points
        matters. A distribution that is on the path twice counts once, as for an import: the first
        is taken.
    """
    manager = pluggy.PluginManager(PROJECT)
    manager.add_hookspecs(hookspecs)
    found = sorted(
        entry_points(group=PROJECT),
        key=lambda point: (_distribution(point), point.name, point.value),
    )
    disabled = {canonical(name) for name in os.environ.get(DISABLE, "").split(",") if name.strip()}
    plugins = [_load_builtin(manager)]
    for point in found:
        if disabled & {"all", canonical(point.name), canonical(_distribution(point))}:
            plugins.append(
                Plugin(
                    name=point.name,
                    distribution=_distribution(point),
                    version=_version(point),
                    status="disabled",
                )
            )
        else:
            plugins.append(_load(manager, point, plugins))
    return with_conflicts(plugins)


def is_strict() -> bool:
    """Whether a plugin that cannot be used is an error."""
    return os.environ.get(STRICT, "").strip().lower() not in ("", "0", "false", "no")


def _load_builtin(manager: pluggy.PluginManager) -> Plugin:
    from implicitcore import __version__

    began = time.perf_counter()
    registrar = Registrar(PROJECT, __version__)
    _register(manager, builtin, registrar)
    seconds = time.perf_counter() - began
    return Plugin(
        name="builtin",
        distribution=PROJECT,
        version=__version__,
        status="ok",
        parts=registrar.parts,
        seconds=seconds,
    )


def _load(manager: pluggy.PluginManager, point: EntryPoint, earlier: list[Plugin]) -> Plugin:
    """Import the plugin and let it register into its own table, used only if nothing failed."""
    distribution, version = _distribution(point), _version(point)
    status: Status = "ok"
    error, parts, observers, cause = "", (), (), None
    registrar = Registrar(distribution, version)
    began = time.perf_counter()
    try:
        functions = _register(manager, _import(point), registrar)
        _check_own_names(distribution, registrar.parts, earlier)
        parts, observers = (
            registrar.parts,
            _observers(manager, functions, f"of the plugin {point.name!r} of {distribution}"),
        )
    except BaseException as exception:
        if is_interrupt(exception, point.value):
            raise
        ours = isinstance(exception, PluginError)
        status, cause = (
            "incompatible" if isinstance(exception, _Incompatible) else "broken",
            exception,
        )
        error = str(exception) if ours else describe_error(exception)
    return Plugin(
        name=point.name,
        distribution=distribution,
        version=version,
        status=status,
        error=error,
        parts=parts,
        observers=observers,
        seconds=time.perf_counter() - began,
        cause=cause,
    )


def _import(point: EntryPoint) -> ModuleType:
    if not _MODULE.fullmatch(point.value):
        raise PluginError(
            f"the entry point {point.name} = {point.value} must name a module, as "
            f"{point.name} = my_package.plugin"
        )
    return importlib.import_module(point.value)


def _register(manager: pluggy.PluginManager, module: ModuleType, registrar: Registrar) -> _Hooks:
    """Check the plugin, and let its hook and no other plugin's register its parts."""
    _check_version(module)
    functions = {name: value for name, value in vars(module).items() if callable(value)}
    _check_hooks(manager, module.__name__, functions)
    plugin = _Hooks(functions)
    others = manager.get_plugins()
    manager.register(plugin)
    try:
        manager.subset_hook_caller(HOOK, others)(registry=registrar)
    except BaseException:
        manager.unregister(plugin)
        raise
    return plugin


def _observers(manager: pluggy.PluginManager, plugin: _Hooks, owner: str) -> tuple[Observer, ...]:
    """The plugin's functions that are called after solves, as pluggy found them."""
    found = [
        hook for hook in getattr(manager.hook, LISTENER).get_hookimpls() if hook.plugin is plugin
    ]
    for hook in found:
        if hook.hookwrapper or hook.wrapper:
            raise PluginError(
                f"{LISTENER} of a plugin is called after a solve, and wraps none: "
                "use @hookimpl without options"
            )
    return tuple(
        Observer(f"{LISTENER} {owner}", hook.function, tuple(hook.argnames)) for hook in found
    )


def _check_version(module: ModuleType) -> None:
    version = getattr(module, "IMPLICITCORE_API", None)
    if version is None:
        raise PluginError(
            f"{module.__name__} does not say which plugin API it was written for: add "
            f"IMPLICITCORE_API = {API_VERSION} to it"
        )
    if not isinstance(version, int) or isinstance(version, bool) or version < 1:
        raise PluginError(
            f"{module.__name__}.IMPLICITCORE_API must be an integer such as {API_VERSION}, "
            f"not {version!r}"
        )
    if version > API_VERSION:
        raise _Incompatible(
            f"it was written for plugin API {version} and this implicitcore has "
            f"{API_VERSION}: pip install --upgrade implicitcore"
        )


def _check_hooks(
    manager: pluggy.PluginManager, module: str, functions: Mapping[str, Callable[..., Any]]
) -> None:
    """Refuse what pluggy passes over in silence.

    A misspelt hook, another project's marker, no hook at all.
    """
    known = [name for name in vars(manager.hook) if not name.startswith("_")]
    marked = {
        name
        for name, function in functions.items()
        if isinstance(getattr(function, f"{PROJECT}_impl", None), dict)
    }
    for name in sorted(marked.difference(known)):
        near = did_you_mean(name, known, cutoff=0.8)  # all begin with the name of the project
        raise PluginError(
            f"{module} implements an unknown hook {name!r}{near} (hooks: {', '.join(known)})"
        )
    for name in (name for name in known if name in functions and name not in marked):
        foreign = _foreign_marker(functions[name])
        if foreign:
            raise PluginError(
                f"{module}.{name} has the marker of {foreign!r}: use 'from implicitcore "
                "import hookimpl'"
            )
        raise PluginError(
            f"{module}.{name} has no marker: put @hookimpl above it, with 'from "
            "implicitcore import hookimpl'"
        )
    if not marked:
        raise PluginError(
            f"{module} has no function {HOOK}(registry) marked with "
            f"@hookimpl{did_you_mean(HOOK, functions)}"
        )


def _foreign_marker(function: Any) -> str:
    """The pluggy project whose marker the function has, or an empty string."""
    for name, value in getattr(function, "__dict__", {}).items():
        if name.endswith("_impl") and isinstance(value, dict) and "hookwrapper" in value:
            return name.removesuffix("_impl")
    return ""


def _check_own_names(distribution: str, parts: tuple[Part, ...], earlier: list[Plugin]) -> None:
    """Refuse a name that another entry point of the same distribution has.

    ``distribution:name`` could not tell them apart.
    """
    taken = {
        (part.kind, part.name): plugin
        for plugin in earlier
        for part in plugin.parts
        if plugin.distribution == distribution
    }
    for part in parts:
        if (part.kind, part.name) in taken:
            other = taken[part.kind, part.name].name
            raise PluginError(
                f"{part.kind} {part.name!r} is registered already by the entry point "
                f"{other!r} of the same distribution"
            )


def _distribution(point: EntryPoint) -> str:
    """The distribution's name; metadata that lost it leaves the entry point's."""
    return canonical(_metadata(point, "Name") or point.name)


def _version(point: EntryPoint) -> str | None:
    return _metadata(point, "Version")


def _metadata(point: EntryPoint, field: str) -> str | None:
    try:
        found = point.dist.metadata[field] if point.dist else None
        return found and readable(found, 200)
    except (KeyError, FileNotFoundError):  # newer Pythons raise where older ones return None
        return None
