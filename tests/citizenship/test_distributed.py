"""Several processes: data parallel training, and solves that stop together."""

from __future__ import annotations

import pytest
import torch
from support import ranks

import implicitcore as ic
from implicitcore.registry.registry import REGISTRY
from implicitcore.testing.dense import relative_error
from implicitcore.testing.expect import known
from implicitcore.testing.problems import Cell

pytestmark = [
    pytest.mark.skipif(
        not (torch.distributed.is_available() and torch.distributed.is_gloo_available()),
        reason="no gloo",
    ),
    pytest.mark.timeout(200),
]


@pytest.fixture(scope="module")
def both(tmp_path_factory):
    """What the two ranks found with each strategy: one process group for all."""
    return ranks.run(ranks.strategies, tmp_path_factory.mktemp("ranks"))


def test_every_gradient_strategy_is_in_the_table():
    known_ones = {part.load() for part in REGISTRY.parts("gradient")}
    assert {type(gradient) for _, gradient in ranks.LAYERS.values()} >= known_ones


@pytest.mark.slow
@pytest.mark.parametrize("name", ranks.STRATEGIES)
def test_gradients_are_those_of_one_process_or_refused(name, both):
    model = ranks.STRATEGIES[name]()
    model(ranks.samples()).square().sum().backward()
    expected = [known(p.grad).div(ranks.WORLD) for p in model.parameters()]
    for found in both:
        for way in (("ddp", (4, 4)), ("whole",)):
            assert relative_error(found[name, *way], expected) < 1e-8, way
        for way in ("nested", *(("part", "closure", "function") if name in ranks.LAYERS else ())):
            assert "divide the whole model, fully_shard(model)" in found[name, way], way


@pytest.mark.slow
def test_a_rank_without_samples_takes_part(both):
    counts = [ranks.evaluations(rank) for rank in range(ranks.WORLD)]
    for name in ranks.UNEVEN:
        assert counts[0][name] != counts[1][name]
        model = ranks.STRATEGIES[name]()
        model(ranks.samples(sizes=(4, 0))).square().sum().backward()
        expected = [known(p.grad).div(ranks.WORLD) for p in model.parameters()]
        for found in both:
            assert relative_error(found[name, "ddp", (4, 0)], expected) < 1e-8


@pytest.mark.slow
def test_a_divided_cell_is_right_where_the_processes_stop_together(both):
    model = ranks.STRATEGIES["implicit"]()
    model(ranks.samples()).square().sum().backward()
    expected = [known(p.grad).div(ranks.WORLD) for p in model.parameters()]
    for found in both:
        assert relative_error(found["together"], expected) < 1e-8


@pytest.mark.slow
def test_a_cell_that_communicates_stops_with_the_others(tmp_path):
    first, second = ranks.run(ranks.communicating, tmp_path)
    for (solver, gradient, sizes), mine in first.items():
        other = second[solver, gradient, sizes]
        assert mine["calls"] == other["calls"] and len(mine["trace"]) == len(other["trace"])
        assert bool(mine["converged"].all()) and bool(other["converged"].all())
        assert torch.allclose(mine["residual"], mine["measured"], atol=1e-13)
        cell, x = ranks.MeanCell(), ranks.samples(sizes=sizes).requires_grad_()
        z = torch.zeros_like(x)
        for _ in range(200):
            z = cell(z, x)
        expected = torch.autograd.grad(z.square().sum(), [*cell.parameters(), x])
        assert torch.allclose(torch.cat((mine["z"], other["z"])), z, atol=1e-10)
        found = [a + b for a, b in zip(mine["gradients"], other["gradients"], strict=True)]
        assert relative_error([*found, torch.cat((mine["x"], other["x"]))], expected) < 1e-8


def test_a_failure_of_one_stops_all(tmp_path):
    first, second = ranks.run(ranks.failing, tmp_path)
    assert first == [ic.Status.MAX_STEPS] * 2
    assert second[0] == ic.Status.NON_FINITE


def test_a_group_is_shared_by_copies_and_kept_from_files(tmp_path):
    first, second = ranks.run(ranks.copies, tmp_path)
    assert first.pop("error").startswith(
        "a process group cannot be saved: set layer.sync_steps = True"
    )
    assert first == second == {"shared": True, "converged": True, "all": True}


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"solver": ic.Picard(), "gradient": ic.Unrolled()}, "init_process_group first"),
        ({"solver": ic.Newton()}, "Newton cannot stop at the same step"),
        ({"solver": ic.Tsit5()}, "Tsit5 cannot stop at the same step"),
        ({"solver": ic.Picard()}, "GMRES cannot stop at the same step.*its gradient"),
        (
            {"solver": ic.Picard(), "gradient": ic.Unrolled(), "on_failure": "mask"},
            "cannot be combined with sync_steps",
        ),
    ],
)
def test_what_cannot_stop_in_step_says_so(options, message, tmp_path):
    layer = ic.ImplicitLayer(ic.FixedPoint(Cell()), **options)
    layer.sync_steps = True
    alone = "first" in message
    if not alone:
        torch.distributed.init_process_group(
            "gloo", init_method=f"file://{tmp_path}/store", rank=0, world_size=1
        )
    try:
        with pytest.raises(ic.InputError, match=message):
            layer(torch.zeros(2, 6, dtype=torch.float64))
    finally:
        if not alone:
            torch.distributed.destroy_process_group()
