"""Every part of the core keeps the contract of its kind."""

from __future__ import annotations

import implicitcore as ic
from implicitcore.registry import REGISTRY
from implicitcore.testing import parametrize_with_checks


def builtin(kind):
    return [part for part in REGISTRY.parts(kind) if part.provider == "implicitcore"]


SOLVERS = [ic.create(kind, part.name) for kind in ("root_solver", "ode_solver") for part in builtin(kind)]


@parametrize_with_checks(SOLVERS)
def test_solvers(part, check):
    check(part)


GRADIENTS = [ic.create("gradient", part.name) for part in builtin("gradient")]


@parametrize_with_checks(GRADIENTS)
def test_gradients(part, check):
    check(part)
