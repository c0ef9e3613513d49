"""A strict check of kernels that make the Krylov spaces of GMRES.

As those of :mod:`implicitcore.testing.kernel_checks`, at the same sizes. A backend that makes no
spaces of its own passes: the reference is compared with itself.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from itertools import cycle, islice
from typing import NamedTuple

import torch
from torch import Tensor

from implicitcore.backends.device_krylov import DeviceKrylov
from implicitcore.backends.krylov_space import KrylovSpace
from implicitcore.root_solvers.krylov import krylov_space
from implicitcore.tensors.norms import column, norm
from implicitcore.testing.kernel_checks import REFERENCE, KernelProblem

# Of each sample: how far A is from the identity, and the limit relative to |g|. The third is left
# out; of the fourth a product is all but the vector that it is of; the fifth is solved by one.
SPREADS = (0.6, 0.9, 0.7, 1e-4, 0.0, 0.5, 0.5)
LIMITS = (1e-2, 1e-6, torch.inf, 1e-7, 1e-6, 1e-3, 1e-3)
ZERO, NAN = 5, 6  # the samples whose g is this
LEAST = {torch.float64: 0.0, torch.float32: 1e-4, torch.bfloat16: 5e-2}  # of the limits
APART = {torch.float64: 1e-9, torch.float32: 2e-3, torch.bfloat16: 2e-1}  # of two minimisers
ROUNDING = 50  # times that of the dtype: of residuals, and of products of a basis


class _System(NamedTuple):
    apply: Callable[[Tensor], Tensor]  # v -> A v
    g: Tensor
    limit: Tensor


def check_krylov_spaces(problem: KernelProblem, most: int = 30) -> None:
    """``krylov_space``: steps, minimisers, true residuals and the basis, of samples of each kind.

    Raises:
        AssertionError: they are not those of the torch backend.
    """
    if not problem.batch or not problem.n:
        return
    with torch.no_grad():
        system = _system(problem)
        given = _aside(problem, system)
        expected = krylov_space(REFERENCE, system.apply, system.g, system.limit, most)
        found = krylov_space(problem.backend, given, system.g, system.limit, most)
        late = DeviceKrylov.LOOK_EVERY if isinstance(found, DeviceKrylov) else 0
        assert 0 <= found.size - expected.size <= late or problem.dtype != torch.float64
        assert found.size <= most
        s = found.minimise()
        assert s.dtype == problem.dtype and s.shape == system.g.shape
        _compare(problem.dtype, (found, s), (expected, expected.minimise()), system)
        _is_within(found, s, system, most)
        if isinstance(found, DeviceKrylov):
            assert bool(found.basis[: found.size].isfinite().all()), "a vector that is not finite"
            _is_orthonormal(found)
        nobody = torch.full_like(system.limit, torch.inf)
        idle = krylov_space(problem.backend, given, system.g, nobody, most)
        assert not bool(idle.steps.any()) and idle.size <= 1
        # The identity is solved by one product, as soon as somebody looks.
        solved = krylov_space(problem.backend, torch.clone, system.g, system.limit, 12)
        assert solved.size <= 1 + late


def _system(problem: KernelProblem) -> _System:
    """The samples of each kind in turn."""
    dtype = problem.dtype

    def each(values: tuple[float, ...]) -> Tensor:
        found = list(islice(cycle(values), problem.batch))
        return torch.tensor(found, dtype=torch.float64, device=problem.device)

    g, kind = problem.state(), torch.arange(problem.batch, device=problem.device) % len(SPREADS)
    g[kind == ZERO] = 0
    g[:, -1] = torch.where(kind == NAN, torch.nan, g[:, -1])
    spread = column(each(SPREADS)).to(dtype)
    line = torch.linspace(-1, 1, problem.n, dtype=torch.float64, device=problem.device).to(dtype)
    limit = each(LIMITS).clamp(min=LEAST[dtype]).to(norm(g).dtype) * norm(g)
    limit[kind == ZERO] = 1e-30
    return _System(lambda v: v + spread * (line * v + 0.3 * v.roll(1, 1)), g, limit)


def _aside(problem: KernelProblem, system: _System) -> Callable[[Tensor], Tensor]:
    """Products in memory that begins where that of the problem does, and in strided memory."""

    def places() -> Iterator[Tensor]:
        while True:
            yield problem.state()
            yield problem.state().T.contiguous().T

    turns = places()

    def product(v: Tensor) -> Tensor:
        before, found = v.clone(), next(turns).copy_(system.apply(v))
        assert torch.equal(before, v)
        return found

    return product


def _compare(
    dtype: torch.dtype,
    mine: tuple[KrylovSpace, Tensor],
    theirs: tuple[KrylovSpace, Tensor],
    system: _System,
) -> None:
    """The same steps and minimisers; where rounding decides, steps that differ by one."""
    (found, s), (expected, t) = mine, theirs
    apart = (found.steps - expected.steps).abs()
    assert int(apart.max()) <= (dtype != torch.float64), (found.steps, expected.steps)
    rows = system.g.isfinite().all(1) & (apart == 0)
    error, size = (s - t)[rows].double().norm(dim=1), t[rows].double().norm(dim=1)
    assert bool((error <= APART[dtype] * size).all()), (error, size)
    assert not bool(s[rows & (expected.steps == 0)].any())


def _is_within(found: KrylovSpace, s: Tensor, system: _System, most: int) -> None:
    """The residuals of samples that needed no more products are within their limits."""
    g, limit = system.g.double(), system.limit.double()
    size = (g - system.apply(s.double())).norm(dim=1)
    rows = (found.steps < most) & limit.isfinite() & g.isfinite().all(1)
    rounding = ROUNDING * torch.finfo(s.dtype).eps * g.norm(dim=1)
    assert bool((size <= 1.01 * limit + rounding)[rows].all()), (size, limit)


def _is_orthonormal(found: DeviceKrylov) -> None:
    """The vectors whose products a sample used."""
    vectors, rounding = found.basis.double(), ROUNDING * torch.finfo(found.basis.dtype).eps
    for sample, count in enumerate(found.steps.tolist()):
        rows = vectors[:count, sample]
        apart = rows @ rows.T - torch.eye(count, dtype=rows.dtype, device=rows.device)
        assert not count or apart.abs().max() <= rounding, (sample, apart.abs().max())
