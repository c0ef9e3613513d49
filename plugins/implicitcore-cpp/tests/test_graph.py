"""The kernels as operations of a graph: solves step by step, and compiled layers."""

from __future__ import annotations

from typing import Any

import pytest
import torch

import implicitcore as ic
from implicitcore.extend import KrylovGraph, RootGraph, StopRule
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


def spanned(graph: KrylovGraph, a, g, limit, most):
    """The loop of a cycle, in Python."""
    state, v, going = graph.begin(g, limit, torch.tensor(most))
    while going:
        v, going = graph.extend(state, (a @ v.unsqueeze(2)).squeeze(2), going)
    return graph.minimise(state, v, going)


@pytest.mark.parametrize("most", [1, 4, 30])
def test_a_space_of_operations_is_that_of_the_kernels(cpp, most):
    generator = torch.Generator().manual_seed(0)
    noise = torch.randn(5, 17, 17, generator=generator, dtype=torch.float64) / 17**0.5
    rates = torch.tensor([0.1, 0.5, 0.0, 0.5, 0.5], dtype=torch.float64)
    a = torch.eye(17, dtype=torch.float64) + rates[:, None, None] * noise
    g = torch.randn(5, 17, generator=generator, dtype=torch.float64)
    limit = torch.tensor([1e-9, 1e-9, 1e-9, torch.inf, 1e-3], dtype=torch.float64)
    graph = cpp.krylov_graph(g)
    with torch.no_grad():
        s, steps, products = spanned(graph, a, g, limit, most)
        space = cpp.krylov_space(g, limit, most)
        v = space.extend(None)
        while v is not None:
            v = space.extend((a @ v.unsqueeze(2)).squeeze(2))
    assert torch.equal(s, space.minimise())
    assert steps.tolist() == space.steps.tolist()
    assert int(products) == space.size
    if most == 30:
        residual = (g - (a @ s.unsqueeze(2)).squeeze(2)).norm(dim=1)
        assert bool((residual[limit.isfinite()] <= 1.001 * limit[limit.isfinite()]).all())


def test_a_space_where_no_sample_needs_a_product(cpp):
    g, limit = torch.randn(3, 4), torch.full((3,), torch.inf)
    _, _, going = cpp.krylov_graph(g).begin(g, limit, torch.tensor(30))
    s, steps, products = spanned(cpp.krylov_graph(g), torch.eye(4).repeat(3, 1, 1), g, limit, 30)
    assert not going
    assert not s.any()
    assert steps.tolist() == [0, 0, 0]
    assert products == 0


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_norms_of_operations_take_the_whole_range(cpp, dtype):
    solver, z = ic.Picard(tol=0.1, max_steps=100), torch.zeros(2, 8, dtype=dtype)
    graph = cpp.root_graph(solver.update_rule(z), rule(solver), z, solver.max_steps)
    shift = torch.tensor([[1e30], [1e-30]]).to(dtype)
    found = driven(graph, lambda z: z / 2 + shift, z)
    assert found.status.tolist() == [0, 0]
    assert bool((found.z / shift > 1.7).all())
    assert bool(found.residual.isfinite().all() and (found.residual > 0).all())


def test_an_operation_keeps_what_it_was_given_first(cpp):
    solver, z = ic.Anderson(tol=1e-9), torch.ones(2, 3, dtype=torch.float64)
    graph = cpp.root_graph(solver.update_rule(z), rule(solver), z, solver.max_steps)
    state, going = graph.begin(z, None), torch.ones((), dtype=torch.bool)
    fz = z / 2
    following, going = graph.advance(state, z, fz, None, going)
    fz.fill_(torch.nan)  # a graph uses the memory again
    z.fill_(torch.nan)
    while going:
        z = following
        following, going = graph.advance(state, z, z / 2 + 1, None, going)
    torch.testing.assert_close(graph.result(state, z, going).z, torch.full_like(z, 2))


def test_a_plain_step_is_no_memory_of_f(cpp):
    solver, z = ic.Picard(), torch.zeros(2, 3)
    graph = cpp.root_graph(solver.update_rule(z), rule(solver), z, solver.max_steps)
    fz, start = torch.ones(2, 3), graph.begin(z, None)
    following, going = graph.advance(start, z, fz, None, torch.ones((), dtype=torch.bool))
    again, _ = graph.advance(start, following, fz, None, going)
    for given in (following, again):
        assert given.data_ptr() not in (fz.data_ptr(), z.data_ptr())


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
