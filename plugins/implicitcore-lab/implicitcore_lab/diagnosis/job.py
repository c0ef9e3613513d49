"""The job behind the command ``diagnose``."""

from __future__ import annotations

import json
from pathlib import Path

import torch

from implicitcore import ConfigError, load_config
from implicitcore_lab.data import Dataset, load
from implicitcore_lab.diagnosis.diagnose import diagnose
from implicitcore_lab.diagnosis.pictures import draw_diagnosis
from implicitcore_lab.display import make_console
from implicitcore_lab.engine import choose_device
from implicitcore_lab.experiment import check_settings, cpu_threads
from implicitcore_lab.models import Classifier, build_classifier
from implicitcore_lab.runs import RunDirectory
from implicitcore_lab.settings import Settings, read_settings
from implicitcore_lab.storage import storing, usable


def diagnose_job(subject: Path, samples: int, out: Path, overrides: dict[str, str]) -> bool:
    """Diagnose the layer of a run or of a configuration on test images, print and write it.

    The layer is in training mode, as in the step that is to be understood; what is around it is
    not.

    Arguments:
        subject: a run directory, or a configuration file.
        samples: so many images.
        out: the folder for ``diagnosis.json`` and ``diagnosis.png``.
        overrides: settings that differ here: ``data_dir``, ``device``.

    Returns:
        Whether no fault was found.

    Raises:
        ConfigError: a setting cannot be used.
        DataError: the data cannot be read.
        RunError: a file of the run is missing or damaged.
    """
    if samples < 1:
        raise ConfigError([f"samples: expected at least 1, received {samples}"])
    directory = None if subject.is_file() else RunDirectory(subject)
    settings = _settings(subject, directory, overrides)
    data = load(settings.dataset, settings.data_dir)
    model = build_classifier(settings, data.shape, data.classes)
    if directory is not None:
        directory.load_weights(model)
    device = choose_device(settings)
    with cpu_threads(settings):
        return _measure(model.to(device), data.to(device), (samples, out), settings)


def _settings(subject: Path, directory: RunDirectory | None, overrides: dict[str, str]) -> Settings:
    if directory is not None:
        return read_settings(directory.settings().as_data() | overrides)
    values = load_config(subject) | overrides
    common = {name: value for name, value in values.items() if name != "layer"}
    return check_settings(common, [values.get("layer", "deq")])[0]


def _measure(
    model: Classifier, data: Dataset, wanted: tuple[int, Path], settings: Settings
) -> bool:
    samples, out = wanted
    part = data.test.first(samples)
    model.eval()
    with torch.no_grad():
        x = model.encoder(part.images)
    model.layer.train()
    found = diagnose(model.layer, x, readout=model.head, labels=part.labels, samples=samples)
    console = make_console()
    console.print(
        f"{settings.layer_name} on {settings.dataset_name}, {len(part)} test images", markup=False
    )
    console.print(str(found), markup=False, highlight=False, soft_wrap=True)
    with storing(usable(out)):
        out.mkdir(parents=True, exist_ok=True)
        (out / "diagnosis.json").write_text(json.dumps(found.as_data(), indent=1) + "\n")
        draw_diagnosis(out / "diagnosis.png", found)
    console.print(f"written: {out / 'diagnosis.json'}, {out / 'diagnosis.png'}", markup=False)
    return found.healthy
