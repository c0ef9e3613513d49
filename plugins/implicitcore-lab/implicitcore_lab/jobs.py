"""The three jobs behind the commands."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from rich.console import Console

from implicitcore import ConfigError
from implicitcore_lab.data import Dataset, load
from implicitcore_lab.display import make_console
from implicitcore_lab.engine import Engine, choose_device
from implicitcore_lab.errors import Interrupted
from implicitcore_lab.evaluation import evaluate
from implicitcore_lab.experiment import Outcome, Surroundings, check_settings, cpu_threads, run
from implicitcore_lab.keeper import Checkpoints
from implicitcore_lab.models import build_classifier
from implicitcore_lab.plots import draw
from implicitcore_lab.report.writing import write_report
from implicitcore_lab.results import result, show, write_results
from implicitcore_lab.runs import RunDirectory
from implicitcore_lab.settings import Settings, read_settings
from implicitcore_lab.storage import storing, usable
from implicitcore_lab.tensorboard import TensorBoardLog, open_writer
from implicitcore_lab.transaction import Started, Transaction, resumed


@dataclass(frozen=True)
class Target:
    """Where a run goes.

    Attributes:
        out: the run directory; None is ``runs/DATASET-LAYER``.
        overwrite: replace the run that it holds, once the new one has ended well.
        resume: go on from the last checkpoint, where there is one.
        tensorboard: folder for TensorBoard's event files, where they are wanted.
    """

    out: Path | None = None
    overwrite: bool = False
    resume: bool = False
    tensorboard: Path | None = None

    def path(self, settings: Settings) -> Path:
        """The run directory."""
        name = f"{settings.dataset_name}-{settings.layer_name.replace(':', '-')}"
        return self.out or Path("runs") / name

    def of_seed(self, settings: Settings, seed: int) -> Target:
        """The run directory of one seed of several, ``seed-N`` in the common one."""
        logs = self.tensorboard / f"seed-{seed}" if self.tensorboard else None
        return replace(self, out=self.path(settings) / f"seed-{seed}", tensorboard=logs)


def train_one(values: dict[str, Any], target: Target, seeds: Sequence[int] = ()) -> None:
    """Train one layer, once or with several seeds, and save each run.

    Arguments:
        values: the settings, as a configuration file and the command line give them.
        target: where the run goes.
        seeds: one run for each; empty is one run with the seed of the settings.

    Raises:
        ConfigError: lists every problem with the settings; TensorBoard is not installed.
        DataError: the data cannot be read.
        RunError: the directory cannot be written, or holds a run already.
        TrainingError: the loss became infinite or not a number.
        Interrupted: a signal came, and a checkpoint is written.
    """
    (settings,) = check_settings(
        {name: value for name, value in values.items() if name != "layer"},
        [values.get("layer", "deq")],
    )
    places = [target.of_seed(settings, seed) for seed in seeds] or [target]
    each = [replace(settings, seed=seed) for seed in seeds] or [settings]
    each = [
        resumed(one, place.path(one), values) if place.resume else one
        for one, place in zip(each, places, strict=True)
    ]
    engine = Engine(each[0])
    engine.launch()
    console = make_console(quiet=engine.rank > 0)
    with engine.watched():
        found = [
            _train_run(one, place, engine, console) for one, place in zip(each, places, strict=True)
        ]
    outcomes = [outcome for outcome in found if outcome]
    if len(outcomes) > 1:
        show(
            console, [outcomes], f"{settings.dataset_name}, seeds {', '.join(map(str, seeds))}", ""
        )
    engine.close()


def _train_run(
    settings: Settings, target: Target, engine: Engine, console: Console
) -> Outcome | None:
    """One run; None where an earlier process has finished it."""
    path = target.path(settings)
    if target.resume and not target.overwrite and RunDirectory(path).finished:
        console.print(f"{path} holds a finished run; nothing is left to do")
        return None
    with ExitStack() as stack:
        logs = [TensorBoardLog(open_writer(target.tensorboard))] if target.tensorboard else []
        opened: list[Transaction] = []  # of the first process alone: it holds a lock

        def begin() -> Started:
            options = {"overwrite": target.overwrite, "resume": target.resume}
            opened.append(stack.enter_context(Transaction(path, **options)))
            return opened[0].begin(settings)

        started = engine.on_main(begin)
        for note in started.notes:
            console.print(note, style="dim")
        if started.done:
            return None
        data = engine.on_main_first(lambda: load(settings.dataset, settings.data_dir))
        data = data.to(engine.device)
        transaction = opened[0] if opened else None
        keeper = Checkpoints(transaction, engine, settings.checkpoint_minutes)
        watchers = [transaction.lines, *logs] if transaction else []
        stack.enter_context(keeper)
        stack.enter_context(cpu_threads(settings))
        if transaction:
            transaction.set_settings(settings)
        around = Surroundings(engine, watchers, keeper, started.restored)
        try:
            model, outcome = run(settings, data, console, around)
        except Interrupted as interruption:
            raise interruption.by(keeper.signal, path) from interruption
        if transaction:
            weights = model.state_dict()
            config = settings.with_layer(outcome.config)
            transaction.finish(config, weights, result(outcome, data.note))
    show(console, [[outcome]], _title(settings, data), data.note)
    console.print(f"saved in {path}; implicitcore evaluate {path} reproduces the test accuracy")
    return outcome


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
        f"{settings.layer_name} on {settings.dataset_name}: test accuracy "
        f"{result.accuracy:.2%} ({counts})"
    )
    same = result.correct == expected
    console.print(
        "the saved accuracy, exactly"
        if same
        else f"DIFFERS from the saved run, which classified {expected:,} correctly"
    )
    return same


def compare_layers(
    values: dict[str, Any], layers: list[str], out: Path, seeds: Sequence[int] = ()
) -> None:
    """Train several layers alike, print one table, and write what was measured.

    That is ``results.json``, ``comparison.png`` and the page ``report/index.html``.

    Arguments:
        values: the settings but for the layer, as the command line gives them.
        layers: names of registered layers.
        out: directory for them.
        seeds: each layer is trained once with each; empty is the seed of the settings.

    Raises:
        ConfigError: lists every problem with the settings and the layers.
        DataError: the data cannot be read.
        RunError: the directory cannot be written.
        TrainingError: a loss became infinite or not a number.
    """
    if not layers:
        raise ConfigError(["layers: expected at least one name"])
    each = check_settings(values, layers)
    common = each[0]
    if common.devices > 1:
        raise ConfigError(["devices: compare trains in one process; train takes several"])
    console = make_console()
    data = load(common.dataset, common.data_dir).to(choose_device(common))
    with storing(usable(out)):
        out.mkdir(parents=True, exist_ok=True)
    seeds = tuple(seeds) or (common.seed,)
    with cpu_threads(common):
        groups = [
            [run(replace(settings, seed=seed), data, console)[1] for seed in seeds]
            for settings in each
        ]
    title = _title(common, data, seeds)
    show(console, groups, title, data.note)
    with storing(out):
        write_results(out / "results.json", groups, common, data.note)
        draw(out / "comparison.png", groups, title if not data.note else f"{title}\n{data.note}")
    report = write_report([out], out / "report")
    console.print(f"written: {out / 'results.json'}, {out / 'comparison.png'}, {report}")


def _title(settings: Settings, data: Dataset, seeds: Sequence[int] = ()) -> str:
    named = ", ".join(map(str, seeds or (settings.seed,)))
    return (
        f"{data.name}: {len(data.train):,} training and {len(data.test):,} test images, "
        f"{settings.epochs} epochs, cell of {settings.hidden}, seed {named}"
    )
