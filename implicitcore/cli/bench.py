"""How fast things are here: ``bench backend``."""

from __future__ import annotations

import json
import re
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

import click

from implicitcore.cli.group import Group, echo, table
from implicitcore.registry.registry import REGISTRY

if TYPE_CHECKING:
    from implicitcore.backends.base import Backend
    from implicitcore.backends.measure import Measured, Plan

SHAPES = ("32x128", "256x1024", "64x16384", "1x1000000")


def _shapes(
    ctx: click.Context, param: click.Parameter, values: tuple[str, ...]
) -> list[tuple[int, int]]:
    found = []
    for value in values:
        sizes = re.fullmatch(r"([1-9]\d*)x([1-9]\d*)", value)
        if not sizes:
            raise click.BadParameter(
                f"{value!r} is not two numbers above zero, BATCHxN, such as 32x128", ctx, param
            )
        found.append((int(sizes[1]), int(sizes[2])))
    return found


@click.group(cls=Group, epilog="Example: implicitcore bench backend --quick")
def bench() -> None:
    """Measure how fast things are on this machine."""


@bench.command(epilog="Example: implicitcore bench backend --device cuda --shape 32x128 --compile")
@click.option(
    "--device",
    type=click.Choice(("cpu", "cuda")),
    default="cpu",
    show_default=True,
    help="Where the kernels run.",
)
@click.option(
    "--shape",
    "shapes",
    multiple=True,
    callback=_shapes,
    default=SHAPES,
    show_default=True,
    help="Of the states, BATCHxN; repeat it for more.",
)
@click.option(
    "--dtype",
    "dtypes",
    type=click.Choice(("float32", "float64", "bfloat16")),
    multiple=True,
    default=("float32",),
    show_default=True,
)
@click.option(
    "--compile",
    "compiled",
    is_flag=True,
    help="The torch backend's kernels under torch.compile too.",
)
@click.option(
    "--json",
    "path",
    type=click.Path(dir_okay=False, writable=True),
    help="Write the rows to this file as well.",
)
@click.option("--quick", is_flag=True, help="Tiny states and one repetition: does it run?")
def backend(**options: Any) -> None:
    """Measure each kernel of each backend against torch: time, and how much memory it moves in it.

    The backends are timed by turns, and a time is a median. GB/S counts what a kernel must read and
    write at least.
    """
    from implicitcore.backends.measure import measure

    plan = _plan(**options)
    able, absent = _backends(plan.device.type)
    rows = list(measure(able, plan))
    table(
        ("KERNEL", "STATE", "DTYPE", "BACKEND", "MICROSECONDS", "GB/S", "FASTER THAN TORCH"),
        [_cells(row) for row in rows],
    )
    for name, reason in absent.items():
        echo(f"\n{name} was not measured: {reason}")
    if options["path"]:
        lines = [
            json.dumps(entry)
            for entry in (*map(asdict, rows), {"machine": _machine(plan), "not_measured": absent})
        ]
        with open(options["path"], "w", encoding="utf-8") as file:
            file.write("[\n" + ",\n".join(lines) + "\n]\n")


def _plan(
    *,
    device: str,
    shapes: list[tuple[int, int]],
    dtypes: tuple[str, ...],
    compiled: bool,
    quick: bool,
    path: object,
) -> Plan:
    import torch

    from implicitcore.backends.measure import Plan

    if device == "cuda" and not torch.cuda.is_available():
        raise click.ClickException(f"torch {torch.__version__} finds no CUDA device")
    where, types = torch.device(device), [getattr(torch, name) for name in dtypes]
    if quick:
        return Plan(where, [(4, 64)], types, repetitions=1, window=0.0, compiled=compiled)
    return Plan(where, shapes, types, compiled=compiled)


def _backends(device: str) -> tuple[dict[str, Backend], dict[str, str]]:
    """Those that can run on the device, and why each of the others cannot."""
    from implicitcore.config.auto_backend import candidates

    able, absent = {}, {}
    for asked in candidates(REGISTRY):
        if asked.backend is None or asked.reason is not None:
            absent[asked.part.name] = str(asked.reason)
        elif device not in asked.backend.device_types:
            absent[asked.part.name] = (
                f"it runs on {' and '.join(asked.backend.device_types)}, not on {device}"
            )
        else:
            able[asked.part.name] = asked.backend
    return able, absent


def _cells(row: Measured) -> tuple[str, ...]:
    speeds = f"{row.seconds * 1e6:.1f}", f"{row.gigabytes_per_second:.1f}", f"{row.faster:.2f} x"
    return row.kernel, f"{row.batch} x {row.n}", row.dtype, row.backend, *speeds


def _machine(plan: Plan) -> dict[str, str]:
    import platform

    import torch

    device = (
        torch.cuda.get_device_name(plan.device)
        if plan.device.type == "cuda"
        else platform.processor() or platform.machine()
    )
    return {"device": device, "torch": torch.__version__, "threads": str(torch.get_num_threads())}
