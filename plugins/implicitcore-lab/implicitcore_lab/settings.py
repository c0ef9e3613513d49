"""The settings of a training run: data only, checked as a whole before anything is loaded."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Annotated, Any, Literal

from annotated_types import Ge, Gt, Le, Lt

from implicitcore import ConfigError, create
from implicitcore.extend import Options, did_you_mean, options_of

DeviceName = Literal["auto", "cpu", "cuda"]
OptimizerName = Literal["adam", "adamw", "sgd"]
StrategyName = Literal["ddp", "fsdp"]
Rate = Annotated[float, Gt(0), Le(1e6)]
"""A learning rate: positive and finite."""
Weight = Annotated[float, Ge(0), Le(1e6)]
"""The weight of a term of the loss."""
Size = Annotated[int, Ge(1), Le(1_000_000)]
"""How many of something that takes memory or threads."""
Steps = Annotated[int, Ge(0), Le(1_000_000_000)]
Fraction = Annotated[float, Ge(0), Lt(1)]
RUN_ONLY = ("data_dir", "device", "checkpoint_minutes", "threads")
"""What a run that goes on may have otherwise than before: where it runs, not what is trained."""


@dataclass(frozen=True, kw_only=True)
class Settings(Options):
    """What one training run does; how the layer solves and differentiates is said in ``layer``.

    Attributes:
        layer: a registered layer, or a mapping with its ``name`` and options.
        dataset: a registered data set, or a mapping with its ``name`` and options.
        model: a registered model, or a mapping with its ``name`` and options: what is around the
            layer; None is ``convolutional`` for images of three channels, else ``dense``.
        data_dir: folder with the data files; without it they are downloaded once.
        hidden: features of the state (channels, for cifar10).
        epochs: passes over the training images.
        batch_size: images at a time, in training and in evaluation; all processes together.
        accumulate: batches whose gradients are added up for one step of the optimiser.
        learning_rate: of the optimiser, at its highest.
        optimizer: adam, adamw or sgd (with ``momentum``).
        momentum: of sgd.
        weight_decay: of the optimiser; a learned start has none.
        schedule: of the learning rate: constant, cosine (to 0 at the last step), or step (times
            ``decay`` every ``decay_epochs``).
        decay: factor of schedule step.
        decay_epochs: epochs between two steps of schedule step.
        warmup: steps in which the learning rate rises linearly from 0, before the schedule.
        clip: the largest 2-norm of the gradient; None does not clip.
        label_smoothing: of the cross entropy.
        regularizer_weight: times the layer's own loss term (the skip term, the learned start's).
        jacobian_weight: times the estimate of ``|df/dz|_F^2 / n`` at the solution.
        unrolled_steps: first train so many steps through ``unrolled_depth`` plain iterations of the
            cell, without a solve (for layers with a root solver).
        unrolled_depth: iterations of the cell in those steps.
        warm_start: begin each training sample at its equilibrium of the last epoch (for layers with
            a root solver that begin at zero).
        start_optimizer: another optimiser for what gives the layer its start; None has one for all.
        start_learning_rate: of that optimiser.
        start_every: it steps once in so many steps.
        ema: decay of the exponential moving average of the weights that is evaluated and saved in
            place of them; None has none.
        validation: fraction of the training images that is held out, and measured each epoch.
        patience: end when so many epochs have brought no better accuracy on the validation images,
            and keep the best weights; None goes to the last epoch.
        flip: mirror each training image with probability 1/2.
        crop: shift each training image by up to so many pixels.
        seed: of the initial weights and of the order of the images.
        device: where to train; ``auto`` takes CUDA where there is one.
        devices: processes on this machine, one a device; they share each batch.
        strategy: ddp (each process has all weights) or fsdp (each has a part; FSDP2).
        precision: 32, or with torch.autocast bf16-mixed or 16-mixed.
        compile: compile encoder, cell and head with ``torch.compile``.
        tolerance: of every solve, forward and backward; None leaves each layer its own. A gradient
            without a solver of its own solves to a tenth of it.
        threads: CPU threads of torch; None leaves it the choice. The products of the small images
            gain nothing from a second one, and lose much where another process wants its core.
        checkpoint_minutes: write a checkpoint after so many minutes, besides that of each epoch.

    Raises:
        ConfigError: lists every option of a wrong type or out of its bounds, and what does not go
            together.
    """

    layer: str | dict[str, Any] = "deq"
    dataset: str | dict[str, Any] = "digits"
    model: str | dict[str, Any] | None = None
    data_dir: Path | None = None
    hidden: Size = 128
    epochs: Size = 20
    batch_size: Size = 128
    accumulate: Size = 1
    learning_rate: Rate = 3e-3
    optimizer: OptimizerName = "adam"
    momentum: Fraction = 0.9
    weight_decay: Weight = 0.0
    schedule: Literal["constant", "cosine", "step"] = "constant"
    decay: Annotated[float, Gt(0), Le(1)] = 0.1
    decay_epochs: Size = 10
    warmup: Steps = 0
    clip: Rate | None = None
    label_smoothing: Fraction = 0.0
    regularizer_weight: Weight = 1.0
    jacobian_weight: Weight = 0.0
    unrolled_steps: Steps = 0
    unrolled_depth: Annotated[int, Ge(1), Le(1000)] = 6
    warm_start: bool = False
    start_optimizer: OptimizerName | None = None
    start_learning_rate: Rate = 1e-2
    start_every: Size = 1
    ema: Annotated[float, Gt(0), Lt(1)] | None = None
    validation: Fraction = 0.0
    patience: Size | None = None
    flip: bool = False
    crop: Annotated[int, Ge(0), Le(1000)] = 0
    seed: Annotated[int, Ge(0), Lt(2**63)] = 0
    device: DeviceName = "auto"
    devices: Annotated[int, Ge(1), Le(1024)] = 1
    strategy: StrategyName = "ddp"
    precision: Literal["32", "bf16-mixed", "16-mixed"] = "32"
    compile: bool = False
    tolerance: Annotated[float, Gt(0), Lt(1)] | None = None
    threads: Size | None = None
    checkpoint_minutes: Annotated[float, Gt(0), Le(1e6)] = 10.0

    def __post_init__(self) -> None:
        super().__post_init__()
        problems = list(_conflicts(self))
        if problems:
            raise ConfigError(problems)

    @property
    def layer_name(self) -> str:
        """The layer's name, without its options."""
        return self.layer if isinstance(self.layer, str) else str(self.layer.get("name"))

    @property
    def dataset_name(self) -> str:
        """The data set's name, without its options."""
        return self.dataset if isinstance(self.dataset, str) else str(self.dataset.get("name"))

    def with_layer(self, layer: str | dict[str, Any]) -> Settings:
        """The same settings for another layer."""
        return replace(self, layer=layer)

    def as_data(self) -> dict[str, Any]:
        """The settings as JSON has them; :func:`read_settings` makes their equal from it."""
        return asdict(self) | {"data_dir": None if self.data_dir is None else str(self.data_dir)}


