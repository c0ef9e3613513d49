"""A new plugin, written from the template: ``new-plugin``."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path, PurePosixPath
from string import Template
from typing import TYPE_CHECKING

import click

from implicitcore.cli.group import Kind, echo
from implicitcore.options.kinds import PACKAGES
from implicitcore.registry.discovery import canonical
from implicitcore.registry.hookspecs import PROJECT

if TYPE_CHECKING:
    from importlib.resources.abc import Traversable

_NAME = re.compile(r"[a-z][a-z0-9]*(-[a-z0-9]+)*")

_TAKEN = ("all", "builtin")
"""What the settings and the lists call all plugins, and the core's own."""


@dataclass(frozen=True)
class Example:
    """The part that a new plugin has until its author writes another.

    Attributes:
        module: its module, and the end of the name it is registered under.
        cls: its class.
        summary: one line that says what it is.
        subject: what the contract test checks: objects for most kinds, classes of layers and
            of dynamics.
    """

    module: str
    cls: str
    summary: str
    subject: str


_EXAMPLES = {
    "layer": Example(
        "residual",
        "ImplicitResidual",
        "a residual block, part of which is implicit",
        "ImplicitResidual",
    ),
    "dynamics": Example(
        "leaky", "LeakyIntegrator", "a recurrent network in continuous time", "LeakyIntegrator"
    ),
    "root_solver": Example(
        "relaxation", "Relaxation", "Aitken's dynamic relaxation, per sample", "Relaxation()"
    ),
    "ode_solver": Example(
        "ssprk3", "SSPRK3", "strong-stability-preserving Runge-Kutta, order 3", "SSPRK3()"
    ),
    "gradient": Example(
        "momentum", "Momentum", "the implicit gradient by a few steps with momentum", "Momentum()"
    ),
    "backend": Example(
        "wide",
        "WideSums",
        "plain torch, with norms and inner products summed in float64",
        "WideSums()",
    ),
    "start": Example(
        "lifted", "Lifted", "x with further channels, each a learned sum of its own", "Lifted(4, 2)"
    ),
    "cell": Example(
        "orthogonal",
        "OrthogonalCell",
        "a contraction alike in all directions: its matrix is orthogonal",
        "OrthogonalCell(6)",
    ),
    "dataset": Example("spirals", "Spirals", "points on spirals, which no line parts", "Spirals()"),
    "model": Example("lowrank", "LowRank", "few weights: a cell of low rank", "LowRank()"),
    "table": Example(
        "krylov", "Krylov", "Anderson acceleration and GMRES on linear problems", "Krylov()"
    ),
}


@click.command(name="new-plugin", epilog="Example: implicitcore new-plugin fast --kind ode_solver")
@click.argument("name")
@click.option(
    "--directory",
    type=click.Path(exists=True, file_okay=False, writable=True, path_type=Path),
    default=".",
    help="Where its folder is made.",
)
@click.option(
    "--kind",
    type=Kind(),
    metavar="KIND",
    default="root_solver",
    show_default=True,
    help="What its first part is.",
)
def new_plugin(name: str, directory: Path, kind: str) -> None:
    """Write a new plugin: a distribution with one part, its entry point and its contract test.

    The plugin NAME is the distribution implicitcore-NAME in a folder of that name, and the names of
    its parts begin with NAME: the plugin "fast" has parts as "fast-solver". Install it with pip
    install -e, and its tests pass; then put your own part in.
    """
    name = _checked(name)
    folder = directory / f"{PROJECT}-{name}"
    files = render(name, kind)
    try:
        folder.mkdir()
    except FileExistsError:
        raise click.ClickException(
            f"{folder} is there already: choose another name or another --directory"
        ) from None
    for path, text in files.items():
        file = folder / path
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text, encoding="utf-8")
    _warn_of_the_installed(folder.name)
    echo(f"{folder}: the {kind} {name}-{_EXAMPLES[kind].module}")
    for path in files:
        echo(f"  {path}")
    echo(f"Next: pip install -e '{folder}[test]', then pytest {folder}")


def _warn_of_the_installed(distribution: str) -> None:
    """Say that pip would put the new plugin in the place of an installed one."""
    try:
        echo(
            f"Note: {distribution} {version(distribution)} is installed here, and pip will "
            "replace it by yours",
            err=True,
        )
    except PackageNotFoundError:
        return


def render(name: str, kind: str) -> dict[str, str]:
    """The files of a new plugin, by their paths in its folder.

    Arguments:
        name: of the plugin.
        kind: of its part.
    """
    from importlib import resources  # every other command would wait for it

    example = _EXAMPLES[kind]
    package = f"{PROJECT}_{name.replace('-', '_')}"
    home = PACKAGES.get(kind)
    requirement = f'    "{home.replace("_", "-")}>=0.1,<0.2",\n' if home else ""
    values = {
        "name": name,
        "distribution": f"{PROJECT}-{name}",
        "package": package,
        "kind": kind,
        "part": f"{name}-{example.module}",
        "module": example.module,
        "class": example.cls,
        "summary": example.summary,
        "subject": example.subject,
        "requirement": requirement,
        "pages": f"`implicitcore` and `{home or 'implicitcore.extend'}`",
    }
    template = resources.files("implicitcore.cli") / "template"
    sources = {
        path: source
        for path, source in _sources(template, PurePosixPath())
        if path.parts[0] != "parts"
    }
    sources[PurePosixPath("package", f"{example.module}.py")] = template / "parts" / f"{kind}.py.in"
    files = {
        str(path).replace("package", package, 1): Template(
            source.read_text(encoding="utf-8")
        ).substitute(values)
        for path, source in sources.items()
    }
    return dict(sorted(files.items()))


def _sources(
    folder: Traversable, path: PurePosixPath
) -> Iterator[tuple[PurePosixPath, Traversable]]:
    """The files of a folder, and the paths that a plugin has them under.

    Those with code end in ``.in``, lest a tool reads it.
    """
    for entry in folder.iterdir():
        if entry.is_dir():
            yield from _sources(entry, path / entry.name)
        else:
            yield path / entry.name.removesuffix(".in"), entry


def _checked(given: str) -> str:
    """The name of the plugin; that of its distribution is understood."""
    name = given.removeprefix(f"{PROJECT}-")
    if name in _TAKEN:
        raise click.BadParameter(
            f"{name!r} has another meaning in IMPLICITCORE_DISABLE_PLUGINS or 'plugins list'",
            param_hint="'NAME'",
        )
    if not _NAME.fullmatch(name):
        near = canonical(given).strip("-").removeprefix(f"{PROJECT}-")
        hint = f"; did you mean {near!r}?" if _NAME.fullmatch(near) else ""
        raise click.BadParameter(
            f"{given!r} cannot be the name of a plugin: use lower-case letters and digits, "
            f"a letter first, with '-' between words{hint}",
            param_hint="'NAME'",
        )
    return name
