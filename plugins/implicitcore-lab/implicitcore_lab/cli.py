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
# error. The metavariable and the help of each setting, by its name.
SETTINGS = {
    "dataset": ("NAME", "A registered data set; digits by default."),
    "model": ("NAME", "A registered model around the layer; by the data's channels by default."),
    "data_dir": ("DIR", "Folder with the data files; without it they are downloaded once."),
    "hidden": ("N", "Features of the state (channels, for cifar10)."),
    "epochs": ("N", "Passes over the training images."),
    "batch_size": ("N", "Images at a time, all processes together."),
    "accumulate": ("N", "Batches whose gradients make one step (default 1)."),
    "learning_rate": ("RATE", "Of the optimiser, at its highest."),
    "optimizer": ("NAME", "adam (default), adamw or sgd."),
    "momentum": ("M", "Of sgd (default 0.9)."),
    "weight_decay": ("W", "Of the optimiser (default 0); a learned start has none."),
    "schedule": ("NAME", "constant (default), cosine or step."),
    "decay": ("FACTOR", "Of schedule step (default 0.1)."),
    "decay_epochs": ("N", "Between the steps of schedule step (default 10)."),
    "warmup": ("STEPS", "In which the learning rate rises from 0 (default 0)."),
    "clip": ("NORM", "The largest norm of the gradient."),
    "label_smoothing": ("S", "Of the cross entropy (default 0)."),
    "regularizer_weight": ("W", "Times the layer's own loss term (default 1)."),
    "jacobian_weight": ("W", "Times |df/dz|^2 / n at the solution (default 0)."),
    "unrolled_steps": ("N", "First steps that iterate the cell without a solve (default 0)."),
    "unrolled_depth": ("N", "Iterations in those steps (default 6)."),
    "warm_start": ("true|false", "Begin each image at its equilibrium of the last epoch."),
    "start_optimizer": ("NAME", "Another optimiser for a learned start: adam, adamw or sgd."),
    "start_learning_rate": ("RATE", "Of that one (default 0.01)."),
    "start_every": ("N", "It steps once in so many steps (default 1)."),
    "ema": ("DECAY", "Evaluate and save the exponential moving average of the weights."),
    "validation": ("FRACTION", "Of the training images that is held out (default 0)."),
    "patience": ("EPOCHS", "End when so many brought no better validation accuracy."),
    "flip": ("true|false", "Mirror each training image with probability 1/2."),
    "crop": ("PIXELS", "Shift each training image by up to so many (default 0)."),
    "seed": ("N", "Of the initial weights and the order of the images."),
    "device": ("NAME", "auto (default), cpu or cuda."),
    "devices": ("N", "Processes on this machine, one a device (default 1)."),
    "strategy": ("NAME", "Of several processes: ddp (default) or fsdp."),
    "precision": ("NAME", "32 (default), bf16-mixed or 16-mixed."),
    "compile": ("true|false", "Compile encoder, cell and head with torch.compile."),
    "tolerance": ("TOL", "Of every solve; default 1e-4 in compare, else the layer's own."),
    "threads": ("N", "CPU threads of torch."),
    "checkpoint_minutes": ("MINUTES", "Between two checkpoints in an epoch (default 10)."),
}


class Seeds(click.ParamType):
    """Several seeds: 0,1,2."""

    name = "seeds"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        """The seeds as a tuple of numbers."""
        if isinstance(value, tuple):
            return value
        words = [word.strip() for word in value.split(",")]
        if not all(word.isdecimal() and int(word) < 2**63 for word in words):
            self.fail(f"expected whole numbers with commas between them, received {value!r}")
        if len(set(words)) < len(words):
            self.fail(f"a seed is given twice in {value!r}")
        return tuple(map(int, words))


SEEDS = click.option(
    "--seeds",
    type=Seeds(),
    default=(),
    metavar="N,N,...",
    help="Train once with each seed; tables give mean and deviation.",
)


