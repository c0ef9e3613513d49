"""The Krylov spaces of GMRES, in Triton's interpreter: those of the torch backend."""

from __future__ import annotations

import pytest
import torch

import implicitcore as ic
from implicitcore.testing.expect import known
from implicitcore.testing.hard_maps import PROBLEMS
from implicitcore.testing.kernel_checks import KernelProblem
from implicitcore.testing.krylov_checks import check_krylov_spaces
from implicitcore_triton import TritonBackend, krylov
from implicitcore_triton.krylov import CHUNK, TritonKrylov

BACKEND = TritonBackend(interpret=True)
DTYPES = (torch.float32, torch.float64, torch.bfloat16)
each_dtype = pytest.mark.parametrize("dtype", DTYPES, ids=str)


@each_dtype
def test_equal_to_torch(launches, dtype):
    for batch, n, most in ((7, 21, 4), (2, 3, 20), (1, 1, 1)):
        problem = KernelProblem(BACKEND, "cpu", dtype, batch, n, batch == 7)
        check_krylov_spaces(problem, most)
    assert set(launches) == {"expand", "minimise"}


@each_dtype
def test_samples_of_several_chunks(launches, monkeypatch, dtype):
    monkeypatch.setattr(krylov, "CHUNK", 16)
    monkeypatch.setattr(krylov, "PARTS", 2)
    check_krylov_spaces(KernelProblem(BACKEND, "cpu", dtype, 7, 35, aligned=False), 3)
    assert set(launches) == {"project", "reduce", "settle", "minimise"}


def test_more_vectors_than_a_program_holds_at_once(launches, monkeypatch):
    monkeypatch.setattr(krylov, "LINES", 2)
    check_krylov_spaces(KernelProblem(BACKEND, "cpu", torch.float64, 2, 40), 9)
    assert set(launches) == {"expand", "minimise"}


def test_a_long_sample(launches):
    check_krylov_spaces(KernelProblem(BACKEND, "cpu", torch.float32, 1, CHUNK + 5), 2)
    assert "reduce" in launches


@pytest.mark.parametrize(
    ("n", "product"), [(17, ["expand"]), (CHUNK + 1, ["project", "reduce", "settle"])]
)
@torch.no_grad()
def test_what_a_product_launches(launches, n, product):
    """The table of docs/benchmarks/launches.md."""
    space = known(BACKEND.krylov_space(torch.ones(1, n), torch.zeros(1), 3))
    v = known(space.extend(None))
    before = len(launches)
    v = known(space.extend(torch.linspace(1, 2, n) * v))
    assert launches[before:] == product
    assert space.extend(torch.linspace(1, 2, n) * v) is not None
    space.minimise()
    assert launches[before:] == [*product, *product, "minimise"]


def test_a_sample_has_the_bits_that_it_has_alone(launches):
    g = torch.randn(3, 20, generator=torch.Generator().manual_seed(0))
    limit = g.norm(dim=1) * torch.tensor([1e-1, 1e-5, 1e-2])

    def solved(rows):
        space = known(BACKEND.krylov_space(g[rows], limit[rows], 6))
        v = space.extend(None)
        while v is not None:
            v = space.extend(v - 0.4 * v.roll(1, 1))
        return space.minimise(), space.steps

    with torch.no_grad():
        (together, steps), (alone, count) = solved(slice(None)), solved(slice(2, 3))
    assert len(set(steps.tolist())) == 3
    assert torch.equal(alone[0], together[2]) and count.item() == steps[2].item()


def test_a_backward_solve_by_gmres_is_that_of_torch(launches):
    found = []
    for backend in (BACKEND, None):
        problem = PROBLEMS["contraction"](torch.float64)
        x = problem.x.clone().requires_grad_()
        solution = ic.fixed_point(
            problem.f, torch.zeros_like(x), x, solver=ic.Anderson(tol=1e-9),
            gradient=ic.Implicit(ic.GMRES(tol=1e-4, restart=3)), backend=backend)  # fmt: skip
        gradient = torch.autograd.grad(solution.z.square().sum(), x)[0]
        found.append((gradient, known(solution.backward)))
    (mine, own), (theirs, torchs) = found
    assert launches.count("minimise") > 1
    late = TritonKrylov.LOOK_EVERY * launches.count("minimise")
    assert 0 <= own.vjps - torchs.vjps <= late
    assert torch.allclose(mine, theirs, rtol=0, atol=1e-8 * theirs.abs().max().item())


def test_an_inner_solve_of_newton(launches):
    draw = torch.Generator().manual_seed(0)
    a = 0.4 * torch.randn(12, 12, generator=draw, dtype=torch.float64) / 12**0.5
    x = torch.randn(3, 12, generator=draw, dtype=torch.float64)
    f, solver = (lambda z, x: torch.tanh(z @ a) + x), ic.Newton(tol=1e-8, dense_below=0)
    with torch.no_grad():
        found, expected = (
            ic.fixed_point(f, torch.zeros_like(x), x, solver=solver, backend=backend)
            for backend in (BACKEND, None)
        )
    assert "expand" in launches
    assert found.steps.tolist() == expected.steps.tolist()
    assert torch.allclose(found.z, expected.z, rtol=0, atol=1e-8)
