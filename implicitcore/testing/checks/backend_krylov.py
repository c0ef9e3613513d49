"""What every backend promises of the Krylov spaces that it makes."""

from __future__ import annotations

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode

from implicitcore.backends.base import Backend
from implicitcore.backends.device_krylov import DeviceKrylov
from implicitcore.backends.graph import KrylovGraph
from implicitcore.backends.krylov_space import KrylovSpace
from implicitcore.backends.torch import TorchBackend
from implicitcore.root_solvers.krylov import krylov_space
from implicitcore.testing.check import contract
from implicitcore.testing.expect import (
    NotApplicable,
    expect,
    expect_apart,
    expect_close,
    expect_traced,
)
from implicitcore.testing.kernels import Draw, device_of, widest

REFERENCE = TorchBackend()
# Of each sample: the size of A - I, and the limit relative to |g|. The third is left out, the
# fourth is solved by one product (A is a multiple of I), the fifth needs most.
SIZES = (0.3, 0.7, 0.7, 0.0, 0.9, 0.5, 0.5)
LIMITS = (1e-2, 1e-4, torch.inf, 1e-6, 1e-6, 1e-3, 1e-3)
ZERO, NAN = 5, 6  # the samples whose g is this


@contract("backend")
def spans_krylov_spaces_as_the_reference_does(backend: Backend) -> None:
    """``krylov_space``, where the backend has one: steps, minimisers and their true residuals.

    With samples that need few products, many, or none, one that has a solution after the first, a
    NaN in one sample, and at the largest dimension.
    """
    device, dtype = device_of(backend), widest(backend)
    bound = 1e-8 if dtype == torch.float64 else 1e-3
    for n, most in ((129, 30), (129, 3), (129, 1), (2, 30), (1, 4)):
        a, g, limit = _problem(dtype, device, n)
        with torch.no_grad():
            if backend.krylov_space(g, limit, most) is None:
                return
            found, expected = (_space(each, a, g, limit, most) for each in (backend, REFERENCE))
            did = f"spanned Krylov spaces of dimension {most} at most, n = {n}, compared the"
            late = min(_late(found), most - expected.size)
            right = 0 <= found.size - expected.size <= late
            expect(
                right, f"{did} products", found.size, f"{expected.size}, and {late} more at most"
            )
            mine, theirs = found.steps.tolist(), expected.steps.tolist()
            expect(mine == theirs, f"{did} steps of each sample", mine, theirs)
            s, known = found.minimise(), torch.arange(len(g), device=device) != NAN
            expect_close(s[known], expected.minimise()[known], f"{did} minimisers", bound)
            _is_within(found, s, (a, g, limit), most)


@contract("backend")
@torch.no_grad()
def spans_krylov_spaces_in_a_graph_as_the_reference_does(backend: Backend) -> None:
    """``krylov_graph``, where the backend has one: the same of its operations.

    They write to no argument, give none of its memory back, take strided views, and say without
    values what they give.
    """
    device, dtype = device_of(backend), widest(backend)
    graph = backend.krylov_graph(torch.zeros(1, 1, dtype=dtype, device=device))
    if graph is None:
        raise NotApplicable("it has no Krylov spaces for a graph")
    bound = 1e-8 if dtype == torch.float64 else 1e-3
    for n, most in ((129, 30), (129, 3), (129, 1), (2, 30), (1, 4)):
        a, g, limit = _problem(dtype, device, n)
        expected = _space(REFERENCE, a, g, limit, most)
        did = f"spanned Krylov spaces in a graph, of dimension {most} at most, n = {n}: the"
        for views in (False, True):
            s, steps, products = _spanned(graph, (a, g, limit), most, did, views=views)
            expect(int(products) == expected.size, f"{did} products", int(products), expected.size)
            mine, theirs = steps.tolist(), expected.steps.tolist()
            expect(mine == theirs, f"{did} steps of each sample", mine, theirs)
            rows = torch.arange(len(g), device=device) != NAN
            expect_close(s[rows], expected.minimise()[rows], f"{did} minimisers", bound)
    g, nobody = torch.ones_like(g), torch.full_like(limit, torch.inf)
    s, steps, products = _spanned(graph, (a, g, nobody), 4, "left all samples out", views=False)
    idle = not (bool(s.any()) or bool(steps.any()) or int(products))
    expect(idle, "spanned Krylov spaces in a graph that no sample needs", (s, steps), "zeros")
    with FakeTensorMode() as mode:
        fake = _operations(graph, *map(mode.from_tensor, (g, limit)))
    did = "called the operations of Krylov spaces without values"
    expect_traced(fake, _operations(graph, g, limit), did)


