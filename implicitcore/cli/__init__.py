"""The command line: what is registered, and the commands that plugins add.

A module here has one command or one group of them. None imports torch: what needs it imports it
when it is run.
"""

from __future__ import annotations

import warnings
from typing import Any

import click

from implicitcore import __version__
from implicitcore.cli.bench import bench
from implicitcore.cli.check import check
from implicitcore.cli.config import config
from implicitcore.cli.group import Commands
from implicitcore.cli.info import info
from implicitcore.cli.new_plugin import new_plugin
from implicitcore.cli.parts import list_parts
from implicitcore.cli.plugins import plugins
from implicitcore.errors import ImplicitCoreWarning


@click.group(
    cls=Commands, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 120}
)
@click.version_option(__version__)
def cli() -> None:
    """Implicit models in PyTorch: any dynamics, any solver, any gradient strategy, on any backend.

    Exit status: 0 all is well; 1 something was found wrong; 2 the command line cannot be read.
    """


for command in (list_parts, info, check, config, plugins, new_plugin, bench):
    cli.add_command(command)


def main() -> None:
    """Run the command line, with implicitcore's warnings as one line each."""
    plain = warnings.formatwarning

    def format_warning(message: Any, category: type[Warning], *rest: Any, **more: Any) -> str:
        return (
            f"Warning: {message}\n"
            if issubclass(category, ImplicitCoreWarning)
            else plain(message, category, *rest, **more)
        )

    warnings.formatwarning = format_warning
    cli(prog_name="implicitcore")
