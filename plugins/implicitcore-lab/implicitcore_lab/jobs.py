"""The three jobs behind the commands."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from implicitcore import ConfigError
from implicitcore_lab.data import Dataset, load
from implicitcore_lab.display import make_console
from implicitcore_lab.errors import RunError
from implicitcore_lab.experiment import check_settings, choose_device, cpu_threads, run
from implicitcore_lab.models import build_classifier
from implicitcore_lab.plots import draw
from implicitcore_lab.report import show, write_results
from implicitcore_lab.runs import RunDirectory
from implicitcore_lab.settings import Settings, read_settings
from implicitcore_lab.tensorboard import TensorBoardLog, open_writer
from implicitcore_lab.training import evaluate


def train_one(
    values: dict[str, Any], out: Path | None, *, overwrite: bool, tensorboard: Path | None = None
) -> None:
    """Train one layer and save the run.

    Arguments:
        values: the settings, as a configuration file and the command line give them.
        out: the run directory; default ``runs/DATASET-LAYER``.
        overwrite: replace the run that the directory holds.
        tensorboard: folder for TensorBoard's event files, where they are wanted.

    Raises:
        ConfigError: lists every problem with the settings; TensorBoard is not installed.
        DataError: the data cannot be read.
        RunError: the directory cannot be written, or holds a run already.
        TrainingError: the loss became infinite or not a number.
    """
    layer = values.pop("layer", "deq")
    (settings,) = check_settings(values, [layer])
    console = make_console()
    directory = RunDirectory(
        out or Path("runs") / f"{settings.dataset}-{settings.layer_name.replace(':', '-')}"
    )
    data = load(settings.dataset, settings.data_dir).to(choose_device(settings))
    logs = [TensorBoardLog(open_writer(tensorboard))] if tensorboard else []
    directory.create(overwrite=overwrite)
    with cpu_threads(settings):
        model, outcome = run(settings, data, console, [directory.metrics(), *logs])
    directory.save(settings, model, outcome, data.note)
    show(console, [outcome], _title(settings, data), data.note)
    console.print(
        f"saved in {directory.path}; implicitcore evaluate {directory.path} reproduces the "
        "test accuracy"
    )


def evaluate_run(path: Path, overrides: dict[str, str]) -> bool:
    """Reload a run and compare its test accuracy with the one it was saved with.

    Arguments:
        path: the run directory.
        overrides: settings that differ here: ``data_dir``, ``device``.

    Returns:
        Whether the same number of test images was classified correctly.

    Raises:
        ConfigError: a setting cannot be used.
        DataError: the data cannot be read.
        RunError: a file of the run is missing or damaged.
    """
    directory = RunDirectory(path)
    settings = read_settings(directory.settings().as_data() | overrides)
    expected = directory.correct()
    device = choose_device(settings)
    data = load(settings.dataset, settings.data_dir)
    model = build_classifier(settings, data.shape, data.classes)
    directory.load_weights(model)
    with cpu_threads(settings):
        result = evaluate(model.to(device), data.test.to(device), settings.batch_size)
    console = make_console()
    counts = f"{result.correct:,} of {result.samples:,}"
    console.print(
        f"{settings.layer_name} on {settings.dataset}: test accuracy "
        f"{result.accuracy:.2%} ({counts})"
    )
    same = result.correct == expected
    console.print(
        "the saved accuracy, exactly"
        if same
        else f"DIFFERS from the saved run, which classified {expected:,} correctly"
    )
    return same


def compare_layers(values: dict[str, Any], layers: list[str], out: Path) -> None:
    """Train several layers alike, print one table, and write two files.

    They are ``results.json`` and ``comparison.png``.

    Arguments:
        values: the settings but for the layer, as the command line gives them.
        layers: names of registered layers.
        out: directory for the two files.

    Raises:
        ConfigError: lists every problem with the settings and the layers.
        DataError: the data cannot be read.
        RunError: the directory cannot be written.
        TrainingError: a loss became infinite or not a number.
    """
    if not layers:
        raise ConfigError(["layers: expected at least one name"])
    each = check_settings(values, layers)
    console = make_console()
    common = each[0]
    data = load(common.dataset, common.data_dir).to(choose_device(common))
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise RunError(f"{out} cannot be written: {error}") from error
    with cpu_threads(common):
        outcomes = [run(settings, data, console)[1] for settings in each]
    title = _title(common, data)
    show(console, outcomes, title, data.note)
    write_results(out / "results.json", outcomes, common, data.note)
    draw(out / "comparison.png", outcomes, title if not data.note else f"{title}\n{data.note}")
    console.print(f"written: {out / 'results.json'}, {out / 'comparison.png'}")


def _title(settings: Settings, data: Dataset) -> str:
    return (
        f"{data.name}: {len(data.train):,} training and {len(data.test):,} test images, "
        f"{settings.epochs} epochs, cell of {settings.hidden}, seed {settings.seed}"
    )
