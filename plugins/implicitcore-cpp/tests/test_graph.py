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
# Not "tiny": the loop begins anew there, in other units, which no graph does.
@pytest.mark.parametrize("name", [name for name in PROBLEMS if name != "tiny"])
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
        assert int(found.evaluations) == expected.evaluations
        rows = expected.converged
        torch.testing.assert_close(found.z[rows], expected.z[rows])
        torch.testing.assert_close(
            found.residual[rows], expected.residual[rows], rtol=1e-3, atol=1e-12
        )


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
