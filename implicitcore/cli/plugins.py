"""The plugins found, and what became of each: ``plugins list``."""

from __future__ import annotations

import json
import warnings
from typing import TYPE_CHECKING, Any

import click

from implicitcore.cli.group import Group, table
from implicitcore.errors import PluginWarning
from implicitcore.registry import REGISTRY

if TYPE_CHECKING:
    from implicitcore.discovery import Plugin


@click.group(cls=Group)
def plugins() -> None:
    """The plugins found, and what became of each."""


@plugins.command(name="list")
@click.option("--json", "as_json", is_flag=True, help="Print JSON: one object per plugin.")
def list_plugins(as_json: bool) -> None:
    """List the plugins with their status; a broken one is listed with the cause."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", PluginWarning)  # the table says it
        found = REGISTRY.plugins()
    if as_json:
        click.echo(json.dumps([_as_data(plugin) for plugin in found], indent=2))
        return
    rows = [
        (plugin.name, plugin.distribution, plugin.version or "", plugin.status, f"{plugin.seconds * 1000:.0f} ms", str(len(plugin.parts)))
        for plugin in found
    ]
    table(("PLUGIN", "DISTRIBUTION", "VERSION", "STATUS", "LOADED IN", "PARTS"), rows)
    for plugin in found:
        if plugin.error:
            click.echo(f"\n{plugin.problem}")


def _as_data(plugin: Plugin) -> dict[str, Any]:
    parts = [{"kind": part.kind, "name": part.name, "target": part.target, "summary": part.summary} for part in plugin.parts]
    names = ("name", "distribution", "version", "status", "error", "seconds")
    return {**{name: getattr(plugin, name) for name in names}, "parts": parts}
