"""What is registered: ``list``."""

from __future__ import annotations

import click

from implicitcore.cli.group import Kind, echo, table
from implicitcore.options.kinds import KINDS
from implicitcore.registry.registry import REGISTRY


@click.command(name="list", epilog="Example: implicitcore list gradient")
@click.argument("kind", type=Kind(KINDS), metavar="[KIND]", required=False)
@click.option(
    "--provider",
    "providers",
    multiple=True,
    metavar="NAME",
    help="Only the parts of this distribution; may be repeated.",
)
@click.option("--markdown", is_flag=True, help="Print a page with the options of every part.")
def list_parts(kind: str | None, providers: tuple[str, ...], markdown: bool) -> None:
    """List the registered parts, all or those of a KIND."""
    parts = [part for part in REGISTRY.parts(kind) if part.provider in providers or not providers]
    if markdown:
        from implicitcore.cli.reference_page import reference_page

        echo(reference_page(parts), nl=False)
        return
    rows = [(part.kind, part.name, part.provider, part.summary) for part in parts]
    table(("KIND", "NAME", "PROVIDER", "SUMMARY"), rows)
