"""Every solver keeps the contract of its kind."""

from __future__ import annotations

import implicitcore as ic
from implicitcore.extend import REGISTRY
from implicitcore.testing import parametrize_with_checks

PARTS = [
    part
    for kind in ("root_solver", "ode_solver")
    for part in REGISTRY.parts(kind)
    if part.provider == "implicitcore-scipy"
]


@parametrize_with_checks([ic.create(part.kind, part.name) for part in PARTS])
def test_contract(part, check):
    check(part)
