"""What every backend promises of the iterations that it puts into a graph as operations."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from itertools import product
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode

from implicitcore.backends.base import Backend
from implicitcore.backends.graph import GraphResult, RootGraph
from implicitcore.backends.torch import TorchBackend
from implicitcore.dynamics.base import Dynamics
from implicitcore.dynamics.fixed_point import FixedPoint
from implicitcore.dynamics.vector_field import VectorField
from implicitcore.functional import find_root, fixed_point
from implicitcore.graph.fused import adjoint_graph, root_graph
from implicitcore.root_solvers.anderson import Anderson
from implicitcore.root_solvers.broyden import Broyden
from implicitcore.root_solvers.picard import Picard
from implicitcore.solution import Solution, Status
from implicitcore.tensors.norms import real_dtype
from implicitcore.testing.check import contract
from implicitcore.testing.checks.backend import HARD
from implicitcore.testing.expect import (
    NotApplicable,
    expect,
    expect_apart,
    expect_close,
    expect_traced,
)
from implicitcore.testing.kernels import Draw, device_of, widest

REFERENCE = TorchBackend()
SOLVERS = (
    Picard(tol=1e-4),
    Picard(tol=1e-4, damping=0.6, min_steps=7),
    Anderson(tol=1e-4, max_steps=20),
    Anderson(tol=1e-4, plain_rate=0.6),
    Broyden(tol=1e-4),
    Broyden(tol=1e-4, memory=4),
)
MAPS: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    **HARD,
    "maps that start at their root": lambda z, x: 0 * z,
    "maps that run away": lambda z, x: 1.2 * z + x,
}
SINGULAR = "maps without a fixed point"  # of a field without a root rounding decides


class Driven(NamedTuple):
    """A solve, and all that its operations were given and gave."""

    result: GraphResult
    iterates: list[Tensor]


def _driven(
    graph: RootGraph, f: Callable[[Tensor], tuple[Tensor, Tensor | None]], z: Tensor
) -> Driven:
    """The loop that a graph has, in Python; f gives f(z), and g(z) or None."""
    state, going = graph.begin(z, None), torch.ones((), dtype=torch.bool, device=z.device)
    iterates = []
    while going:
        iterates.append(z.clone())
        fz, g = f(z)
        z, going = graph.advance(state, z, fz, g, going)
    return Driven(graph.result(state, z, going), iterates)


def _graph(backend: Backend, solver: Any, dynamics: Dynamics, z: Tensor) -> RootGraph | None:
    """The operations, asked for with another state: they are for all of its dtype."""
    return root_graph(backend, solver, dynamics, z.new_zeros(2, 3))


def _with_graph(backend: Backend, solvers: tuple[Any, ...], z: Tensor) -> Iterator[Any]:
    """The solvers that the backend has operations for, each with those.

    Raises:
        NotApplicable: it has none.
    """
    dynamics = FixedPoint(lambda z, x: z)
    found = [(each, _graph(backend, each, dynamics, z)) for each in solvers]
    if all(graph is None for _, graph in found):
        raise NotApplicable("it has no iterations for a graph")
    return iter([(solver, graph) for solver, graph in found if graph is not None])


@contract("backend")
@torch.no_grad()
def iterates_in_a_graph_as_the_reference_does(backend: Backend) -> None:
    """``root_graph``, where the backend has one: status, steps, evaluations and the best iterate.

    Of maps and of vector fields, harmless and hard, with a NaN in one sample; a sample that has
    stopped stays where it was.
    """
    device, dtype = device_of(backend), widest(backend)
    for n, maps in ((9, MAPS), (129, dict([*MAPS.items()][:1]))):
        x = _rates(dtype, device, n)
        for solver, _ in _with_graph(backend, SOLVERS, x):
            for (name, f), is_map in product(maps.items(), (True, False)):
                if is_map or name != SINGULAR:
                    kind = "maps" if is_map else "fields"
                    did = f"iterated {name} in a graph by {solver}, as {kind}"
                    _compare(*_solved(backend, solver, f, x, is_map), did)


def _rates(dtype: torch.dtype, device: str, n: int) -> Tensor:
    rates = torch.linspace(0.1, 0.85, 5, dtype=dtype, device=device)  # at 0.5 one has no answer
    return rates[:, None].expand(5, n).contiguous()


def _solved(
    backend: Backend, solver: Any, f: Callable[[Tensor, Tensor], Tensor], x: Tensor, is_map: bool
) -> tuple[Driven, Solution, Tensor]:
    """In operations, by the loop, and the true residuals at what the first found."""

    def g(z: Tensor, x: Tensor) -> Tensor:
        return f(z, x) - z

    def both(z: Tensor) -> tuple[Tensor, Tensor | None]:
        return (f(z, x), None) if is_map else (z + g(z, x), g(z, x))

    dynamics = FixedPoint(f) if is_map else VectorField(g, autonomous=True)
    graph, start = _graph(backend, solver, dynamics, x), torch.zeros_like(x)
    expect(graph is not None, f"asked for {solver} in a graph", "None for a field", "as for a map")
    assert graph is not None
    found = _driven(graph, both, start)
    call, known = (fixed_point, f) if is_map else (find_root, g)
    expected = call(known, start, x, solver=solver, backend=REFERENCE, on_failure="ignore")
    return found, expected, g(found.result.z, x).norm(dim=1)


def _compare(found: Driven, expected: Solution, residual: Tensor, did: str) -> None:
    result, bound = found.result, 1e-6 if residual.dtype == torch.float64 else 1e-2
    for what, mine, theirs in (
        ("status", result.status.tolist(), expected.status.tolist()),
        ("steps", result.steps.tolist(), expected.steps.tolist()),
        ("evaluations", int(result.evaluations), expected.evaluations),
        ("evaluations", len(found.iterates), expected.evaluations),
    ):
        expect(mine == theirs, f"{did}: {what}", mine, theirs)
    rows = expected.converged
    expect_close(result.z[rows], expected.z[rows], f"{did}: z", 10 * bound)
    rows = result.residual.isfinite()
    alike = torch.equal(rows, expected.residual.isfinite())
    expect(alike, f"{did}: residual", result.residual.tolist(), expected.residual.tolist())
    share = (result.residual / residual.clamp(min=bound))[rows & (residual > bound)]
    expect_close(share, torch.ones_like(share), f"{did}: the residual there, and the true", bound)
    least = result.residual <= (1 + 1e-3) * expected.residual + bound
    did_best = f"{did}: the least residual"
    expect(bool(least[rows].all()), did_best, result.residual.tolist(), expected.residual.tolist())
    _stays(found, did)


def _stays(found: Driven, did: str) -> None:
    """A sample that has stopped stays where it was."""
    iterates = torch.stack(found.iterates).nan_to_num()
    for row, step in enumerate(found.result.steps.tolist()):
        if found.result.status[row] != Status.MAX_STEPS:
            same = bool((iterates[step:, row] == iterates[step - 1, row]).all())
            expect(same, f"{did}: sample {row} after it had stopped", "another z", "the same z")


@contract("backend")
@torch.no_grad()
def iterates_in_a_graph_in_each_dtype(backend: Backend) -> None:
    """What ``root_graph`` gives has the dtypes of a solution, in each dtype of states.

    With norms that take the whole range of theirs, and the residual and the scale that it is given
    in the place of its own.
    """
    device = device_of(backend)
    asked = False
    for dtype in backend.dtypes:
        if dtype.is_complex:
            continue  # a graph solves real states
        z = torch.zeros(2, 8, dtype=dtype, device=device)
        graph = _graph(backend, Picard(tol=0.1, max_steps=100), FixedPoint(lambda z, x: z), z)
        if graph is not None:
            asked = True
            _has_its_dtypes(graph, z)
            _takes_the_range(graph, z)
            _takes_what_it_is_given(backend, z)
    if not asked:
        raise NotApplicable("it has no iterations for a graph")


def _has_its_dtypes(graph: RootGraph, z: Tensor) -> None:
    result = _driven(graph, lambda z: (z / 2 + 1, None), z).result
    real, did = real_dtype(z), f"solved in a graph in {z.dtype}, asked for the dtypes"
    found = [value.dtype for value in result]
    expected = [z.dtype, real, torch.int8, torch.int64, torch.int64]
    expect(found == expected, did, found, expected)


def _takes_the_range(graph: RootGraph, z: Tensor) -> None:
    """Squares of 1e30 and of 1e-30 are beyond float32."""
    if torch.finfo(z.dtype).max < 1e30:
        return
    shift = torch.tensor([[1e30], [1e-30]], device=z.device).to(z.dtype)
    result = _driven(graph, lambda z: (z / 2 + shift, None), z).result
    did = f"solved z / 2 + b = z for b of 1e30 and 1e-30 in a graph in {z.dtype}"
    expect(result.status.tolist() == [0, 0], did, f"status {result.status.tolist()}", [0, 0])
    share = (result.z / shift).double()
    expect(bool(((share > 1.7) & (share < 2.1)).all()), did, share.tolist(), "2 up to the tol")


def _takes_what_it_is_given(backend: Backend, z: Tensor) -> None:
    """A residual that is not f(z) - z, and a scale that is not ``|f(z)|``."""
    draw, real = Draw(z.dtype, str(z.device)), real_dtype(z)
    field = VectorField(lambda z, x: z, autonomous=True)
    graph = _graph(backend, Picard(max_steps=1), field, z)
    start, fz, g = draw(2, 8), draw(2, 8), draw(2, 8)
    if graph is not None:
        result = _driven(graph, lambda _: (fz, g), start).result
        did = f"gave a residual g in {z.dtype} that is not f(z) - z"
        expect_close(result.residual, g.to(real).norm(dim=1), did, 1e-3)
    solver = Picard(tol=1e-2, max_steps=100)
    adjoint: Any = adjoint_graph(backend, solver, z)
    if adjoint is None:
        return
    scale = torch.tensor([1.0, 1e4], dtype=real, device=z.device)
    state, going = adjoint.begin(z, scale), torch.ones((), dtype=torch.bool, device=z.device)
    steps, halves = 0, z
    while going:
        steps += 1
        z, going = adjoint.advance(state, z, z / 2 + 1, None, going)
    # |f(z) - z| is sqrt(8) / 2^k after k steps: the first where that is at most tol scale.
    found = adjoint.result(state, z, going).steps.tolist()
    did = f"solved z / 2 + 1 = z in {halves.dtype} to a hundredth of {scale.tolist()}: steps"
    expect(found == [10, 1] and steps == 10, did, found, [10, 1])


@contract("backend")
@torch.no_grad()
def operations_of_a_graph_are_pure(backend: Backend) -> None:
    """The operations of ``root_graph`` write to no argument, and give none of its memory back.

    They take strided views, keep what they need of the first iterate, whose memory a graph uses
    again, and say without values what they give.
    """
    device, dtype = device_of(backend), widest(backend)
    solvers = (Picard(tol=1e-9, max_steps=9), Anderson(tol=1e-9), Broyden(tol=1e-9))
    z = torch.zeros(3, 5, dtype=dtype, device=device)
    for solver, graph in _with_graph(backend, solvers, z):
        for name, f in _FIRST.items():
            did = f"iterated {name} in a graph by {solver}"
            start = Draw(dtype, device)(3, 5).round()
            plain, mixed = (_watched(graph, f, start, views, did) for views in (False, True))
            did = f"{did}, of strided views, and wrote to the first later"
            for mine, theirs in zip(mixed, plain, strict=True):
                expect(torch.equal(mine, theirs), did, mine.tolist(), theirs.tolist())
        with FakeTensorMode() as mode:
            fake = _operations(graph, mode.from_tensor(z))
        did = f"called the operations of {solver} without values"
        expect_traced(fake, _operations(graph, z), did)


_FIRST: dict[str, Callable[[Tensor], Tensor]] = {
    "z / 2 + 1": lambda z: z / 2 + 1,
    "z + 1, whose best iterate is the first,": lambda z: z + 1,
}


def _operations(graph: RootGraph, z: Tensor) -> list[Tensor]:
    """What each operation gives."""
    state, going = graph.begin(z, None), z.new_ones((), dtype=torch.bool)
    following = graph.advance(state, z, z + 1, None, going)
    return [state, *following, *graph.result(state, *following)]


def _watched(
    graph: RootGraph, f: Callable[[Tensor], Tensor], z: Tensor, views: bool, did: str
) -> GraphResult:
    """A solve whose operations are watched."""

    def given(tensor: Tensor) -> Tensor:
        return tensor.T.contiguous().T if views else tensor.clone()

    z = given(z)
    state, going = graph.begin(z, None), torch.ones((), dtype=torch.bool, device=z.device)
    first = True
    while going:
        z, fz = given(z), given(f(z))
        before = [each.clone() for each in (z, fz, going)]
        following = graph.advance(state, z, fz, None, going)
        for now, then in zip((z, fz, going), before, strict=True):
            expect(torch.equal(now, then), did, "an argument that was changed", "as it was")
        expect_apart(following, (state, z, fz, going), did)
        if first and views:  # a graph uses the memory again
            z.fill_(torch.nan)
            fz.fill_(torch.nan)
        (z, going), first = following, False
    result = graph.result(state, z, going)
    expect_apart(result, (state, z, going), did)
    return result
