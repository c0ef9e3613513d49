"""What works here and what does not: ``plugins doctor``."""

from __future__ import annotations

import os
import platform
import traceback
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from textwrap import indent
from typing import TYPE_CHECKING

import click

from implicitcore import __version__
from implicitcore.cli.group import aligned, echo, load_command, table
from implicitcore.errors import PluginError, PluginWarning, describe_error, did_you_mean
from implicitcore.options.kinds import NAMED_KINDS
from implicitcore.registry.part import Part, canonical, missing_requirements, pip_install
from implicitcore.registry.registry import REGISTRY

if TYPE_CHECKING:
    from implicitcore.registry.discovery import Plugin

LAST_FRAMES = 3
"""How many frames of a traceback are shown without ``-v``: the plugin's own, mostly."""


@dataclass(frozen=True)
class Problem:
    """What is wrong, in one message, and the exception behind it, where there is one."""

    message: str
    cause: BaseException | None = None


@click.command(epilog="Example: implicitcore plugins doctor")
@click.option("-v", "--verbose", is_flag=True, help="Print tracebacks in full.")
def doctor(verbose: bool) -> None:
    """Import every part of every plugin, and say what works here.

    Exit status 1 where something is wrong. Of what is broken it prints the last frames of the
    traceback and what to install; of the backends, which run here and which one 'auto' is.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", PluginWarning)  # what they say is said here
        plugins = REGISTRY.plugins()
        without_torch = _show_machine()
        problems = [Problem(plugin.problem, plugin.cause) for plugin in plugins if plugin.error]
        if without_torch:
            problems.insert(0, without_torch)  # no part can be imported, for this one reason
            broken = {}
        else:
            broken = {part: problem for part, problem in _import_parts()}
            problems += broken.values()
            problems += _show_backends(broken)
        _show_plugins(plugins, broken, imported=not without_torch)
    for note in _notes(plugins):
        echo(f"note: {note}")
    _show_problems(problems, verbose)
    if problems:
        raise SystemExit(1)


def _show_machine() -> Problem | None:
    """Print the versions; what is wrong with torch, where it cannot be imported."""
    rows = [
        ("python", f"{platform.python_version()}, {platform.system()} {platform.machine()}"),
        ("implicitcore", __version__),
    ]
    problem = None
    try:
        import torch
    except Exception as error:  # a torch that was built for another machine fails in its own ways
        problem = Problem(f"torch cannot be imported: {describe_error(error)}", error)
        rows.append(("torch", "cannot be imported"))
    else:
        rows += [("torch", f"{torch.__version__}, built for {_target()}"), ("cuda", _cuda())]
    echo("\n".join(aligned(rows)))
    return problem


def _target() -> str:
    from torch import version

    return (
        f"CUDA {version.cuda}"
        if version.cuda
        else f"ROCm {version.hip}"
        if version.hip
        else "the CPU alone"
    )


def _cuda() -> str:
    """The devices, or why there are none; torch has those of ROCm under the same name."""
    from torch import cuda

    with warnings.catch_warnings(record=True) as said:  # torch warns of a driver that is too old
        warnings.simplefilter("always")
        available = cuda.is_available()
    if available:
        devices = [cuda.get_device_properties(index) for index in range(cuda.device_count())]
        return "; ".join(
            f"{each.name}, capability {each.major}.{each.minor}, "
            f"{each.total_memory / 2**30:.0f} GiB"
            for each in devices
        )
    if said:
        return f"not available: {'; '.join(str(warning.message) for warning in said)}"
    return "not available: no device, no driver, or not the build for it"


def _import_parts() -> Iterator[tuple[Part, Problem]]:
    """Import every part, and give those that cannot be used."""
    from implicitcore.options.options import options_of

    for part in REGISTRY.parts():
        try:
            if part.kind in NAMED_KINDS:
                options_of(part.load())
            else:
                load_command(part)
        except PluginError as error:
            message = str(error) if str(part) in str(error) else f"{part}: {error}"
            yield part, Problem(message, error.__cause__)


def _show_backends(broken: dict[Part, Problem]) -> list[Problem]:
    """Print which backends run here and which of them ``auto`` is.

    Those whose code raised are problems.
    """
    from implicitcore.config.auto_backend import candidates, choose

    found = list(candidates(REGISTRY))
    rows = [
        (
            asked.part.name,
            asked.part.provider,
            "yes" if asked.reason is None else f"no: {asked.reason}",
        )
        for asked in found
    ]
    echo()
    table(("BACKEND", "PROVIDER", "RUNS HERE"), rows)
    names = ", ".join(asked.part.name for asked in found)
    auto = choose(found).part.name
    echo(f"auto is {auto}: the first that runs on this CPU, asked in the order {names}")
    return [
        Problem(str(asked.reason), asked.error)
        for asked in found
        if asked.error and asked.part not in broken
    ]


def _show_plugins(
    plugins: tuple[Plugin, ...], broken: dict[Part, Problem], *, imported: bool
) -> None:
    def parts(plugin: Plugin) -> str:
        if not plugin.usable:
            return ""
        good = sum(part not in broken for part in plugin.parts)
        return (
            f"{good} of {len(plugin.parts)} can be imported"
            if imported
            else f"{len(plugin.parts)} not imported"
        )

    rows = [
        (plugin.name, plugin.distribution, plugin.version or "", plugin.status, parts(plugin))
        for plugin in plugins
    ]
    echo()
    table(("PLUGIN", "DISTRIBUTION", "VERSION", "STATUS", "PARTS"), rows)


def _notes(plugins: tuple[Plugin, ...]) -> Iterator[str]:
    """What may not be meant as it is, though nothing fails for it."""
    from importlib.metadata import entry_points

    from implicitcore.registry.discovery import DISABLE
    from implicitcore.registry.hookspecs import PROJECT

    known = {
        canonical(name) for plugin in plugins for name in (plugin.name, plugin.distribution)
    } | {"all"}
    for name in filter(None, map(str.strip, os.environ.get(DISABLE, "").split(","))):
        if canonical(name) not in known:
            yield (
                f"{DISABLE} names {name!r}, which is no "
                f"plugin{did_you_mean(canonical(name), known)}"
            )
    for group in sorted(entry_points().groups):
        if group != PROJECT and canonical(group).replace("-", "") in (
            PROJECT,
            f"{PROJECT}s",
            f"{PROJECT}plugin",
            f"{PROJECT}plugins",
        ):
            points = ", ".join(
                f"{point.name} = {point.value}" for point in entry_points(group=group)
            )
            yield (
                f"the entry points of the group {group!r} are not read ({points}): the group "
                f"is {PROJECT!r}"
            )
    missing = sorted(
        {name for part in REGISTRY.parts() for name in missing_requirements(part.requires)}
    )
    if missing:
        yield (
            f"not installed, and named as a requirement of a part: {', '.join(missing)} "
            f"({pip_install(missing)})"
        )


def _show_problems(problems: list[Problem], verbose: bool) -> None:
    echo(f"\n{len(problems)} problem{'s' * (len(problems) != 1)}" if problems else "\nall is well")
    for problem in problems:
        echo(f"\n{problem.message}")
        # A PluginError is ours: its message, printed above, is the whole of it.
        if problem.cause is not None and (verbose or not isinstance(problem.cause, PluginError)):
            echo(_traceback(problem.cause, verbose))


def _traceback(cause: BaseException, verbose: bool) -> str:
    """The traceback; where it need not be full, its last frames but for those of the import."""
    told = traceback.TracebackException.from_exception(cause)
    if not verbose:
        told.stack[:] = [frame for frame in told.stack if "importlib" not in frame.filename][
            -LAST_FRAMES:
        ]
    return indent("".join(told.format(chain=verbose)).rstrip(), "  ")
