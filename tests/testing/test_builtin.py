"""Every part of the core keeps the contract of its kind."""

from __future__ import annotations

import implicitcore as ic
from implicitcore.registry import REGISTRY
from implicitcore.testing import parametrize_with_checks

SOLVERS = [ic.create("root_solver", part.name) for part in REGISTRY.parts("root_solver") if part.provider == "implicitcore"]


@parametrize_with_checks(SOLVERS)
def test_root_solvers(part, check):
    check(part)
