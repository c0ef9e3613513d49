"""The kernels as operations of a graph: solves step by step, and compiled layers."""

from __future__ import annotations

from typing import Any

import pytest
import torch

import implicitcore as ic
from implicitcore.extend import RootGraph, StopRule
from implicitcore.testing.hard_maps import PROBLEMS, SOLVERS

EPS = torch.finfo(torch.float64).eps


def rule(solver, scale: Any = "update", rounding=EPS):
    tiny = torch.finfo(torch.float64)
    return StopRule(
        tol=solver.tol,
        floor=solver.atol + tiny.tiny * tiny.eps,
        scale=scale,
        rounding=rounding,
        min_steps=solver.min_steps,
        origin=None,
        divergence=1e8,
        trust=0.1,
        growth=2.0,
    )


def driven(graph: RootGraph, f, z, is_map=True):
    """The loop that a graph has, in Python."""
    state, going = graph.begin(z, None), torch.ones((), dtype=torch.bool)
    while going:
        fz = f(z)
        z, going = graph.advance(state, z, fz, None if is_map else fz - z, going)
    return graph.result(state, z, going)


@pytest.mark.parametrize("solver", SOLVERS, ids=str)
@pytest.mark.parametrize("name", PROBLEMS)
def test_operations_stop_each_sample_where_the_iterations_do(cpp, name, solver):
    problem = PROBLEMS[name](torch.float64)
    start = torch.zeros_like(problem.x)
    kinds: tuple[Any, ...] = (("fixed_point", "update"), ("find_root", "root"))
    for kind, scale in kinds:
        with torch.no_grad():
            expected = problem.solve(solver, cpp, kind)
            is_map = kind == "fixed_point"
            rounding = EPS if is_map else 0.0
            graph = cpp.root_graph(
                solver.update_rule(start), rule(solver, scale, rounding), start, solver.max_steps
            )
            found = driven(graph, lambda z: problem.f(z, problem.x), start, is_map)
        status, known = found.status.clone(), expected.status.clone()
        if name == "overflow":  # norms take the whole range here, and the loop begins anew
            status[status == ic.Status.DIVERGED] = ic.Status.NON_FINITE
            known[known == ic.Status.DIVERGED] = ic.Status.NON_FINITE
        assert status.tolist() == known.tolist()
        assert found.steps.tolist() == expected.steps.tolist()
        again = name == "tiny"  # the loop begins anew, in other units
        assert int(found.evaluations) + again == expected.evaluations
        rows = expected.converged
        torch.testing.assert_close(found.z[rows], expected.z[rows])
        torch.testing.assert_close(
            found.residual[rows], expected.residual[rows], rtol=1e-3, atol=1e-12
        )


@pytest.mark.parametrize("size", [1e30, 1e-30])
@pytest.mark.parametrize("solver", [ic.Picard(max_steps=300), ic.Anderson(depth=8), ic.Broyden()])
def test_a_solve_whose_squares_are_beyond_its_dtype_is_in_other_units(cpp, solver, size):
    generator = torch.Generator().manual_seed(0)
    weight = torch.randn(8, 8, generator=generator)
    weight = (weight + weight.T) / torch.linalg.matrix_norm(weight + weight.T, 2)
    if not isinstance(solver, ic.Picard):
        weight = 1.6 * weight  # plain steps lead away
    x = size * torch.randn(4, 8, generator=generator)
    x[1] /= size  # beside a sample that needs none
    z, f = torch.zeros(4, 8), lambda z, x: 0.9 * z @ weight + x
    with torch.no_grad():
        expected = ic.fixed_point(f, z, x, solver=solver, on_failure="ignore")
        eps = torch.finfo(torch.float32)
        own = rule(solver, rounding=eps.eps / 2)._replace(floor=solver.atol + eps.tiny * eps.eps)
        graph = cpp.root_graph(solver.update_rule(z), own, z, solver.max_steps)
        found = driven(graph, lambda z: f(z, x), z)
    assert found.status.tolist() == expected.status.tolist() == [0] * 4
    assert found.steps.tolist() == expected.steps.tolist()
    share = x.abs().amax(1, keepdim=True)
    torch.testing.assert_close(found.z / share, expected.z / share, rtol=1e-3, atol=1e-4)
    torch.testing.assert_close(
        found.residual / share[:, 0], expected.residual / share[:, 0], rtol=0.05, atol=1e-5
    )


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")  # of torch, about its own parts
@pytest.mark.parametrize("solver", [ic.Anderson(depth=8), ic.Broyden()])
def test_a_compiled_layer_takes_the_units_that_its_samples_need(cpp, solver):
    generator = torch.Generator().manual_seed(0)
    weight = torch.randn(8, 8, generator=generator)
    weight = 1.6 * (weight + weight.T) / torch.linalg.matrix_norm(weight + weight.T, 2)
    cell = ic.FixedPoint(lambda z, x: 0.9 * z @ weight + x)
    layer = ic.ImplicitLayer(cell, solver=solver, backend=cpp)
    fast = ic.compile(layer)
    for size in (1.0, 1e30, 1e-30):
        x = torch.randn(4, 8, generator=generator)
        x[::2] *= size  # beside samples that need no others
        with torch.no_grad():
            expected, found = layer.solve(x), fast.solve(x)
        assert found.status.tolist() == expected.status.tolist() == [0] * 4
        assert found.steps.tolist() == expected.steps.tolist()
        share = x.abs().amax(1, keepdim=True)
        torch.testing.assert_close(found.z / share, expected.z / share, rtol=1e-3, atol=1e-4)


def test_a_copy_of_a_solve_is_refused(cpp):
    solver, z = ic.Picard(), torch.zeros(2, 3)
    graph = cpp.root_graph(solver.update_rule(z), rule(solver), z, solver.max_steps)
    state, going = graph.begin(z, None).clone(), torch.ones((), dtype=torch.bool)
    with pytest.raises(RuntimeError, match="a copy of a solve has nothing of it"):
        graph.advance(state, z, z, None, going)


def test_a_method_without_kernels_has_no_operations(cpp):
    z = torch.zeros(2, 3)
    solver = ic.Anderson()
    assert cpp.root_graph(solver.update_rule(z), rule(solver), z.half(), 5) is None
    assert cpp.krylov_graph(z.half()) is None
    assert ic.Broyden(variant="bad").update_rule(z) is None
