"""The Krylov spaces of GMRES by the kernels: those of the torch backend, and what a product
launches."""

from __future__ import annotations

import pytest
import torch
from cpu_launcher import DTYPES, FORWARD, REVERSE, SHUFFLED, CpuLauncher, launches, on_cpu

import implicitcore as ic
from implicitcore.testing.expect import known
from implicitcore.testing.hard_maps import PROBLEMS
from implicitcore.testing.kernel_checks import KernelProblem
from implicitcore.testing.krylov_checks import check_krylov_spaces
from implicitcore_cupy.geometry import WHOLE
from implicitcore_cupy.krylov import CupyKrylov, takes

LATE = CupyKrylov.LOOK_EVERY
SHAPES = ((7, 129), (70, 2), (9, 40), (1, 1))
each_dtype = pytest.mark.parametrize("dtype", DTYPES, ids=DTYPES.values())


@pytest.fixture(autouse=True)
def spaces(monkeypatch):
    """How many spaces were the kernels', which makes every comparison one with them."""
    made, begin = [], CupyKrylov.__init__

    def begun(self, *arguments):
        made.append(arguments[3])
        begin(self, *arguments)

    monkeypatch.setattr(CupyKrylov, "__init__", begun)
    return made


@each_dtype
@pytest.mark.parametrize("order", [FORWARD, REVERSE, SHUFFLED])
def test_equal_to_torch(spaces, dtype, order):
    for batch, n in SHAPES:
        for most in (30, 3, 1):
            problem = KernelProblem(on_cpu(order), "cpu", dtype, batch, n, order != REVERSE)
            check_krylov_spaces(problem, most)
    assert len(spaces) == 3 * 3 * len(SHAPES)


@each_dtype
@pytest.mark.slow
def test_samples_of_several_spans(spaces, dtype):
    for batch, n in ((7, WHOLE + 8), (1, 100_003)):
        check_krylov_spaces(KernelProblem(on_cpu(REVERSE), "cpu", dtype, batch, n, batch == 1), 9)
    assert len(spaces) == 6


def test_an_empty_batch_is_torch_s(spaces):
    with torch.no_grad():
        for shape in ((0, 3), (3, 0)):
            found = on_cpu().krylov_space(torch.zeros(shape), torch.zeros(shape[0]), 4)
            assert found is None
    assert not spaces


def test_no_room_in_a_block_is_torch_s():
    assert takes(torch.zeros(1, WHOLE + 1), 1000)
    assert not takes(torch.zeros(1, WHOLE + 1), 10_000)
    assert takes(torch.zeros(1, WHOLE), 10_000)