def _spanned(
    graph: KrylovGraph, problem: tuple[Tensor, Tensor, Tensor], most: int, did: str, *, views: bool
) -> tuple[Tensor, Tensor, Tensor]:
    """The loop of a cycle in Python, whose operations are watched."""

    def given(tensor: Tensor) -> Tensor:
        return tensor.T.contiguous().T if views else tensor.clone()

    a, g, limit = problem
    g = given(g)
    arguments = g, limit, torch.tensor(most, device=g.device)
    state, v, going = graph.begin(*arguments)
    expect_apart((state, v, going), arguments, f"{did} arguments")
    if views:
        g.fill_(torch.nan)  # a graph uses the memory again
    while going:
        product = given((a @ v.unsqueeze(2)).squeeze(2))
        before = [each.clone().nan_to_num() for each in (product, going)]
        following = graph.extend(state, product, going)
        for now, then in zip((product, going), before, strict=True):
            expect(torch.equal(now.nan_to_num(), then), f"{did} arguments", "others", "the same")
        expect_apart(following, (state, v, product, going), f"{did} arguments")
        v, going = following
    found = graph.minimise(state, v, going)
    expect_apart(found, (state, v, going), f"{did} arguments")
    return found


def _operations(graph: KrylovGraph, g: Tensor, limit: Tensor) -> list[Tensor]:
    """What each operation gives."""
    most = torch.full((), 1, dtype=torch.int64, device=g.device)
    state, v, going = graph.begin(g, limit, most)
    following = graph.extend(state, v + 1, going)
    return [state, v, going, *following, *graph.minimise(state, *following)]


def _space(backend: Backend, a: Tensor, g: Tensor, limit: Tensor, most: int) -> KrylovSpace:
    return krylov_space(backend, lambda v: (a @ v.unsqueeze(2)).squeeze(2), g, limit, most)


def _late(space: KrylovSpace) -> int:
    """Products that are taken in before the host knows that no sample needs them."""
    return space.LOOK_EVERY if isinstance(space, DeviceKrylov) else 0


def _is_within(
    space: KrylovSpace, s: Tensor, problem: tuple[Tensor, Tensor, Tensor], most: int
) -> None:
    """The residuals of samples that needed no more products are within their limits."""
    a, g, limit = problem
    size = (g - (a @ s.unsqueeze(2)).squeeze(2)).norm(dim=1)
    rows = (space.steps < most) & limit.isfinite() & g.isfinite().all(1)
    over = size[rows] > 1.001 * limit[rows]
    did = "measured the residuals of minimisers that needed no more products"
    expect(not bool(over.any()), did, size[rows].tolist(), f"at most {limit[rows].tolist()}")


def _problem(dtype: torch.dtype, device: str, n: int) -> tuple[Tensor, Tensor, Tensor]:
    """A ``[batch, n, n]``, g and the limits."""
    draw, batch = Draw(dtype, device), len(SIZES)
    size = torch.tensor(SIZES, dtype=dtype, device=device)
    a = torch.eye(n, dtype=dtype, device=device) + size[:, None, None] * draw(batch, n, n) / n**0.5
    a[3] *= 2
    g = draw(batch, n)
    g[ZERO], g[NAN, -1] = 0, torch.nan
    limit = torch.tensor(LIMITS, dtype=dtype, device=device) * g.norm(dim=1)
    limit[ZERO] = 1e-30
    return a, g, limit
