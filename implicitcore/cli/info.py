"""One part: ``info``."""

from __future__ import annotations

import dataclasses
import inspect
from typing import TYPE_CHECKING, Any

import click

from implicitcore.cli.group import Kind, aligned, echo, kinds_named, load_command
from implicitcore.errors import did_you_mean
from implicitcore.options.kinds import KINDS
from implicitcore.registry.part import Part, missing_requirements, pip_install
from implicitcore.registry.registry import REGISTRY

if TYPE_CHECKING:
    from implicitcore.options.option import Option


@click.command(epilog="Example: implicitcore info root_solver anderson")
@click.argument("kind", metavar="[KIND]")
@click.argument("name", required=False)
def info(kind: str, name: str | None) -> None:
    """Show a part. What it is, who provides it, how Python calls it, its options.

    KIND may be left out where one kind alone has a part of that NAME.
    """
    if name is None:
        kind, name = _kind_of(kind), kind
    kind = Kind(KINDS).convert(kind, None, None)
    part = REGISTRY.find(kind, name)
    echo(f"{part.kind} {part.name}: {part.summary}")
    echo(f"provider: {part.provider} {part.version or ''}".rstrip())
    if kind == "command":
        _show_command(part)
    else:
        _show_class(part)


def _kind_of(name: str) -> str:
    """The kind that has a part of this name.

    Raises:
        UsageError: none or several have; or the name is that of a kind.
    """
    if name in KINDS:
        raise click.UsageError(f"'info {name}' lacks the NAME of a part: see 'list {name}'")
    found = sorted(kinds_named(name), key=KINDS.index)
    if len(found) == 1:
        return found[0]
    if found:
        raise click.UsageError(f"{name!r} is a {' and a '.join(found)}: say which")
    near = did_you_mean(name, (part.name for part in REGISTRY.parts()))
    raise click.UsageError(f"no part is called {name!r}{near}")


def _show_command(part: Part) -> None:
    command = load_command(part)
    echo(f"command: {part.target}")
    _show_origin(part, command.callback)
    context = click.Context(
        command, info_name=part.name, parent=click.get_current_context().find_root()
    )
    echo(f"\n{command.get_usage(context)}\n\n{inspect.cleandoc(command.help or part.summary)}")


def _show_class(part: Part) -> None:
    from implicitcore.options.docstrings import first_paragraph, option_summaries
    from implicitcore.options.options import options_of

    cls = part.load()
    echo(f"class: {part.target}")
    _show_origin(part, cls)
    options = list(options_of(cls).values())
    echo(f"signature: {cls.__name__}{_signature(cls, options)}")
    texts = option_summaries(cls)
    rows = [
        (
            option.name,
            option.type_text,
            option.bounds_text,
            _default(option),
            texts.get(option.name, ""),
        )
        for option in options
    ]
    echo(
        "\n".join(["options:", *(f"  {line}" for line in aligned(rows))])
        if rows
        else "options: none"
    )
    echo(f"\n{first_paragraph(cls) or part.summary}")


def _show_origin(part: Part, documented: Any) -> None:
    echo(f"file: {_file(documented)}")
    missing = missing_requirements(part.requires)
    if part.requires:
        echo(
            f"requires: {', '.join(part.requires)}"
            + (f" (missing: {pip_install(missing)})" if missing else "")
        )


def _signature(cls: type, options: list[Option]) -> inspect.Signature:
    """The options as parameters of the class.

    What ``**options`` passes to a base class is by keyword.
    """
    own = inspect.signature(cls).parameters
    keyword = inspect.Parameter.KEYWORD_ONLY
    return inspect.Signature(
        [
            inspect.Parameter(
                option.name,
                own[option.name].kind if option.name in own else keyword,
                default=option.default if option.required else _Shown(option.default),
            )
            for option in options
        ]
    )


class _Shown:
    """A default as it is shown."""

    def __init__(self, value: Any) -> None:
        self._value = value

    def __repr__(self) -> str:
        return brief(self._value)


def brief(value: Any) -> str:
    """A value as code; of a part only the options that are not its defaults."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        from implicitcore.options.options import options_of

        given = {
            name: getattr(value, name)
            for name, option in options_of(type(value)).items()
            if getattr(value, name) != option.default
        }
        return (
            f"{type(value).__name__}({', '.join(f'{name}={brief(given[name])}' for name in given)})"
        )
    if isinstance(value, tuple):
        return f"({', '.join(map(brief, value))}{',' * (len(value) == 1)})"
    shown = repr(value)
    return f"{type(value).__name__}()" if shown.startswith("<") else shown


def _default(option: Option) -> str:
    return "required" if option.required else f"default {brief(option.default)}"


def _file(documented: Any) -> str:
    try:
        return inspect.getsourcefile(documented) or "unknown"
    except TypeError:
        return "unknown"
