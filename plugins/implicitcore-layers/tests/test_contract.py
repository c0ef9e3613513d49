"""Every layer and every cell keeps the contract of its kind."""

from __future__ import annotations

from functools import partial

import pytest
import torch
from torch import nn

from implicitcore.extend import REGISTRY
from implicitcore.testing import parametrize_with_checks
from implicitcore_layers import ContractiveCell, MultiscaleCell

GIVEN = {
    "skip_deq": {"predictor": nn.Linear(6, 6)},
    "homoode": {"channels": 6},
}
PARTS = [part for part in REGISTRY.parts("layer") if part.provider == "implicitcore-layers"]
CELLS = {
    "contractive": [{"features": 6}, {"features": 3, "kernel": 3}],
    "monotone": [{"features": 6}, {"features": 4, "margin": 0.3}],
    "multiscale": [{"channels": (4, 8, 8)}],
    "homoode": [{"channels": 8, "groups": 4}],
}
BIG = ("multiscale-large", "multiscale-imagenet")
PLAIN = [part for part in PARTS if not part.name.startswith(("multiscale", "augmented"))]
MULTISCALE = [part for part in PARTS if part.name.startswith("multiscale")]


def contraction(cell: MultiscaleCell) -> MultiscaleCell:
    """The cell, where x counts for more than z: the blocks' own part is small, as are all but one.

    A norm takes back what a smaller z would bring.
    """
    first, *others = cell.blocks
    with torch.no_grad():
        next(iter(first.get_submodule("conv2").parameters())).mul_(0.1)
        first.get_parameter("norm2.weight").fill_(20.0)
        for block in others:
            block.get_parameter("norm3.weight").fill_(0.01)
    return cell


def small_cell() -> MultiscaleCell:
    torch.manual_seed(0)
    return contraction(MultiscaleCell(channels=(2, 4), expansion=1, groups=1))


class Smooth(nn.Module):
    """Two resolutions without a norm."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.fine, self.coarse = nn.Conv2d(2, 2, 1), nn.Conv2d(4, 4, 1)
        self.down = nn.Conv2d(2, 4, 3, stride=2, padding=1)

    def forward(self, z: tuple[torch.Tensor, ...], x: torch.Tensor) -> tuple[torch.Tensor, ...]:
        fine, coarse = z
        slow = torch.tanh(0.4 * self.fine(fine) + x)
        return slow, torch.tanh(0.4 * self.coarse(coarse) + self.down(fine))


def multiscale(part) -> partial:
    cell = small_cell()
    if part.name == "multiscale_skip_deq":
        return partial(part.load(), cell=cell, predictor=cell.predictor())
    if part.name == "multiscale_neural_ode":  # from zero, where a norm is singular
        return partial(part.load(), cell=Smooth(), channels=(2, 4))
    return partial(part.load(), cell=cell, channels=(2, 4))


def images(batch: int, dtype: torch.dtype) -> torch.Tensor:
    generator = torch.Generator().manual_seed(1)
    return torch.randn(batch, 2, 3, 4, generator=generator, dtype=torch.float64).to(dtype)


class Wider(nn.Module):
    """A field of a z with two channels more than x."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.state, self.input = nn.Linear(8, 8), nn.Linear(6, 8)

    def forward(self, z: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
        return torch.tanh(0.4 * self.state(z) + self.input(x))


@parametrize_with_checks(
    [
        partial(part.load(), **GIVEN[part.name]) if part.name in GIVEN else part.load()
        for part in PLAIN
    ]
)
def test_contract(part, check):
    check(part)


@parametrize_with_checks([*map(multiscale, MULTISCALE)], inputs=images)
def test_contract_at_several_resolutions(part, check):
    check(part)


@parametrize_with_checks(
    [
        partial(part.load(), cell=Wider(), extra=2)
        for part in PARTS
        if part.name == "augmented_neural_ode"
    ]
)
def test_contract_with_added_channels(part, check):
    check(part)


def cells(*, big: bool) -> list:
    found = [part for part in REGISTRY.parts("cell") if part.provider == "implicitcore-layers"]
    return [
        partial(part.load(), **options)
        for part in found
        for options in CELLS.get(part.name, [{}])
        if (part.name in BIG) == big
    ]


@parametrize_with_checks(cells(big=False))
def test_contract_of_a_cell(part, check):
    check(part)


@pytest.mark.slow
@parametrize_with_checks(cells(big=True))
def test_contract_of_a_big_cell(part, check):
    check(part)


@parametrize_with_checks([ContractiveCell(5), MultiscaleCell(channels=(2, 4), groups=2)])
def test_contract_of_a_cell_given_as_an_object(part, check):
    check(part)