def settings_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """Add the options that ``train`` and ``compare`` share."""
    for name, (metavar, text) in reversed(SETTINGS.items()):
        option = click.option(f"--{name.replace('_', '-')}", metavar=metavar, help=text)
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
@click.option(
    "--overwrite",
    is_flag=True,
    help="Replace the run that the directory holds, when this one has ended well.",
)
@click.option(
    "--resume",
    is_flag=True,
    help="Go on from the last checkpoint; begin where there is none.",
)
@SEEDS
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
    resume: bool,
    seeds: tuple[int, ...],
    tensorboard: Path | None,
    **options: str | None,
) -> None:
    """Train one layer on images and save the run: configuration, weights, metrics and result.

    The run directory appears when the run has ended well. A checkpoint is written after each epoch,
    every so many minutes, and on SIGTERM and SIGINT (exit status 128 + signal); --resume goes on
    from it. With --devices N, or under torchrun, N processes share each batch.
    """
    from implicitcore import load_config
    from implicitcore_lab.errors import Interrupted
    from implicitcore_lab.jobs import Target, train_one

    values = load_config(config) if config else {}
    target = Target(out, overwrite, resume, tensorboard)
    try:
        train_one(values | _given(layer=layer, **options), target, seeds)
    except Interrupted as error:
        click.echo(f"{error}", err=True)
        raise SystemExit(128 + error.signal if error.signal else 1) from error


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
@SEEDS
@click.option(
    "--out",
    "--output",
    type=DIRECTORY,
    default=Path("comparison"),
    show_default=True,
    help="For results.json, the PNG and the report.",
)
def compare(layers: str, out: Path, seeds: tuple[int, ...], **options: str | None) -> None:
    """Train several layers on the same data with the same cell, and compare them.

    All solve to the same tolerance. Prints one table, draws one picture, and writes a report.
    """
    from implicitcore_lab.jobs import compare_layers

    names = [name.strip() for name in layers.split(",") if name.strip()]
    compare_layers({"tolerance": TOLERANCE} | _given(**options), names, out, seeds)


@click.command()
@click.argument("table", metavar="TABLE")
@click.option(
    "--budget",
    default="short",
    show_default=True,
    metavar="NAME",
    help="How much is spent: smoke (does it run), short, or paper.",
)
@click.option(
    "--seeds",
    type=Seeds(),
    default="0,1,2",
    show_default=True,
    metavar="N,N,...",
    help="Each row is measured once with each.",
)
@click.option("--rows", default="", metavar="A,B,...", help="Rows, or patterns as 'skip-*'.")
@click.option("--resume", is_flag=True, help="Go on from what the output folder holds.")
@click.option("--out", "--output", type=DIRECTORY, help="Folder; default papers/TABLE-BUDGET.")
@click.option("--data-dir", metavar="DIR", help=SETTINGS["data_dir"][1])
@click.option("--device", metavar="NAME", help=SETTINGS["device"][1])
def reproduce(  # noqa: PLR0913 - options
    table: str,
    budget: str,
    seeds: tuple[int, ...],
    rows: str,
    resume: bool,
    out: Path | None,
    **options: str | None,
) -> None:
    """Measure the table TABLE of a paper again and write a page about it.

    The rows train in one process, a step of each in turn, so that their times compare. The page
    (Markdown, HTML, PNG and JSON) says what the paper claims, what was measured, how and on what.
    On SIGTERM and SIGINT each row writes a checkpoint; --resume goes on from there.
    """
    from implicitcore_lab.errors import Interrupted
    from implicitcore_lab.papers.reproduce import reproduce as measure

    patterns = [name.strip() for name in rows.split(",") if name.strip()]
    try:
        measure(table, budget, seeds, (out, resume), _given(**options), patterns)
    except Interrupted as error:
        click.echo(f"{error}", err=True)
        raise SystemExit(128 + error.signal if error.signal else 1) from error


@click.command()
@click.argument("runs", nargs=-1, required=True, type=DIRECTORY)
@click.option(
    "--out",
    "--output",
    type=DIRECTORY,
    default=Path("report"),
    show_default=True,
    help="For index.html and the tables.",
)
def report(runs: tuple[Path, ...], out: Path) -> None:
    """Write the runs in directories RUNS as one page: index.html.

    RUNS are what train or compare wrote, or directories that hold such. The page needs no network;
    each of its tables lies beside it as CSV and as LaTeX.
    """
    from implicitcore_lab.report.writing import write_report

    click.echo(f"written: {write_report(runs, out)}")


def _given(**options: str | None) -> dict[str, str]:
    return {name: value for name, value in options.items() if value is not None}
