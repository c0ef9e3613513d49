"""The contract of a part: ``check``."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import click

from implicitcore.cli.group import Kind, echo, table
from implicitcore.errors import ConfigError
from implicitcore.options.kinds import MODULE_KINDS, PIECE_KINDS

if TYPE_CHECKING:
    from implicitcore.testing import CheckResult

Settings = tuple[tuple[str, Any], ...]
"""Keys and values from the command line."""


class Setting(click.ParamType):
    """An option of the part: ``key=value``."""

    name = "key=value"

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> tuple[str, Any]:
        """The key and the value.

        Lists and mappings are in JSON, all else is a text, which the option reads.
        """
        key, equals, text = str(value).partition("=")
        if not (key and equals):
            self.fail(f"expected key=value, received {value!r}", param, ctx)
        try:
            return key, json.loads(text) if text == "null" or text[:1] in ("{", "[") else text
        except json.JSONDecodeError as error:
            self.fail(f"the value of {key} is no JSON: {error}", param, ctx)


@click.command(epilog="Example: implicitcore check root_solver anderson -o tol=1e-6")
@click.argument("kind", type=Kind(), metavar="KIND")
@click.argument("name")
@click.option(
    "-o",
    "--option",
    "settings",
    type=Setting(),
    multiple=True,
    help="An option of the part: tol=1e-6, or ode_solver.name=rk4.",
)
@click.option(
    "-x",
    "--expect",
    type=Setting(),
    metavar="CHECK=REASON",
    multiple=True,
    help="This check is expected to fail, and must.",
)
def check(kind: str, name: str, settings: Settings, expect: Settings) -> None:
    """Run the contract checks on a part. Exit status 1 where one fails."""
    from implicitcore.registry.registry import REGISTRY
    from implicitcore.testing import run_checks

    REGISTRY.find(
        kind, name
    ).load()  # first, for what is wrong with it is not wrong with the options
    try:
        results = run_checks(_made(kind, name, settings), expected_failed_checks=dict(expect))
    except ConfigError as error:
        raise click.UsageError(str(error)) from error
    table(
        ("CHECK", "STATUS", "MESSAGE"),
        [(result.name, result.status, " ".join(result.message.split())) for result in results],
    )
    echo(f"\n{_counted(results)}")
    if any(result.status == "failed" for result in results):
        raise SystemExit(1)


def _made(kind: str, name: str, settings: Settings) -> Any:
    """The part with its options.

    Of the kinds that the checks make themselves, its class with them.
    """
    from implicitcore.config.build import create, prepare

    make = prepare if kind in (*MODULE_KINDS, *PIECE_KINDS) else create
    return make(kind, nested(settings) | {"name": name})


def nested(settings: Settings) -> dict[str, Any]:
    """The options as a configuration.

    ``solver.tol`` is an option of the part ``solver``, of which the name alone may stand before it.

    >>> nested((("solver", "gmres"), ("solver.tol", "1e-4")))
    {'solver': {'name': 'gmres', 'tol': '1e-4'}}
    """
    options: dict[str, Any] = {}
    for key, value in settings:
        *path, last = key.split(".")
        inner = options
        for step in path:
            held = inner.get(step, {})
            inner[step] = held if isinstance(held, dict) else {"name": held}
            inner = inner[step]
        inner[last] = value
    return options


def _counted(results: list[CheckResult]) -> str:
    statuses = [result.status for result in results]
    return ", ".join(f"{statuses.count(status)} {status}" for status in dict.fromkeys(statuses))
