"""The plugins found, and what became of each: ``plugins list``."""

from __future__ import annotations

import json
import os
import warnings
from typing import TYPE_CHECKING, Any

import click

from implicitcore.cli.doctor import doctor
from implicitcore.cli.group import Group, echo, table
from implicitcore.errors import PluginWarning
from implicitcore.registry.registry import REGISTRY

if TYPE_CHECKING:
    from implicitcore.registry.discovery import Plugin


@click.group(cls=Group, epilog="Example: implicitcore plugins list")
def plugins() -> None:
    """The plugins found, and what became of each."""
    from implicitcore.registry.discovery import STRICT

    os.environ.pop(STRICT, None)  # these commands say what is broken; they must not fail for it


plugins.add_command(doctor)


@plugins.command(name="list", epilog="Example: implicitcore plugins list")
@click.option("--json", "as_json", is_flag=True, help="Print JSON: one object per plugin.")
def list_plugins(as_json: bool) -> None:
    """List the plugins with their status; what is wrong with one is said below.

    Status: ok; conflict (usable, but a name is also another distribution's: say distribution:name);
    broken or incompatible (left out, with the cause); disabled (left out by
    IMPLICITCORE_DISABLE_PLUGINS).
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", PluginWarning)  # the table says it
        found = REGISTRY.plugins()
    if as_json:
        echo(json.dumps([_as_data(plugin) for plugin in found], indent=2))
        return
    rows = [
        (
            plugin.name,
            plugin.distribution,
            plugin.version or "",
            plugin.status,
            f"{plugin.seconds * 1000:.0f} ms",
            str(len(plugin.parts)),
        )
        for plugin in found
    ]
    table(("PLUGIN", "DISTRIBUTION", "VERSION", "STATUS", "LOADED IN", "PARTS"), rows)
    for plugin in found:
        if plugin.error:
            echo(f"\n{plugin.problem}")


def _as_data(plugin: Plugin) -> dict[str, Any]:
    parts = [
        {"kind": part.kind, "name": part.name, "target": part.target, "summary": part.summary}
        for part in plugin.parts
    ]
    conflicts = [
        {
            "kind": same[0].kind,
            "name": same[0].name,
            "qualified_names": [part.qualified_name for part in same],
        }
        for same in plugin.conflicts
    ]
    names = ("name", "distribution", "version", "status", "error", "seconds")
    return {
        **{name: getattr(plugin, name) for name in names},
        "parts": parts,
        "conflicts": conflicts,
    }
