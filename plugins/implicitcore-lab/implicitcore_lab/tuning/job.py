"""The job behind the command: a configuration's layer on a batch of its data."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from rich.console import Console
from torch import Tensor
from torch.nn.functional import cross_entropy

from implicitcore import ConfigError, SolveResult, load_config
from implicitcore.extend import options_of
from implicitcore_lab.data import Dataset, load
from implicitcore_lab.display import make_console
from implicitcore_lab.engine import choose_device
from implicitcore_lab.experiment import check_settings, cpu_threads
from implicitcore_lab.models import Classifier, build_classifier
from implicitcore_lab.runs import RunDirectory
from implicitcore_lab.settings import Settings
from implicitcore_lab.storage import usable
from implicitcore_lab.tuning.options import TuningOptions
from implicitcore_lab.tuning.picture import table, words
from implicitcore_lab.tuning.problem import Problem, make_problem
from implicitcore_lab.tuning.result import BEST
from implicitcore_lab.tuning.trials import Row
from implicitcore_lab.tuning.tune import search


def tune_config(path: Path, given: Mapping[str, Any], out: Path) -> None:
    """Tune the layer of a configuration, print the front and write the files.

    Arguments:
        path: a file of settings or of a layer, or the directory of a run.
        given: options of the search and settings, as the command line has them.
        out: directory for ``trials.json``, ``front.png`` and ``best.yaml``.

    Raises:
        ConfigError: lists every problem of the options, or of the settings.
        DataError: the data cannot be read.
        RunError: the run, the storage or the directory cannot be used.
        TrainingError: there is no right gradient on this batch.
    """
    names = options_of(TuningOptions)
    options = _read_options({name: it for name, it in given.items() if name in names})
    here = {name: it for name, it in given.items() if name not in names}
    settings = _settings(usable(path), here)
    device = choose_device(settings)
    data = load(settings.dataset, settings.data_dir).to(device)
    model = build_classifier(settings, data.shape, data.classes)
    if path.is_dir():
        RunDirectory(path).load_weights(model)
    console = make_console()
    console.print(
        f"{settings.layer_name} on {settings.batch_size} samples of {settings.dataset_name}, "
        f"{device}; each trial beside the default, trial 0"
    )
    with cpu_threads(settings):
        problem = _problem(model.to(device).train(), data, settings.batch_size)
        tuned = search(problem, options, lambda row: _tell(console, row))
    tuned.save(out)
    console.print(table(tuned))
    console.print(f"gradients are compared with {tuned.reference}")
    console.print(tuned.summary())
    console.print(f"written: {out / BEST} and, beside it, all trials and a picture")


def _read_options(given: Mapping[str, Any]) -> TuningOptions:
    """The options from the texts of a command line."""
    known, problems = options_of(TuningOptions), []
    read: dict[str, Any] = {}
    for name, value in given.items():
        read[name], found = known[name].read(value, from_config=True)
        problems += found
    if problems:
        raise ConfigError(problems)
    return TuningOptions(**read)


def _settings(path: Path, given: Mapping[str, Any]) -> Settings:
    if path.is_dir():
        values = RunDirectory(path).settings().as_data()
    else:
        values = load_config(path)
    if "name" in values:  # of a layer alone
        values = {"layer": values}
    values = {**values, **given}
    layer = values.pop("layer", "deq")
    (settings,) = check_settings(values, [layer])
    return settings


def _problem(model: Classifier, data: Dataset, size: int) -> Problem:
    """The layer on what the encoder makes of the first batch, with the loss of the training."""
    batch = data.train.first(size)
    x = model.encoder(batch.images)

    def loss(solution: SolveResult) -> Tensor:
        return cross_entropy(model.head(solution.z), batch.labels)

    return make_problem(model.layer, x, loss)


def _tell(console: Console, row: Row) -> None:
    it = row.measured
    said = f"refused, {row.reason}" if it is None else f"x {it.time_ratio:.2f}"
    error = "" if it is None else f"  error {it.gradient_error:.1e}"
    console.print(f"trial {row.number:3}  {said}{error}  {words(row)}", soft_wrap=True)
