"""What is registered: ``list`` and ``info``."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

from implicitcore.cli.group import table
from implicitcore.parts import CLASS_KINDS, KINDS, Part
from implicitcore.registry import REGISTRY

if TYPE_CHECKING:
    from implicitcore.options import Option


@click.command(name="list")
@click.argument("kind", type=click.Choice(KINDS), required=False)
@click.option("--provider", "providers", multiple=True, metavar="NAME", help="Only the parts of this distribution; may be repeated.")
@click.option("--markdown", is_flag=True, help="Print a page with the options of every part.")
def list_parts(kind: str | None, providers: tuple[str, ...], markdown: bool) -> None:
    """List the registered parts."""
    parts = [part for part in REGISTRY.parts(kind) if part.provider in providers or not providers]
    if markdown:
        from implicitcore.cli.page import reference_page

        click.echo(reference_page(parts), nl=False)
        return
    rows = [(part.kind, part.name, part.provider, part.summary) for part in parts]
    table(("KIND", "NAME", "PROVIDER", "SUMMARY"), rows)


@click.command()
@click.argument("kind", type=click.Choice(KINDS))
@click.argument("name")
def info(kind: str, name: str) -> None:
    """Show a part: what it is, who provides it, its options."""
    part = REGISTRY.find(kind, name)
    click.echo(f"{part.kind} {part.name}: {part.summary}")
    target = part.load()
    click.echo(f"provider: {part.provider} {part.version or ''}".rstrip())
    click.echo(f"class: {part.target}" if kind in CLASS_KINDS else f"command: {part.target}")
    click.echo(f"file: {_file(target)}")
    if part.requires:
        click.echo(f"requires: {', '.join(part.requires)}")
    if kind in CLASS_KINDS:
        _show_class(part, target)


def _show_class(part: Part, cls: type) -> None:
    import inspect

    from implicitcore.options import options_of

    rows = [(option.name, option.type_text, option.bounds_text, _default(option)) for option in options_of(cls).values()]
    click.echo("options:" if rows else "options: none")
    if rows:
        widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
        for row in rows:
            click.echo("  " + "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip())
    first, _, _ = (inspect.getdoc(cls) or part.summary).partition("\n\n")
    click.echo(f"\n{first}")


def _default(option: Option) -> str:
    if option.required:
        return "required"
    shown = repr(option.default)
    return f"default {type(option.default).__name__}()" if shown.startswith("<") else f"default {shown}"


def _file(target: Any) -> str:
    import inspect

    function = getattr(target, "callback", None) or target
    try:
        return inspect.getsourcefile(function) or "unknown"
    except TypeError:
        return "unknown"
