"""Every solver keeps the contract of its kind, but for what torchdiffeq does to a batch."""

from __future__ import annotations

import implicitcore as ic
from implicitcore.extend import REGISTRY
from implicitcore.testing import parametrize_with_checks

PARTS = [
    part for part in REGISTRY.parts("ode_solver") if part.provider == "implicitcore-torchdiffeq"
]
CHOSEN = (
    "torchdiffeq chooses one step size for the whole batch: samples differ within the tolerances"
)
# At torchdiffeq's tolerances these take thousands of steps.
LOW_ORDER = ("torchdiffeq-adaptive_heun", "torchdiffeq-fehlberg2", "torchdiffeq-bosh3")
LOOSE = {"rtol": 1e-4, "atol": 1e-6}
OF_ORDER_2 = {"rtol": 1e-3, "atol": 1e-5}
# At those of the others the samples differ by less than can be seen.
DIFFER = ("AdaptiveHeun", "Fehlberg2", "Bosh3", "ScipySolver")
SOLVERS = [
    ic.create(
        "ode_solver",
        {
            "name": part.name,
            **(LOOSE if part.name in LOW_ORDER else {}),
            **(OF_ORDER_2 if part.name == "torchdiffeq-adaptive_heun" else {}),
        },
    )
    for part in PARTS
]


def expected(solver):
    return {"per_sample": CHOSEN} if type(solver).__name__ in DIFFER else {}


@parametrize_with_checks(SOLVERS, expected_failed_checks=expected)
def test_contract(part, check):
    check(part)
