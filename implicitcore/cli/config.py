"""Configuration files: ``config validate``, ``config show``, ``config schema``."""

from __future__ import annotations

import functools
import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import click

from implicitcore.cli.group import Group, Kind, echo
from implicitcore.errors import ConfigError, RegistryError, did_you_mean, with_article


class ConfigFile(click.ParamType):
    """A file that is there, else an error with the near matches."""

    name = "file"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Path:
        """The file's path."""
        file = Path(value)
        if not file.is_file():
            beside = (
                sorted(other.name for other in file.parent.iterdir() if other.is_file())
                if file.parent.is_dir()
                else []
            )
            self.fail(f"there is no file {value!r}{did_you_mean(file.name, beside)}", param, ctx)
        return file


@click.group(cls=Group, epilog="Example: implicitcore config validate layer.yaml")
def config() -> None:
    """Configuration files: check them, show them with every default, complete them in an editor.

    The file of a layer, in YAML or JSON, is a mapping with the layer's name and its options; what
    only Python can give, as its cell, is not in it.
    """


def of_file(command: Callable[..., Any]) -> Callable[..., Any]:
    """Add the arguments that say which configuration is meant."""
    for option in (
        click.option(
            "--at",
            metavar="KEY",
            help="The configuration stands under this key of the file, as in 'layer: {name: deq}'.",
        ),
        click.option(
            "--kind",
            type=Kind(),
            metavar="KIND",
            default="layer",
            show_default=True,
            help="The kind of part that it is for.",
        ),
        click.argument("file", type=ConfigFile()),
    ):
        command = option(command)
    return command


@config.command(epilog="Example: implicitcore config validate layer.yaml")
@of_file
def validate(file: Path, kind: str, at: str | None) -> None:
    """Check the configuration in FILE. Every problem is listed with its path."""
    from implicitcore.options.options import options_of

    part = read(file, kind, at)
    given_by_python = [
        option.name
        for option in options_of(part.func).values()
        if option.required and option.from_python
    ]
    rest = (
        f"; to build it, give from Python: {', '.join(given_by_python)}" if given_by_python else ""
    )
    echo(f"{file}: valid configuration of {with_article(kind)} ({part.func.__name__}){rest}")


@config.command(epilog="Example: implicitcore config show layer.yaml")
@of_file
@click.option("--json", "as_json", is_flag=True, help="Print JSON, and not YAML.")
def show(file: Path, kind: str, at: str | None, as_json: bool) -> None:
    """Print the configuration in FILE with its defaults.

    It makes the same part, whatever later defaults are.
    """
    from implicitcore.config.build import describe

    data = describe(read(file, kind, at))
    echo(json.dumps(data, indent=2) if as_json else _yaml(data), nl=as_json)


@config.command(epilog="Example: implicitcore config schema > layer.schema.json")
@click.argument("kind", type=Kind(), metavar="[KIND]", default="layer")
@click.argument("name", required=False)
def schema(kind: str, name: str | None) -> None:
    """Print the JSON schema of configurations. Editors complete and check files with it.

    It is for any part of a KIND (default: layer), or for its one part NAME.
    """
    from implicitcore.config.schema import config_schema

    echo(json.dumps(config_schema(kind, name), indent=2))


def read(file: Path, kind: str, at: str | None) -> functools.partial[Any]:
    """The part that a file describes, without what only Python can give.

    Raises:
        ConfigError: lists every problem with the file and its path.
        RegistryError: a name has two providers or cannot be imported, and nothing else is wrong.
    """
    from implicitcore.config.build import prepare
    from implicitcore.config.files import load_config

    data = load_config(file)
    if at is None and "name" not in data:
        raise ConfigError([f"{file}: {_expected(kind, data)}"])
    if at is not None and at not in data:
        raise ConfigError(
            [
                f"{file}: no key {at!r}{did_you_mean(at, map(str, data))} (keys: "
                f"{', '.join(map(str, data)) or 'none'})"
            ]
        )
    try:
        return prepare(kind, data if at is None else data[at], path=at or "")
    except ConfigError as error:
        raise ConfigError([f"{file}: {problem}" for problem in error.problems]) from error
    except RegistryError as error:
        raise type(error)(f"{file}: {error}") from error


def _expected(kind: str, data: Mapping[Any, Any]) -> str:
    """What a file without a name at its top should be."""
    under = [
        str(key)
        for key, value in data.items()
        if key == kind or (isinstance(value, Mapping) and "name" in value)
    ]
    hint = (
        f"; for what stands under a key: {' or '.join(f'--at {key}' for key in under)}"
        if under
        else ""
    )
    keys = ", ".join(map(str, data)) or "none"
    return (
        f"expected the configuration of {with_article(kind)}, a mapping with its 'name' and "
        f"options; received the keys {keys}{hint}"
    )


def _yaml(data: Mapping[str, Any]) -> str:
    """As YAML; without PyYAML as JSON, which YAML includes."""
    try:
        import yaml
    except ImportError:
        return json.dumps(data, indent=2) + "\n"
    return yaml.safe_dump(dict(data), sort_keys=False)
