"""The settings of a training run: data only, checked as a whole before anything is loaded."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Annotated, Any, Literal

from annotated_types import Ge, Gt

from implicitcore import ConfigError
from implicitcore.extend import Options, did_you_mean, options_of

DatasetName = Literal["digits", "mnist", "fashion-mnist", "cifar10"]
DeviceName = Literal["auto", "cpu", "cuda"]
DEFAULTS: dict[str, dict[str, Any]] = {
    "digits": {"hidden": 64, "threads": 1},
    "mnist": {"epochs": 3, "threads": 1},
    "fashion-mnist": {"epochs": 5, "threads": 1},
    "cifar10": {"hidden": 32, "epochs": 10},
}
"""Where a data set is trained with other settings than the usual ones; the same for every layer."""


@dataclass(frozen=True, kw_only=True)
class Settings(Options):
    """What one training run does; how the layer solves and differentiates is said in ``layer``.

    Attributes:
        layer: a registered layer, or a mapping with its ``name`` and options.
        dataset: what to train on.
        data_dir: folder with the data files; without it they are downloaded once.
        hidden: features of the state (channels, for cifar10).
        epochs: passes over the training images.
        batch_size: images per step, in training and in evaluation.
        learning_rate: of Adam.
        seed: of the initial weights and of the order of the images.
        device: where to train; ``auto`` takes CUDA where there is one.
        tolerance: of every solve, forward and backward; None leaves each layer its own.
        threads: CPU threads of torch; None leaves it the choice. The products of the small images
            gain nothing from a second one, and lose much where another process wants its core.

    Raises:
        ConfigError: lists every option of a wrong type or out of its bounds.
    """

    layer: str | dict[str, Any] = "deq"
    dataset: DatasetName = "digits"
    data_dir: Path | None = None
    hidden: Annotated[int, Ge(1)] = 128
    epochs: Annotated[int, Ge(1)] = 20
    batch_size: Annotated[int, Ge(1)] = 128
    learning_rate: Annotated[float, Gt(0)] = 3e-3
    seed: Annotated[int, Ge(0)] = 0
    device: DeviceName = "auto"
    tolerance: Annotated[float, Gt(0)] | None = None
    threads: Annotated[int, Ge(1)] | None = None

    @property
    def layer_name(self) -> str:
        """The layer's name, without its options."""
        return self.layer if isinstance(self.layer, str) else str(self.layer.get("name"))

    def with_layer(self, layer: str | dict[str, Any]) -> Settings:
        """The same settings for another layer."""
        return replace(self, layer=layer)

    def as_data(self) -> dict[str, Any]:
        """The settings as JSON has them; :func:`read_settings` makes their equal from it."""
        return asdict(self) | {"data_dir": None if self.data_dir is None else str(self.data_dir)}


def read_settings(values: Mapping[str, Any]) -> Settings:
    """Settings from a configuration; what it leaves out comes from the data set's defaults.

    Arguments:
        values: option names and values, as YAML, JSON or the command line has them.

    Returns:
        The settings, of the right types and within their bounds. The layer's own options are
        checked when it is built.

    Raises:
        ConfigError: lists every unknown name with its near matches, and every value of a wrong type
            or out of bounds.
    """
    known = options_of(Settings)
    problems: list[str] = []
    read: dict[str, Any] = {}
    for name, value in values.items():
        if name not in known:
            problems.append(
                f"{name}: unknown setting{did_you_mean(name, known)} (settings: "
                f"{', '.join(sorted(known))})"
            )
            continue
        read[name], found = known[name].read(value, from_config=True)
        problems += found
    if problems:
        raise ConfigError(problems)
    return Settings(**DEFAULTS[read.get("dataset", "digits")] | read)
