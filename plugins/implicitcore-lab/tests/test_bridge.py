"""One equilibrium by several ways, and the paths to it."""

import json

import pytest
import torch
from rich.console import Console

from implicitcore.testing.expect import known
from implicitcore_lab.papers.bridge import Bridge, hard_cells, one_cell
from implicitcore_lab.papers.paths import homotopy_path, jacobian
from implicitcore_lab.papers.table import Job


def test_the_jacobian_of_a_cell():
    cell, x = one_cell(0)
    z = torch.randn_like(x)
    exact = torch.func.vmap(torch.func.jacrev(lambda z, x: cell(z[None], x[None])[0]))(z, x)
    assert torch.allclose(jacobian(cell, z, x), exact)


def test_paths_end_at_equilibria():
    for cell, x in hard_cells(0, 2):
        z, s = homotopy_path(cell, x[:1])
        assert s[-1] == pytest.approx(1.0)
        assert (cell(z[-1:], x[:1]) - z[-1:]).norm() < 1e-2
        inner = s[:-1, None] * cell(z[:-1], x[:1])  # H = z - s f(z) for a = 0
        assert (z[:-1] - inner).abs().max() < 1e-3


@pytest.mark.slow
def test_all_ways_find_the_same_equilibrium(tmp_path):
    table = Bridge()
    budget = table.budgets["smoke"]
    work = Job(table.rows(), budget, (0,), tmp_path, False, {}, Console(quiet=True))
    results = table.measure(work)
    assert all(known(figures["difference"]) < 1e-7 for (figures,) in results.values())
    assert all(figures["of"] == 8 for (figures,) in results.values())
    assert results["homotopy"][0]["solved"] == 8
    assert "the same equilibrium" in table.verdict(results)[0]
    (kept,) = (tmp_path / "runs").iterdir()
    record = json.loads(kept.read_text())
    record["rows"]["picard"]["solved"] = 5.0
    kept.write_text(json.dumps(record))
    again = Job(table.rows(), budget, (0,), tmp_path, True, {}, Console(quiet=True))
    assert table.measure(again)["picard"][0]["solved"] == 5.0
