"""Every layer keeps the contract of its kind."""

from __future__ import annotations

from functools import partial

from torch import nn

from implicitcore.extend import REGISTRY
from implicitcore.testing import parametrize_with_checks

GIVEN = {"skip_deq": {"predictor": nn.Linear(6, 6)}, "homoode": {"channels": 6}}
PARTS = [part for part in REGISTRY.parts("layer") if part.provider == "implicitcore-layers"]


@parametrize_with_checks(
    [
        partial(part.load(), **GIVEN[part.name]) if part.name in GIVEN else part.load()
        for part in PARTS
    ]
)
def test_contract(part, check):
    check(part)
