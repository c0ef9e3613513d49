"""What the commands are made of: groups and kinds that name the near matches, and a table."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import click

from implicitcore.errors import (
    ImplicitCoreError,
    PluginError,
    UnknownPartError,
    did_you_mean,
    readable,
    with_article,
)
from implicitcore.options.kinds import NAMED_KINDS
from implicitcore.registry.part import Part
from implicitcore.registry.registry import REGISTRY


class Group(click.Group):
    """Commands, whose misspelt names get their near matches."""

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        command = self.get_command(ctx, args[0])
        if command is None:
            known = self.list_commands(ctx)
            ctx.fail(
                f"unknown command {args[0]!r}{did_you_mean(args[0], known)} (commands: "
                f"{', '.join(known)}){self.hint()}"
            )
        return args[0], command, args[1:]

    def hint(self) -> str:
        """How to get more commands, as the end of a sentence."""
        return ""


class Commands(Group):
    """The commands here and those of the plugins, whose code is imported only to run them."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return sorted(
            {*super().list_commands(ctx), *(part.name for part in REGISTRY.parts("command"))}
        )

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        own = super().get_command(ctx, cmd_name)
        if own:
            return own
        try:
            return load_command(REGISTRY.find("command", cmd_name))
        except UnknownPartError:
            return None

    def hint(self) -> str:
        return REGISTRY.install_hint("command")

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """List the commands by the summaries they were registered with."""
        rows = {part.name: part.summary for part in REGISTRY.parts("command")}
        rows |= {name: command.get_short_help_str(100) for name, command in self.commands.items()}
        with formatter.section("Commands"):
            formatter.write_dl(sorted(rows.items()))

    def make_context(self, *args: Any, **more: Any) -> click.Context:
        """Read the command line; that of ``--help`` asks for the commands of plugins already."""
        with one_message():
            return super().make_context(*args, **more)

    def invoke(self, ctx: click.Context) -> Any:
        """Run the command."""
        with one_message():
            return super().invoke(ctx)


@contextmanager
def one_message() -> Iterator[None]:
    """What implicitcore raises on purpose becomes one message and exit status 1."""
    try:
        yield
    except ImplicitCoreError as error:
        raise click.ClickException(str(error)) from error


class Kind(click.Choice):
    """A kind of part, whose misspellings get their near matches.

    Arguments:
        kinds: those that the command knows.
    """

    def __init__(self, kinds: Sequence[str] = NAMED_KINDS) -> None:
        super().__init__(kinds)

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        """The kind, or an error with the near matches."""
        if value in self.choices:
            return value
        meant = sorted(kinds_named(value))
        hint = (
            f"; {value!r} is the name of {with_article(' and of '.join(meant))}"
            if meant
            else did_you_mean(value, self.choices)
        )
        self.fail(f"unknown kind {value!r}{hint} (kinds: {', '.join(self.choices)})", param, ctx)


def kinds_named(name: str) -> set[str]:
    """The kinds that have a part of this name."""
    return {part.kind for part in REGISTRY.parts() if part.name == name}


def load_command(part: Part) -> click.Command:
    """The click command of a part.

    Raises:
        PluginError: it cannot be imported, or is none.
    """
    command = part.load()
    if not isinstance(command, click.Command):
        raise PluginError(f"{part}: the target {part.target!r} is not a click command")
    return command


def aligned(rows: Sequence[Sequence[str]]) -> list[str]:
    """The rows as lines of columns."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return [
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
        for row in rows
    ]


def echo(text: str = "", *, nl: bool = True, err: bool = False) -> None:
    """Print a text that may come from a plugin: it controls no terminal."""
    click.echo(readable(text, sys.maxsize), nl=nl, err=err)


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """Print rows in columns under their heads."""
    echo("\n".join(aligned([head, *rows])))
