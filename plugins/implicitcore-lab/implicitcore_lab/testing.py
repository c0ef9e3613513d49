"""What a data set, a model and a table promise, as checks of :mod:`implicitcore.testing`.

``implicitcore check dataset NAME`` and so on run them, and
:func:`~implicitcore.testing.parametrize.parametrize_with_checks` makes tests of them.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from pathlib import Path

import torch
from torch import Tensor, nn

from implicitcore import ConfigError, Status
from implicitcore.testing import ContractError, contract
from implicitcore_lab.data import Dataset, DataSource, Split
from implicitcore_lab.errors import DataError
from implicitcore_lab.models import Classifier, ModelBuilder, Parts, build_classifier, make_parts
from implicitcore_lab.objective import Objective
from implicitcore_lab.papers.table import Table
from implicitcore_lab.settings import Settings

HIDDEN, CLASSES, BATCH = 8, 5, 3
ROLES = ("encoder", "cell", "head", "predictor")
LAYERS = ("deq", "neural_ode")


@contract("dataset")
def loads_a_dataset(source: DataSource) -> None:
    """``load`` returns a Dataset with two classes or more, and neither part is empty."""
    data = source.load()
    _expect(isinstance(data, Dataset), f"load returned {type(data).__name__}, not a Dataset")
    _expect(data.classes >= 2, f"{data.classes} classes, expected two or more")
    for name, split in _splits(data):
        _expect(len(split) > 0, f"{name} is empty")


@contract("dataset")
def samples_are_finite_float32(source: DataSource) -> None:
    """Samples are finite float32 ``[n, ...]``, of one shape in both parts."""
    data = source.load()
    for name, split in _splits(data):
        _expect(split.images.dtype == torch.float32, f"{name}: {split.images.dtype} samples")
        _expect(bool(split.images.isfinite().all()), f"{name}: samples that are not finite")
    train, test = (list(split.images.shape[1:]) for _, split in _splits(data))
    _expect(train == test, f"samples {train} to train on, {test} to test on")


@contract("dataset")
def labels_are_classes(source: DataSource) -> None:
    """Labels are int64 ``[n]``, one for each sample, in 0 .. classes - 1."""
    data = source.load()
    for name, split in _splits(data):
        labels, count = split.labels, len(split.images)
        _expect(labels.dtype == torch.int64, f"{name}: {labels.dtype} labels")
        found = f"{name}: labels {list(labels.shape)} for {count} samples"
        _expect(list(labels.shape) == [count], found)
        lowest, highest = int(labels.min()), int(labels.max())
        _expect(
            0 <= lowest and highest < data.classes,
            f"{name}: labels {lowest} .. {highest}, expected 0 .. {data.classes - 1}",
        )


@contract("dataset")
def loads_the_same_every_time(source: DataSource) -> None:
    """A second ``load`` gives the same samples and labels in the same order."""
    first, second = source.load(), source.load()
    for (name, one), (_, other) in zip(_splits(first), _splits(second), strict=True):
        same = torch.equal(one.labels, other.labels) and torch.equal(
            one.images.nan_to_num(), other.images.nan_to_num()
        )
        _expect(same, f"{name} is another one each time it is loaded")


@contract("dataset")
def refuses_what_it_cannot_read(source: DataSource) -> None:
    """A ``data_dir`` that is missing, empty or of something else is a DataError, or is not read."""
    with tempfile.TemporaryDirectory() as folder:
        for what, path in _foreign(Path(folder)):
            try:
                source.load(path)
            except DataError as error:
                _expect("\n" not in str(error).strip(), f"{what}: more than one line: {error}")
            except Exception as error:
                found = f"{what} as data_dir: {type(error).__name__} ({error})"
                raise ContractError(f"{found}, expected a DataError") from error


@contract("dataset")
def can_be_learnt_from(source: DataSource) -> None:
    """One step of training on its first samples has a finite loss and gradient."""
    data = source.load()
    model = build_classifier(Settings(hidden=HIDDEN), data.shape, data.classes)
    _train(model, data.train.first(BATCH))


@contract("model")
def shapes_fit(builder: ModelBuilder) -> None:
    """Predictor and cell return what is shaped like x, the head logits ``[batch, classes]``."""
    for samples, (encoder, cell, head, predictor) in _made(builder):
        x = encoder(samples)
        _expect(len(x) == BATCH, f"encoder: {list(x.shape)} of {BATCH} samples")
        for role, found in (("predictor", predictor(x)), ("cell", cell(torch.zeros_like(x), x))):
            shapes = f"{role}: {list(found.shape)}, expected that of x, {list(x.shape)}"
            _expect(found.shape == x.shape, shapes)
        logits = list(head(x).shape)
        _expect(logits == [BATCH, CLASSES], f"head: {logits}, expected {[BATCH, CLASSES]}")


@contract("model")
def cell_keeps_samples_apart(builder: ModelBuilder) -> None:
    """The cell gives of a batch what it gives of each sample alone."""
    for samples, (encoder, cell, _, predictor) in _made(builder):
        x = encoder(samples)
        z = predictor(x)
        for row, (one, whole) in enumerate(zip(x.split(1), cell(z, x).split(1), strict=True)):
            alone = cell(z[row : row + 1], one)
            error = (alone - whole).abs().max().item()
            _expect(error < 1e-4, f"cell: sample {row} alone differs by {error:.2g}")


@contract("model")
def seed_gives_the_weights(builder: ModelBuilder) -> None:
    """The same seed gives the same weights, and all of them come from torch's generator."""
    for shape in builder.shapes:
        one, other = (make_parts(builder, 0, (HIDDEN, shape, CLASSES)) for _ in range(2))
        for role, first, second in zip(ROLES, one, other, strict=True):
            twin = second.state_dict()
            for name, value in first.state_dict().items():
                same = torch.equal(value, twin[name])
                _expect(same, f"{role}.{name} is another one with the same seed")


