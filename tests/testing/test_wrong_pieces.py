"""Deliberately wrong starts, cells and tables: each is caught by the checks that should catch it,
and by no other."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, ClassVar

import pytest
import torch
from support.failing import failed
from torch import nn

import implicitcore as ic
from implicitcore.extend import Count, InitialGuess, Shape
from implicitcore.registry.registry import REGISTRY
from implicitcore.testing import checks_for, run_checks
from implicitcore_lab import Budget, Claim, Column, Row, Table
from implicitcore_layers import Cell, Certificate, Preset


class Projected(InitialGuess):
    """A right one: z0 = (x, W x), a tuple."""

    def __init__(self, features: Count = 6):
        super().__init__()
        self.features = features
        self.weight = nn.Parameter(torch.randn(features, features))

    def forward(self, x) -> Any:
        return x, x @ self.weight.T


class SingleStart(Projected):
    def forward(self, x):
        return tuple(z.float() for z in super().forward(x))


class InfiniteStart(Projected):
    def forward(self, x):
        return tuple(z.exp() * 1e38 for z in super().forward(x))


class OnTheCPU(Projected):
    def forward(self, x):
        z, other = super().forward(x)
        return z, other, torch.zeros(len(x), 2, dtype=x.dtype)


class RemembersStart(Projected):
    calls = 0

    def forward(self, x):
        self.calls += 1
        return tuple(z * (1 + 1e-14 * self.calls) for z in super().forward(x))


class MixesStarts(Projected):
    def forward(self, x):
        return super().forward(x - x.mean(0))


class OneSample(Projected):
    def forward(self, x):
        _ = x[0]
        return super().forward(x)


class ChangesItsInput(Projected):
    def forward(self, x):
        z = super().forward(x.clone())
        x.mul_(1 + 1e-15)
        return z


class HidesAWeight(Projected):
    """A tensor that the state_dict does not know."""

    def __init__(self):
        super().__init__()
        self.offset = torch.randn(6)

    def forward(self, x):
        return super().forward(x + self.offset.to(x))


class DetachesItsWeight(Projected):
    def forward(self, x):
        z, other = super().forward(x)
        return z + self.weight.sum() * 0, other.detach() + 0 * z

    def __init__(self):
        super().__init__()
        self.unused = nn.Parameter(torch.zeros(3))


class SharesItself(Projected):
    def __deepcopy__(self, memo):
        return self


class NoPickle(Projected):
    def __init__(self):
        super().__init__()
        self.function = lambda: 0


class FreeStep(InitialGuess):
    """It evaluates f, and does not say so."""

    def __init__(self, update: Callable[..., torch.Tensor]):
        super().__init__()
        self.update = update

    def forward(self, x):
        return self.update(torch.zeros_like(x), x)


class Stranger(nn.Module):
    """No InitialGuess, and nothing reads its options."""

    kind = "start"
    evaluations = 0

    def __init__(self, shift: float = 1.0):
        super().__init__()
        self.shift = shift

    def forward(self, x):
        return x + self.shift

    def example_shape(self) -> Shape:
        return (6,)


OPTIONS = {
    "refuses_a_value_of_another_type",
    "refuses_an_unknown_option",
    "refuses_an_infinite_value",
}
STARTS = [
    (Projected, set()),
    (Projected(), set()),
    (partial(Projected, 6), set()),
    (SingleStart, {"makes_a_state"}),
    (InfiniteStart, {"makes_a_state"}),
    (OnTheCPU, {"keeps_the_device"}),
    (RemembersStart, {"stateless"}),
    (MixesStarts, {"per_sample", "nan_isolation"}),
    (OneSample, {"empty_batch"}),
    (ChangesItsInput, {"no_input_mutation"}),
    (HidesAWeight, {"state_dict_round_trip"}),
    (DetachesItsWeight, {"gradient_reaches_every_parameter"}),
    (SharesItself, {"deepcopy"}),
    (NoPickle, {"pickle_round_trip"}),
    (FreeStep, {"costs_what_it_says"}),
    (Stranger, OPTIONS | {"makes_a_state"}),
]


class Plain(Cell):
    """A right one: f(z, x) = tanh(b Q z + U x) with an orthogonal Q."""

    def __init__(self, features: Count = 6):
        super().__init__()
        self.features = features
        q = torch.linalg.qr(torch.randn(features, features, dtype=torch.float64)).Q
        self.register_buffer("q", q)
        self.inject = nn.Linear(features, features)

    def forward(self, z, x):
        return torch.tanh(0.5 * z @ self.get_buffer("q").T + self.inject(x))


class Tanh(Plain):
    """The same with its certificate."""

    rate: ClassVar[float] = 0.5

    def certificate(self) -> Any:
        return Certificate(True, self.rate)


class FlatCell(Plain):
    def forward(self, z, x):
        return super().forward(z, x).double()


class AnotherShape(Plain):
    def forward(self, z, x):
        return super().forward(z, x).unsqueeze(2)


class MixesStates(Plain):
    def forward(self, z, x):
        return super().forward(z - z.mean(0), x)


class CellOnTheCPU(Plain):
    def forward(self, z, x):
        return super().forward(z, x) * torch.ones(6, dtype=z.dtype)


class DetachesItsState(Plain):
    def forward(self, z, x):
        return super().forward(z.detach(), x)


class DetachesItsInput(Plain):
    def forward(self, z, x):
        return super().forward(z, x.detach())


class ScalesItsGradient(Plain):
    def forward(self, z, x):
        f = super().forward(z, x)
        return 3 * f - 2 * f.detach()


class UnusedParameter(Plain):
    def __init__(self):
        super().__init__()
        self.unused = nn.Parameter(torch.zeros(3))


class TooFast(Tanh):
    rate = 0.49


class NoContraction(Tanh):
    """Where tanh is steep it is none."""

    rate = 0.9

    def forward(self, z, x):
        return super().forward(3 * z, 0.1 * x)


class SeveralEquilibria(Tanh):
    def certificate(self) -> Any:
        return Certificate(False, self.rate)


class JustANumber(Tanh):
    def certificate(self) -> Any:
        return self.rate


class Network(Preset):
    """A right preset."""

    def __init__(self, *, classes: Count = 3):
        super().__init__()
        self.classes = classes
        self.linear = nn.Linear(6, 6)

    def forward(self, z, x):
        return torch.tanh(self.linear(z) + x)

    def stem(self):
        return nn.Flatten()

    def head(self):
        return nn.Linear(6, self.classes)


class OneClassMore(Network):
    def head(self):
        return nn.Linear(6, self.classes + 1)


CELLS = [
    (Tanh, set()),
    (Tanh(), set()),
    (Plain, set()),
    (Network, set()),
    (FlatCell, {"is_shaped_like_the_state"}),
    (AnotherShape, {"is_shaped_like_the_state"}),
    (MixesStates, {"per_sample", "nan_isolation"}),
    (CellOnTheCPU, {"keeps_the_device"}),
    (DetachesItsState, {"gradient_matches_differences"}),
    (DetachesItsInput, {"gradient_matches_differences"}),
    (ScalesItsGradient, {"gradient_matches_differences"}),
    (UnusedParameter, {"gradient_reaches_every_parameter"}),
    (TooFast, {"certificate_holds"}),
    (NoContraction, {"certificate_holds"}),
    (SeveralEquilibria, {"certificate_holds"}),
    (JustANumber, {"certificate_holds"}),
    (OneClassMore, {"head_gives_logits"}),
]


@pytest.mark.parametrize(
    ("part", "caught_by"), STARTS + CELLS, ids=lambda value: getattr(value, "__name__", None)
)
def test_a_wrong_part_is_caught_by_these_checks_and_no_other(part, caught_by):
    assert failed(part) == caught_by


class Renamed(Cell):
    """Its configuration builds another one."""

    def __init__(self, size: Count = 6):
        super().__init__()
        self.size = size + 1
        self.linear = nn.Linear(6, 6)

    def forward(self, z, x):
        return torch.tanh(self.linear(z) + x)


def test_a_configuration_that_builds_another_one_is_caught(monkeypatch):
    monkeypatch.setattr(REGISTRY, "_local", dict(REGISTRY._local))
    ic.register("cell", "renamed", Renamed)
    assert failed(Renamed) == {"config_round_trip"}


@pytest.mark.parametrize("kind", ["start", "cell"])
def test_every_check_catches_a_part(kind):
    rows = STARTS if kind == "start" else CELLS
    caught = {name for _, names in (*STARTS, *CELLS) for name in names} | {"config_round_trip"}
    own = {name for _, names in rows for name in names}
    names = {check.name for check in checks_for(kind)}
    assert names <= caught
    assert names & {"costs_what_it_says", "certificate_holds"} <= own


# Tables.


@dataclass(frozen=True, kw_only=True)
class Small(Table):
    """A right one."""

    title: ClassVar[str] = "a table"
    reference: ClassVar[str] = "a paper"
    claim: ClassVar[str] = "one thing is another"
    columns: ClassVar[Sequence[Column]] = (Column("steps", "steps"),)
    claims: ClassVar[Sequence[Claim]] = (Claim("fewer", 2.0, "steps", "a", over="b"),)
    budgets: ClassVar[Mapping[str, Budget]] = {"smoke": Budget(rows=("a*",))}

    def rows(self):
        return [Row("a", "A"), Row("b", "B")]

    def measure(self, job):
        return {row.name: [{"steps": math.nan} for _ in job.seeds] for row in job.rows}

    def draw(self, figure, results):
        pass


class NoRows(Small):
    claims = ()
    budgets: ClassVar[Mapping[str, Budget]] = {}

    def rows(self):
        return []


class OneTitle(Small):
    def rows(self):
        return [Row("a", "A"), Row("b", "A")]


class UnknownRow(Small):
    claims = (Claim("fewer", 2.0, "steps", "c"),)


class UnknownColumn(Small):
    claims = (Claim("fewer", 2.0, "seconds", "a"),)


class EmptyBudget(Small):
    budgets: ClassVar[Mapping[str, Budget]] = {"smoke": Budget(rows=("c*",))}


@pytest.mark.parametrize(
    ("part", "check", "message"),
    [
        (NoRows(), "has_rows_by_names_of_their_own", r"the rows have the names \[\]"),
        (OneTitle(), "has_rows_by_names_of_their_own", "the rows have the titles"),
        (UnknownRow(), "claims_are_about_its_rows", "a row or a column that there is not"),
        (UnknownColumn(), "claims_are_about_its_rows", "a row or a column that there is not"),
        (EmptyBudget(), "every_budget_has_rows", "the budget smoke: (?s:.*) no row 'c"),
    ],
    ids=lambda value: type(value).__name__,
)
def test_a_wrong_table(part, check, message):
    assert failed(Small()) == set()
    found = {each.name: each.message for each in run_checks(part) if each.status == "failed"}
    assert list(found) == [check]
    assert re.search(message, found[check])
