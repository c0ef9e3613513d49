"""What is registered: ``list``."""

from __future__ import annotations

import click

from implicitcore.cli.group import Kind, table
from implicitcore.parts import KINDS
from implicitcore.registry import REGISTRY


@click.command(name="list", epilog="Example: implicitcore list gradient")
@click.argument("kind", type=Kind(KINDS), metavar="[KIND]", required=False)
def list_parts(kind: str | None) -> None:
    """List the registered parts, all or those of a KIND."""
    rows = [(part.kind, part.name, part.provider, part.summary) for part in REGISTRY.parts(kind)]
    table(("KIND", "NAME", "PROVIDER", "SUMMARY"), rows)
