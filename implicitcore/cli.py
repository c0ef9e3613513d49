"""The command line: what is registered, and the commands that plugins add."""

from __future__ import annotations

import json
import warnings
from typing import TYPE_CHECKING, Any

import click

from implicitcore import __version__
from implicitcore.errors import ImplicitCoreError, ImplicitCoreWarning, PluginError, PluginWarning
from implicitcore.parts import CLASS_KINDS, KINDS, Part
from implicitcore.registry import REGISTRY
from implicitcore.wording import did_you_mean

if TYPE_CHECKING:
    from implicitcore.discovery import Plugin
    from implicitcore.options import Option


class Group(click.Group):
    """Commands, whose misspelt names get their near matches."""

    def resolve_command(self, ctx: click.Context, args: list[str]) -> tuple[str | None, click.Command | None, list[str]]:
        command = self.get_command(ctx, args[0])
        if command is None:
            known = self.list_commands(ctx)
            ctx.fail(f"unknown command {args[0]!r}{did_you_mean(args[0], known)} (commands: {', '.join(known)}){self.hint()}")
        return args[0], command, args[1:]

    def hint(self) -> str:
        """How to get more commands, as the end of a sentence."""
        return ""


class Commands(Group):
    """The commands here and those of the plugins, whose code is imported only to run them."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return sorted({*super().list_commands(ctx), *(part.name for part in REGISTRY.parts("command"))})

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        own = super().get_command(ctx, cmd_name)
        known = () if own else REGISTRY.parts("command")
        if not any(cmd_name in (part.name, part.qualified_name) for part in known):
            return own
        part = REGISTRY.find("command", cmd_name)
        command = part.load()
        if not isinstance(command, click.Command):
            raise PluginError(f"{part}: the target {part.target!r} is not a click command")
        return command

    def hint(self) -> str:
        return REGISTRY.install_hint("command")

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """List the commands by the summaries they were registered with."""
        rows = {part.name: part.summary for part in REGISTRY.parts("command")}
        rows |= {name: command.get_short_help_str(100) for name, command in self.commands.items()}
        with formatter.section("Commands"):
            formatter.write_dl(sorted(rows.items()))

    def invoke(self, ctx: click.Context) -> Any:
        """Run the command; what implicitcore raises on purpose becomes one message and exit status 1."""
        try:
            return super().invoke(ctx)
        except ImplicitCoreError as error:
            raise click.ClickException(str(error)) from error


@click.group(cls=Commands, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 120})
@click.version_option(__version__)
def cli() -> None:
    """Implicit models in PyTorch: any dynamics, any solver, any gradient strategy, on any backend."""


@cli.command(name="list")
@click.argument("kind", type=click.Choice(KINDS), required=False)
def list_parts(kind: str | None) -> None:
    """List the registered parts."""
    rows = [(part.kind, part.name, part.provider, part.summary) for part in REGISTRY.parts(kind)]
    _table(("KIND", "NAME", "PROVIDER", "SUMMARY"), rows)


@cli.command()
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


@cli.group(cls=Group)
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
    _table(("PLUGIN", "DISTRIBUTION", "VERSION", "STATUS", "LOADED IN", "PARTS"), rows)
    for plugin in found:
        if plugin.error:
            click.echo(f"\n{plugin.problem}")


def main() -> None:
    """Run the command line, with implicitcore's warnings as one line each."""
    plain = warnings.formatwarning

    def format_warning(message: Any, category: type[Warning], *rest: Any, **more: Any) -> str:
        return f"Warning: {message}\n" if issubclass(category, ImplicitCoreWarning) else plain(message, category, *rest, **more)

    warnings.formatwarning = format_warning
    cli(prog_name="implicitcore")


def _table(head: tuple[str, ...], rows: list[tuple[str, ...]]) -> None:
    widths = [max(map(len, column)) for column in zip(head, *rows, strict=True)]
    for row in (head, *rows):
        click.echo("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip())


def _as_data(plugin: Plugin) -> dict[str, Any]:
    parts = [{"kind": part.kind, "name": part.name, "target": part.target, "summary": part.summary} for part in plugin.parts]
    names = ("name", "distribution", "version", "status", "error", "seconds")
    return {**{name: getattr(plugin, name) for name in names}, "parts": parts}


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
