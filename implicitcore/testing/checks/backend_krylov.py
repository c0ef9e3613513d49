"""What every backend promises of the Krylov spaces that it makes."""

from __future__ import annotations

import torch
from torch import Tensor

from implicitcore.backends.base import Backend
from implicitcore.backends.krylov_space import KrylovSpace
from implicitcore.backends.torch import TorchBackend
from implicitcore.root_solvers.krylov import krylov_space
from implicitcore.testing.check import contract
from implicitcore.testing.expect import expect, expect_close
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
            for what, mine, theirs in (
                ("products", found.size, expected.size),
                ("steps of each sample", found.steps.tolist(), expected.steps.tolist()),
            ):
                expect(mine == theirs, f"{did} {what}", mine, theirs)
            s, known = found.minimise(), torch.arange(len(g), device=device) != NAN
            expect_close(s[known], expected.minimise()[known], f"{did} minimisers", bound)
            _is_within(found, s, (a, g, limit), most)


def _space(backend: Backend, a: Tensor, g: Tensor, limit: Tensor, most: int) -> KrylovSpace:
    return krylov_space(backend, lambda v: (a @ v.unsqueeze(2)).squeeze(2), g, limit, most)


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
