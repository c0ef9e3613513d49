"""The commands; torch and the rest are imported when one of them runs."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import click

LAYERS = ("deq", "continuous_deq", "skip_deq", "skip_reg_deq", "neural_ode", "homoode")
TOLERANCE = "1e-4"
DIRECTORY = click.Path(file_okay=False, path_type=Path)

# All texts: their types and bounds are checked together with those of a configuration file, in one
# error.
SETTINGS = (
    click.option(
        "--dataset", metavar="NAME", help="digits (default), mnist, fashion-mnist or cifar10."
    ),
    click.option(
        "--data-dir",
        metavar="DIR",
        help="Folder with the data files; without it they are downloaded once.",
    ),
    click.option("--hidden", metavar="N", help="Features of the state (channels, for cifar10)."),
    click.option("--epochs", metavar="N", help="Passes over the training images."),
    click.option("--batch-size", metavar="N", help="Images per step."),
    click.option("--learning-rate", metavar="RATE", help="Of Adam."),
    click.option("--seed", metavar="N", help="Of the initial weights and the order of the images."),
    click.option("--device", metavar="NAME", help="auto (default), cpu or cuda."),
    click.option(
        "--tolerance",
        metavar="TOL",
        help="Of every solve, forward and backward; default 1e-4 in compare, else the layer's own.",
    ),
    click.option("--threads", metavar="N", help="CPU threads of torch."),
)


def settings_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """Add the options that ``train`` and ``compare`` share."""
    for option in reversed(SETTINGS):
        command = option(command)
    return command


@click.command()
@click.option(
    "--config",
    type=click.Path(dir_okay=False, path_type=Path),
    help="YAML or JSON with the settings; options here go over it.",
)
@click.option("--layer", metavar="NAME", help="A registered layer, with its default options.")
@settings_options
@click.option(
    "--out", "--output", type=DIRECTORY, help="Run directory; default runs/DATASET-LAYER."
)
@click.option("--overwrite", is_flag=True, help="Replace the run that the directory holds.")
@click.option(
    "--tensorboard",
    type=DIRECTORY,
    help="Write loss, accuracy and what the solver did to TensorBoard's files in this folder.",
)
def train(  # noqa: PLR0913 - options
    config: Path | None,
    layer: str | None,
    out: Path | None,
    overwrite: bool,
    tensorboard: Path | None,
    **options: str | None,
) -> None:
    """Train one layer on images and save the run: configuration, weights, metrics and result."""
    from implicitcore import load_config
    from implicitcore_lab.jobs import train_one

    values = load_config(config) if config else {}
    train_one(
        values | _given(layer=layer, **options), out, overwrite=overwrite, tensorboard=tensorboard
    )


@click.command()
@click.argument("run", type=DIRECTORY)
@click.option("--data-dir", metavar="DIR", help="Where the data files lie now.")
@click.option("--device", metavar="NAME", help="auto, cpu or cuda.")
def evaluate(run: Path, **options: str | None) -> None:
    """Reload the run in directory RUN and reproduce its test accuracy.

    Exit status 1 where it differs.
    """
    from implicitcore_lab.jobs import evaluate_run

    if not evaluate_run(run, _given(**options)):
        raise SystemExit(1)


@click.command()
@click.option(
    "--layers",
    default=",".join(LAYERS),
    show_default=True,
    metavar="A,B,...",
    help="The layers to train.",
)
@settings_options
@click.option(
    "--out",
    "--output",
    type=DIRECTORY,
    default=Path("comparison"),
    show_default=True,
    help="For results.json and the PNG.",
)
def compare(layers: str, out: Path, **options: str | None) -> None:
    """Train several layers on the same data with the same cell, and compare them.

    All solve to the same tolerance. Prints one table and draws one picture.
    """
    from implicitcore_lab.jobs import compare_layers

    names = [name.strip() for name in layers.split(",") if name.strip()]
    compare_layers({"tolerance": TOLERANCE} | _given(**options), names, out)


def _given(**options: str | None) -> dict[str, str]:
    return {name: value for name, value in options.items() if value is not None}