def within(given: Any, whole: Any) -> bool:
    """Whether the specification of a part is that of one whose options are all there."""
    if isinstance(whole, dict) and isinstance(given, str):
        return given == whole.get("name")
    if isinstance(whole, dict) and isinstance(given, dict):
        return all(within(value, whole.get(name)) for name, value in given.items())
    return given == whole


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
        given = str(value) if name == "precision" else value  # YAML reads 32 as a number
        read[name], found = known[name].read(given, from_config=True)
        problems += found
    defaults: Mapping[str, Any] = {}
    try:
        defaults = create("dataset", read.get("dataset", "digits"), path="dataset").defaults
    except ConfigError as error:
        problems += [] if any(line.startswith("dataset:") for line in problems) else error.problems
    if problems:
        raise ConfigError(problems)
    return Settings(**{**defaults, **read})


def _conflicts(settings: Settings) -> Iterator[str]:
    """What each setting allows and the others do not."""
    if settings.patience and not settings.validation:
        yield (
            "patience: it is counted on validation images, and none are held out; give validation "
            "a fraction, as 0.1"
        )
    if settings.precision == "16-mixed" and settings.device == "cpu":
        yield "precision: 16-mixed needs a CUDA device; on a CPU use bf16-mixed"
    if settings.precision == "16-mixed" and settings.strategy == "fsdp" and settings.devices > 1:
        yield "precision: 16-mixed cannot be used with strategy fsdp; use bf16-mixed"
    if settings.precision == "16-mixed" and settings.start_optimizer:
        yield (
            "start_optimizer: one loss scale cannot serve two optimisers; with precision 16-mixed "
            "leave it out"
        )
