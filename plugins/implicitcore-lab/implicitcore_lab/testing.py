"""The contract of a data set, a model and a table, for the tests of whoever writes one.

.. code-block:: python

    def test_contract():
        check_dataset(MyData())
        check_model(MyModel())
        check_table(MyTable())
"""

from __future__ import annotations

import torch

from implicitcore.testing import ContractError
from implicitcore_lab.data import Dataset, DataSource, Split
from implicitcore_lab.models import ModelBuilder
from implicitcore_lab.papers.table import Table

SHAPES = ((1, 8, 8), (3, 8, 8))
HIDDEN, CLASSES, BATCH = 8, 5, 3


def check_dataset(source: DataSource) -> None:
    """Check that a data set can be trained on.

    Samples are finite float32 ``[n, ...]`` of one shape in both parts, labels int64 ``[n]`` in
    0 .. classes - 1; no part is empty; a second load gives the same.

    Arguments:
        source: a part of the kind ``dataset``, which finds its files by itself.

    Raises:
        ContractError: a promise is broken.
    """
    first, second = source.load(), source.load()
    name = type(source).__name__
    _expect(
        isinstance(first, Dataset), f"{name}: load returned {type(first).__name__}, not a Dataset"
    )
    for part in ("train", "test"):
        found, again = getattr(first, part), getattr(second, part)
        _check_split(found, first.classes, f"{name}: {part}")
        same = torch.equal(found.images, again.images) and torch.equal(found.labels, again.labels)
        _expect(same, f"{name}: {part} is another one each time it is loaded")
    shapes = [tuple(each.images.shape[1:]) for each in (first.train, first.test)]
    _expect(
        shapes[0] == shapes[1], f"{name}: samples {shapes[0]} to train on, {shapes[1]} to test on"
    )
    _expect(first.classes >= 2, f"{name}: {first.classes} classes, expected two or more")


def check_model(builder: ModelBuilder, shape: tuple[int, ...] | None = None) -> None:
    """Check that a model can be built around every layer.

    The cell returns what is shaped like x, the head logits ``[batch, classes]``; the seed gives the
    weights; every parameter gets a gradient.

    Arguments:
        builder: a part of the kind ``model``.
        shape: of one sample; None tries grey and coloured images of 8 x 8.

    Raises:
        ContractError: a promise is broken.
    """
    name = type(builder).__name__
    for sample in (shape,) if shape else SHAPES:
        generator = torch.Generator().manual_seed(0)
        images = torch.randn(BATCH, *sample, generator=generator)
        made = []
        for _ in range(2):
            with torch.random.fork_rng(devices=[]):
                torch.manual_seed(0)
                made.append(builder.build(HIDDEN, sample, CLASSES))
        encoder, cell, head, predictor = made[0]
        x = encoder(images)
        z = predictor(x)
        _expect(z.shape == x.shape, f"{name}: predictor {list(z.shape)}, x {list(x.shape)}")
        z = cell(z, x)
        _expect(
            z.shape == x.shape, f"{name}: cell {list(z.shape)}, expected that of x {list(x.shape)}"
        )
        logits = head(z)
        expected = [BATCH, CLASSES]
        _expect(
            list(logits.shape) == expected,
            f"{name}: head {list(logits.shape)}, expected {expected}",
        )
        logits.square().sum().backward()
        for index, module in enumerate(made[0]):
            for key, parameter in module.named_parameters():
                place = f"{name}: {('encoder', 'cell', 'head', 'predictor')[index]}.{key}"
                _expect(parameter.grad is not None, f"{place} has no gradient")
                other = dict(made[1][index].named_parameters())[key]
                _expect(torch.equal(parameter, other), f"{place} is another one with the same seed")


def check_table(table: Table) -> None:
    """Check that the data of a table fit together.

    The rows have names and titles of their own; a claim is about a row and a column that there are;
    every budget has rows.

    Arguments:
        table: a part of the kind ``table``.

    Raises:
        ContractError: a promise is broken.
    """
    name, rows = type(table).__name__, table.rows()
    names, shown = [row.name for row in rows], [column.name for column in table.columns]
    for what, found in (("names", names), ("titles", [row.title for row in rows])):
        _expect(len(set(found)) == len(found) > 0, f"{name}: the rows have the {what} {found}")
    for claim in table.claims:
        known = claim.row in names and claim.over in (*names, "") and claim.column in shown
        _expect(known, f"{name}: a claim about a row or a column that there is not: {claim}")
    for label, budget in table.budgets.items():
        _expect(bool(table.choose(budget.rows)), f"{name}: the budget {label} has no rows")


def _check_split(split: Split, classes: int, place: str) -> None:
    images, labels = split.images, split.labels
    _expect(len(labels) > 0, f"{place} is empty")
    _expect(images.dtype == torch.float32, f"{place}: samples {images.dtype}, expected float32")
    _expect(labels.dtype == torch.int64, f"{place}: labels {labels.dtype}, expected int64")
    _expect(
        labels.shape == images.shape[:1],
        f"{place}: labels {list(labels.shape)} for samples {list(images.shape)}",
    )
    _expect(bool(images.isfinite().all()), f"{place}: samples that are not finite")
    lowest, highest = int(labels.min()), int(labels.max())
    _expect(
        0 <= lowest and highest < classes,
        f"{place}: labels {lowest} .. {highest}, expected 0 .. {classes - 1}",
    )


def _expect(right: bool, message: str) -> None:
    if not right:
        raise ContractError(message)
