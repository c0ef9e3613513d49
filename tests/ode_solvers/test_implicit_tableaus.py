"""Every implicit tableau satisfies its order conditions, and is as stable as its solver says."""

from __future__ import annotations

import pytest
import torch
from support.order_conditions import defects
from torch import Tensor

from implicitcore.ode_solvers import implicit_tableaus as tableaus
from implicitcore.ode_solvers.implicit_tableaus import ImplicitTableau

ALL = {name: value for name, value in vars(tableaus).items() if isinstance(value, ImplicitTableau)}
each_tableau = pytest.mark.parametrize("tableau", ALL.values(), ids=ALL.keys())


def matrix(tableau: ImplicitTableau) -> Tensor:
    stages = len(tableau.a)
    return torch.tensor(
        [list(row) + [0.0] * (stages - len(row)) for row in tableau.a], dtype=torch.float64
    )


def weights(tableau: ImplicitTableau) -> Tensor:
    return torch.tensor(tableau.b, dtype=torch.float64)


def stability(tableau: ImplicitTableau, b: Tensor, z: Tensor) -> Tensor:
    """|R(z)| with R = 1 + z b^T (I - z A)^-1 1. Reference: Hairer, Wanner (1996), proposition
    IV.3.1."""
    a = matrix(tableau).to(torch.complex128)
    one = torch.ones(len(a), dtype=a.dtype)
    inner = torch.linalg.solve(
        torch.eye(len(a), dtype=a.dtype) - z[:, None, None] * a, one.expand(len(z), -1)
    )
    return (1 + z * (inner @ b.to(a.dtype))).abs()


@each_tableau
def test_shapes_row_sums_and_one_diagonal(tableau):
    a = matrix(tableau)
    assert [len(row) for row in tableau.a] == list(range(1, len(a) + 1))
    assert torch.allclose(
        a.sum(1), torch.tensor(tableau.c, dtype=torch.float64), rtol=0, atol=2e-15
    )
    assert len(tableau.error) in (0, len(a))
    assert set(a.diagonal()[tableau.explicit :].tolist()) == {tableau.gamma}
    assert tableau.c[-1] == 1


@each_tableau
def test_the_order_is_the_stated_one_and_no_higher(tableau):
    a, b = matrix(tableau), weights(tableau)
    for order in range(1, tableau.order + 1):
        assert max(map(abs, defects(a, b, order))) < 3e-14
    assert max(map(abs, defects(a, b, tableau.order + 1))) > 1e-6


@each_tableau
def test_the_embedded_method_is_one_order_below(tableau):
    if not tableau.error:
        pytest.skip("no embedded method")
    a, embedded = (
        matrix(tableau),
        weights(tableau) - torch.tensor(tableau.error, dtype=torch.float64),
    )
    for order in range(1, tableau.order):
        assert max(map(abs, defects(a, embedded, order))) < 3e-14
    assert max(map(abs, defects(a, embedded, tableau.order))) > 1e-6


@each_tableau
def test_a_stability(tableau):
    """|R| <= 1 on the imaginary axis; the poles are all at 1 / gamma > 0, so that it holds on the
    left half plane."""
    assert tableau.gamma > 0
    axis = 1j * torch.cat((torch.zeros(1), torch.logspace(-4, 6, 2000))).to(torch.float64)
    assert bool((stability(tableau, weights(tableau), axis) <= 1 + 1e-12).all())


@each_tableau
def test_l_stability(tableau):
    far = torch.tensor([-1e8], dtype=torch.complex128)
    size = stability(tableau, weights(tableau), far).item()
    assert size == pytest.approx(1, abs=1e-6) if tableau is tableaus.TRAPEZOID else size < 1e-6


def test_the_error_estimate_of_a_fast_component_stays_bounded():
    tableau = tableaus.ESDIRK436
    embedded = weights(tableau) - torch.tensor(tableau.error, dtype=torch.float64)
    z = -torch.logspace(-2, 8, 500, dtype=torch.float64).to(torch.complex128)
    assert bool((stability(tableau, embedded, z) <= 1).all())
