"""Every tableau satisfies the order conditions of its rooted trees."""

from __future__ import annotations

import pytest
import torch
from order_conditions import defects, trees
from torch import Tensor

from implicitcore.ode_solvers import tableaus
from implicitcore.ode_solvers.tableaus import Tableau

ALL = {name: value for name, value in vars(tableaus).items() if isinstance(value, Tableau)}
each_tableau = pytest.mark.parametrize("tableau", ALL.values(), ids=ALL.keys())


def matrices(tableau: Tableau) -> tuple[Tensor, Tensor, Tensor]:
    stages = len(tableau.b)
    rows = [[0.0] * stages] + [list(row) + [0.0] * (stages - len(row)) for row in tableau.a]
    as_tensor = lambda values: torch.tensor(values, dtype=torch.float64)  # noqa: E731
    return as_tensor(rows), as_tensor(tableau.b), as_tensor((0.0, *tableau.c))


def test_the_number_of_rooted_trees_is_the_known_one():
    assert [len(trees(order)) for order in range(1, 7)] == [1, 1, 2, 4, 9, 20]


@each_tableau
def test_shapes_and_row_sums(tableau):
    a, _, c = matrices(tableau)
    assert [len(row) for row in tableau.a] == list(range(1, len(tableau.b)))
    assert len(tableau.error) in (0, len(tableau.b))
    assert torch.allclose(a.sum(1), c, rtol=0, atol=2e-15)


@each_tableau
def test_the_order_is_the_stated_one_and_no_higher(tableau):
    a, b, _ = matrices(tableau)
    for order in range(1, tableau.order + 1):
        assert max(map(abs, defects(a, b, order))) < 3e-14
    assert max(map(abs, defects(a, b, tableau.order + 1))) > 1e-6


@each_tableau
def test_the_embedded_method_is_one_order_below(tableau):
    if not tableau.error:
        pytest.skip("no embedded method")
    a, b, _ = matrices(tableau)
    embedded = b - torch.tensor(tableau.error, dtype=torch.float64)
    for order in range(1, tableau.order):
        assert max(map(abs, defects(a, embedded, order))) < 3e-14
    assert max(map(abs, defects(a, embedded, tableau.order))) > 1e-6