@pytest.mark.parametrize("n", [60, WHOLE + 8])
def test_a_sample_has_the_bits_that_it_has_alone(n):
    g = torch.randn(5, n, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    rate = torch.linspace(0.1, 0.8, 5, dtype=torch.float64)[:, None]
    limit = g.norm(dim=1) * torch.tensor([1e-1, 1e-6, 1e-3, 1e-5, torch.inf], dtype=g.dtype)

    def solved(rows):
        space = known(on_cpu().krylov_space(g[rows], limit[rows], 12))
        v = space.extend(None)
        while v is not None:
            v = space.extend(v - rate[rows] * v.roll(1, 1))
        return space.minimise(), space.steps

    with torch.no_grad():
        together, steps = solved(slice(None))
        assert len(set(steps.tolist())) == 5
        for row in range(5):
            alone, count = solved(slice(row, row + 1))
            assert torch.equal(alone[0], together[row])
            assert count.item() == steps[row].item()


@pytest.mark.parametrize("restart", [30, 3])
@pytest.mark.parametrize("name", ["rates", "contraction", "wide"])
def test_a_backward_solve_by_gmres_is_that_of_torch(spaces, name, restart):
    """The products of each cycle are those of torch, or a few more until the host knows."""
    found = []
    for backend in (on_cpu(), None):
        problem = PROBLEMS[name](torch.float64)
        x = problem.x.clone().requires_grad_()
        solver = ic.GMRES(tol=1e-9, restart=restart, max_products=400)
        solution = ic.fixed_point(
            problem.f, torch.zeros_like(x), x, solver=ic.Anderson(tol=1e-11, max_steps=400),
            gradient=ic.Implicit(solver), backend=backend, on_failure="ignore")  # fmt: skip
        gradient = torch.autograd.grad(solution.z.square().sum(), x)[0]
        found.append((gradient, known(solution.backward)))
    (mine, own), (theirs, torchs) = found
    assert spaces
    assert 0 <= own.vjps - torchs.vjps <= LATE * len(spaces)
    assert torch.equal(known(own.status), known(torchs.status))
    assert torch.allclose(mine, theirs, rtol=0, atol=1e-8 * theirs.abs().max().item())


@pytest.mark.parametrize("solver", [ic.Newton(tol=1e-10, dense_below=0), ic.GMRES(tol=1e-10)])
def test_a_solve_with_krylov_spaces_is_that_of_torch(spaces, solver):
    draw = torch.Generator().manual_seed(0)
    a = 0.5 * torch.randn(4, 40, 40, generator=draw, dtype=torch.float64) / 40**0.5
    x = torch.randn(4, 40, generator=draw, dtype=torch.float64)
    bend = torch.tanh if isinstance(solver, ic.Newton) else (lambda z: z)
    f = lambda z, x: bend(torch.einsum("bij,bj->bi", x[0], z)) + x[1]  # noqa: E731
    with torch.no_grad():
        found, expected = (
            ic.fixed_point(f, torch.zeros_like(x), (a, x), solver=solver, backend=backend)
            for backend in (on_cpu(REVERSE), None)
        )
    assert spaces and bool(found.converged.all())
    assert found.steps.tolist() == expected.steps.tolist()
    assert torch.allclose(found.z, expected.z, rtol=0, atol=1e-8)


@pytest.mark.parametrize(
    ("n", "product", "last"), [(17, 1, 1), (WHOLE + 8, 3, 2)], ids=["one span", "several"]
)
@torch.no_grad()
def test_what_a_product_launches(n, product, last):
    """The table of docs/benchmarks/launches.md."""
    counted, looks = [], []
    for most in (5, 13):
        backend = on_cpu()
        space = known(backend.krylov_space(torch.ones(1, n), torch.zeros(1), most))
        v = space.extend(None)
        while v is not None:
            v = space.extend(torch.linspace(1, 2, n) * v + v.roll(1, 1))
        before = launches(backend)
        counted.append(before)
        space.minimise()
        assert launches(backend) - before == last
        assert isinstance(backend.launcher, CpuLauncher)
        looks.append(backend.launcher.looks)
    assert counted[1] - counted[0] == 8 * product
    assert looks[1] - looks[0] == 8 / LATE


def test_a_space_that_no_sample_needs_is_known_after_one_product():
    with torch.no_grad():
        space = known(on_cpu().krylov_space(torch.ones(2, 5), torch.full((2,), torch.inf), 9))
        v = space.extend(None)
        assert v is not None and not bool(v.any())
        assert space.extend(v) is None
    assert space.steps.tolist() == [0, 0] and not bool(space.minimise().any())


def test_what_is_not_a_product_or_limit_is_refused():
    with torch.no_grad():
        space = known(on_cpu().krylov_space(torch.ones(2, 3), torch.zeros(2), 4))
        space.extend(None)
        wrong = r"a product is torch.float32 of shape \(2, 4\), expected torch.float32 of shape"
        with pytest.raises(ic.InputError, match=wrong):
            space.extend(torch.ones(2, 4))
        with pytest.raises(ic.InputError, match="a product is torch.float64"):
            space.extend(torch.ones(2, 3, dtype=torch.float64))
        with pytest.raises(ic.InputError, match=r"limits have the shape \(3,\), expected \(2,\)"):
            on_cpu().krylov_space(torch.ones(2, 3), torch.zeros(3), 4)
