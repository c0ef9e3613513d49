"""Every tableau satisfies the order conditions of its rooted trees."""

from __future__ import annotations

import pytest
import torch
from support.order_conditions import defects, trees
from torch import Tensor

from implicitcore.ode_solvers import tableaus
from implicitcore.ode_solvers.dop853_tableau import DOP853, DOP853_ERROR_3
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
def test_the_order_of_the_embedded_method_is_the_stated_one_and_no_higher(tableau):
    if not tableau.error:
        pytest.skip("no embedded method")
    check_embedded(tableau, tableau.error, tableau.embedded)


def test_the_second_estimate_of_dop853_is_of_order_three():
    check_embedded(DOP853, DOP853_ERROR_3, 3)


def check_embedded(tableau, error, stated):
    a, b, _ = matrices(tableau)
    embedded = b - torch.tensor(error, dtype=torch.float64)
    for order in range(1, stated + 1):
        assert max(map(abs, defects(a, embedded, order))) < 3e-14
    assert max(map(abs, defects(a, embedded, stated + 1))) > 1e-6


@each_tableau
def test_the_continuous_extension_has_stages_of_its_own_and_weights_for_all(tableau):
    stages = len(tableau.b) + len(tableau.more_a)
    assert [len(row) for row in tableau.more_a] == list(range(len(tableau.b), stages))
    assert [sum(row) for row in tableau.more_a] == pytest.approx(tableau.more_c, abs=1e-14)
    # The velocity at the end follows the stages where it is not one of them.
    known = stages if tableau.fsal else stages + 1
    assert all(len(row) == known for row in tableau.dense)
    # In a constant field the state moves along a line, and what is added to it vanishes.
    assert [sum(row) for row in tableau.dense] == pytest.approx(
        [0.0] * len(tableau.dense), abs=1e-11
    )


def test_dop853_has_the_published_numbers():
    published = pytest.importorskip("scipy.integrate._ivp.dop853_coefficients")
    a, b, c = matrices(DOP853)
    more = [list(row) + [0.0] * (16 - len(row)) for row in DOP853.more_a]
    assert a.tolist() == published.A[:13, :13].tolist()
    assert more == published.A[13:].tolist()
    assert b[:12].tolist() == published.B.tolist()
    assert [*c.tolist(), *DOP853.more_c] == published.C.tolist()
    assert list(DOP853.error) == published.E5.tolist()
    assert list(DOP853_ERROR_3) == published.E3.tolist()
    assert [list(row) for row in DOP853.dense] == published.D.tolist()
