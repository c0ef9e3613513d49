"""What the commands are made of: groups that name the near matches, and a table."""

from __future__ import annotations

from typing import Any

import click

from implicitcore.errors import ImplicitCoreError, PluginError
from implicitcore.registry import REGISTRY
from implicitcore.wording import did_you_mean


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


def table(head: tuple[str, ...], rows: list[tuple[str, ...]]) -> None:
    """Print rows in columns under their heads."""
    widths = [max(map(len, column)) for column in zip(head, *rows, strict=True)]
    for row in (head, *rows):
        click.echo("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip())
