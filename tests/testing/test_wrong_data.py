"""Data sets and models that break one promise: the check of that promise fails, and no other."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import pytest
import torch
from torch import nn

from implicitcore.testing import checks_for, run_checks
from implicitcore_lab import DataError, Dataset, DataSource, ModelBuilder, Split
from implicitcore_layers import ContractiveCell

IMAGES, LABELS = torch.ones(6, 2), torch.arange(6) % 2


def failures(part) -> dict[str, str]:
    return {result.name: result.message for result in run_checks(part) if result.status == "failed"}


@dataclass(frozen=True, kw_only=True)
class Points(DataSource):
    """Right with the fault "", else one promise is broken."""

    calls: ClassVar[list[int]] = []
    fault: str = ""

    def load(self, data_dir: Path | None = None) -> Dataset:
        self.calls.append(1)
        if data_dir is not None:
            raise self.refusal(data_dir)
        train = Split(IMAGES * 3e38, LABELS) if self.fault == "huge" else Split(IMAGES, LABELS)

        return Dataset("points", train, self.test_part(), classes=2)

    def refusal(self, data_dir: Path) -> Exception:
        if self.fault == "raises":
            return OSError(f"{data_dir} cannot be read")
        return DataError(f"{data_dir}: not read" + "\nat all" * (self.fault == "lines"))

    def test_part(self) -> Split:
        return {
            "float64": Split(IMAGES.double(), LABELS),
            "nan": Split(IMAGES * torch.nan, LABELS),
            "shape": Split(torch.ones(6, 3), LABELS),
            "int32": Split(IMAGES, LABELS.int()),
            "label": Split(IMAGES, LABELS + 1),
            "count": Split(IMAGES, LABELS[:5]),
            "another": Split(IMAGES * len(self.calls), LABELS),
        }.get(self.fault, Split(IMAGES, LABELS))


WRONG_DATA = [
    ("float64", "samples_are_finite_float32", "test: torch.float64 samples"),
    ("nan", "samples_are_finite_float32", "test: samples that are not finite"),
    ("shape", "samples_are_finite_float32", r"samples \[2\] to train on, \[3\] to test on"),
    ("int32", "labels_are_classes", "test: torch.int32 labels"),
    ("label", "labels_are_classes", r"test: labels 1 \.\. 2, expected 0 \.\. 1"),
    ("count", "labels_are_classes", r"test: labels \[5\] for 6 samples"),
    ("another", "loads_the_same_every_time", "another one each time"),
    ("raises", "refuses_what_it_cannot_read", "OSError .* expected a DataError"),
    ("lines", "refuses_what_it_cannot_read", "more than one line"),
    ("huge", "can_be_learnt_from", "DEQ: a solve met values that are not finite"),
]


@pytest.mark.parametrize(("fault", "check", "message"), WRONG_DATA)
def test_a_wrong_data_set(fault: str, check: str, message: str):
    assert failures(Points()) == {}
    found = failures(Points(fault=fault))
    assert list(found) == [check]
    assert re.search(message, found[check])


class Nothing(Points):
    def load(self, data_dir: Path | None = None) -> Dataset:
        data = super().load(data_dir)
        return Dataset("nothing", data.train, data.test.first(0), classes=2)


class OneClass(Points):
    def load(self, data_dir: Path | None = None) -> Dataset:
        data = super().load(data_dir)
        return Dataset("one", data.train, data.test, classes=1)


@pytest.mark.parametrize(
    ("part", "message"), [(Nothing(), "test is empty"), (OneClass(), "1 classes, expected two")]
)
def test_a_data_set_of_nothing(part: DataSource, message: str):
    assert message in failures(part)["loads_a_dataset"]


class Right(nn.Module):
    def __init__(self, features: int) -> None:
        super().__init__()
        self.cell = ContractiveCell(features)

    def forward(self, z, x):
        return self.cell(z, x)


class Mixing(Right):
    def forward(self, z, x):
        return super().forward(z - z.mean(0), x)


class Forgotten(Right):
    def __init__(self, features: int) -> None:
        super().__init__(features)
        self.extra = nn.Parameter(torch.zeros(2))


class Infinite(Right):
    """At z = 0, where a DEQ begins."""

    def forward(self, z, x):
        return super().forward(z, x) + torch.where(z == 0, torch.inf, 0.0)


@dataclass(frozen=True, kw_only=True)
class Parts(ModelBuilder):
    """Right with the fault "", else one promise is broken."""

    shapes: ClassVar[tuple[tuple[int, ...], ...]] = ((5,),)
    calls: ClassVar[list[int]] = []
    fault: str = ""

    def build(self, hidden, shape, classes):
        self.calls.append(1)
        cells = {"mixing": Mixing, "forgotten": Forgotten, "infinite": Infinite}
        cell = cells.get(self.fault, Right)(hidden)
        head = nn.Linear(hidden, classes + (self.fault == "head"))
        if self.fault == "seed":
            nn.init.constant_(head.bias, len(self.calls))
        width = hidden + (self.fault == "predictor")
        return nn.Linear(shape[0], hidden), cell, head, nn.Linear(hidden, width)


WRONG_MODELS = [
    ("head", "shapes_fit", r"head: \[3, 6\], expected \[3, 5\]"),
    ("predictor", "shapes_fit", r"predictor: \[3, 9\], expected that of x, \[3, 8\]"),
    ("mixing", "cell_keeps_samples_apart", "cell: sample 0 alone differs by"),
    ("seed", "seed_gives_the_weights", "head.bias is another one with the same seed"),
    ("forgotten", "every_parameter_is_trained", "cell.extra has no gradient"),
    ("infinite", "layers_train_in_it", "DEQ: a solve met values that are not finite"),
]


@pytest.mark.parametrize(("fault", "check", "message"), WRONG_MODELS)
def test_a_wrong_model(fault: str, check: str, message: str):
    assert failures(Parts()) == {}
    found = failures(Parts(fault=fault))
    assert re.search(message, found[check])


def test_every_check_catches_a_part():
    caught = {check for _, check, _ in [*WRONG_DATA, *WRONG_MODELS]} | {"loads_a_dataset"}
    shared = {check.name for check in checks_for("gradient")}
    for kind in ("dataset", "model"):
        assert {check.name for check in checks_for(kind)} - shared <= caught
