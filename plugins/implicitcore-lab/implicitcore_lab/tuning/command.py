"""The command ``tune``; torch and Optuna are imported when it runs."""

from __future__ import annotations

from pathlib import Path

import click

NAMES = {"multiple": True, "metavar": "NAME"}


@click.command(epilog="Example: implicitcore tune settings.yaml --trials 60 --out tuned")
@click.argument("config", type=click.Path(path_type=Path))
@click.option("--trials", metavar="N", help="In all, of every process on the study (default 50).")
@click.option("--minutes", metavar="M", help="After which this process begins no further trial.")
@click.option(
    "--max-gradient-error",
    metavar="E",
    help="Largest relative error of the gradient; by default that of the configuration in CONFIG.",
)
@click.option("--root-solver", **NAMES, help="Try this registered root solver too (repeatable).")
@click.option("--ode-solver", **NAMES, help="Try this registered ODE solver too (repeatable).")
@click.option("--gradient", **NAMES, help="Try this registered strategy too (repeatable).")
@click.option(
    "--storage",
    metavar="FILE|URL",
    help="Share the trials: a journal file on a common disk, or the URL of a database.",
)
@click.option("--study", metavar="NAME", help="Its name there; it goes on (default tune).")
@click.option("--seed", metavar="N", help="Of the search (default 0).")
@click.option("--repeats", metavar="N", help="Of each timing (default 5).")
@click.option("--batch-size", metavar="N", help="Of the batch; default that of CONFIG.")
@click.option("--data-dir", metavar="DIR", help="Where the data files lie.")
@click.option("--device", metavar="NAME", help="auto, cpu or cuda.")
@click.option("--threads", metavar="N", help="CPU threads of torch.")
@click.option(
    "--out",
    "--output",
    type=click.Path(file_okay=False, path_type=Path),
    default=Path("tuned"),
    show_default=True,
    help="For trials.json, front.png and best.yaml.",
)
def tune(config: Path, out: Path, **options: str | tuple[str, ...] | None) -> None:
    """Search for the fastest solver, gradient, tolerances and backend of the layer in CONFIG.

    CONFIG is a file of settings as train takes it, a file of a layer alone, or the directory of a
    run, whose trained weights are then used. The layer as it stands there is trial 0; each other
    configuration is timed beside it on one training batch, and its gradient is compared with a
    tight one in float64. Prints the Pareto front and writes all trials, a picture and the best
    configuration. Several processes, here or on other machines, share a study by --storage.
    """
    from implicitcore_lab.tuning.job import tune_config

    given = {name: value for name, value in options.items() if value not in (None, ())}
    tune_config(config, given, out)