@contract("model")
def every_parameter_is_trained(builder: ModelBuilder) -> None:
    """Every parameter gets a gradient from the logits, through predictor, cell and head."""
    for samples, parts in _made(builder):
        encoder, cell, head, predictor = parts
        x = encoder(samples)
        head(cell(predictor(x), x)).square().sum().backward()
        for role, module in zip(ROLES, parts, strict=True):
            for name, parameter in module.named_parameters():
                _expect(parameter.grad is not None, f"{role}.{name} has no gradient")


@contract("model")
def layers_train_in_it(builder: ModelBuilder) -> None:
    """One step of training with a DEQ and with a Neural ODE has a finite loss and gradient."""
    for shape in builder.shapes:
        for layer in LAYERS:
            settings = Settings(hidden=HIDDEN, layer=layer)
            model = build_classifier(settings, shape, CLASSES, builder)
            _train(model, Split(_samples(shape), torch.arange(BATCH) % CLASSES))


@contract("table")
def has_rows_by_names_of_their_own(table: Table) -> None:
    """There are rows, and no two have the same name or the same title."""
    rows = table.rows()
    for what, found in (
        ("names", [row.name for row in rows]),
        ("titles", [row.title for row in rows]),
    ):
        _expect(len(set(found)) == len(found) > 0, f"the rows have the {what} {found}")


@contract("table")
def claims_are_about_its_rows(table: Table) -> None:
    """Each claim is about a row and a column that there are."""
    names, shown = [row.name for row in table.rows()], [column.name for column in table.columns]
    for claim in table.claims:
        known = claim.row in names and claim.over in (*names, "") and claim.column in shown
        _expect(known, f"a claim about a row or a column that there is not: {claim}")


@contract("table")
def every_budget_has_rows(table: Table) -> None:
    """The patterns of a budget fit some row."""
    for name, budget in table.budgets.items():
        try:
            found = table.choose(budget.rows)
        except ConfigError as error:
            raise ContractError(f"the budget {name}: {error}") from error
        _expect(bool(found), f"the budget {name} has no rows")


def _splits(data: Dataset) -> tuple[tuple[str, Split], tuple[str, Split]]:
    return ("train", data.train), ("test", data.test)


def _foreign(folder: Path) -> Iterator[tuple[str, Path]]:
    """Paths at which there is no data set."""
    yield "a path that is not there", folder / "missing"
    yield "a path with a NUL", Path(f"{folder}/\0")
    empty, zeros = folder / "empty.bin", folder / "zeros.bin"
    empty.write_bytes(b"")
    zeros.write_bytes(bytes(5))
    yield "an empty file", empty
    yield "a file of five zeros", zeros
    yield "a folder with files of something else", folder


def _samples(shape: tuple[int, ...]) -> Tensor:
    return torch.randn(BATCH, *shape, generator=torch.Generator().manual_seed(0))


def _made(builder: ModelBuilder) -> Iterator[tuple[Tensor, Parts]]:
    """Samples of each shape, and the modules for them."""
    for shape in builder.shapes:
        yield _samples(shape), make_parts(builder, 0, (HIDDEN, shape, CLASSES))


def _train(model: Classifier, split: Split) -> None:
    losses = Objective(model, Settings())(split.images, split.labels)
    loss, status = losses.loss, losses.held.solution.status
    finite = not bool((status == Status.NON_FINITE).any())
    _expect(finite, f"{type(model.layer).__name__}: a solve met values that are not finite")
    _expect(bool(loss.isfinite()), f"loss {loss.item()}")
    loss.backward()
    for name, parameter in _with_gradient(model):
        _expect(bool(parameter.isfinite().all()), f"the gradient of {name} is not finite")


def _with_gradient(model: nn.Module) -> Iterator[tuple[str, Tensor]]:
    for name, parameter in model.named_parameters():
        if parameter.grad is not None:
            yield name, parameter.grad


def _expect(right: bool, message: str) -> None:
    if not right:
        raise ContractError(message)
