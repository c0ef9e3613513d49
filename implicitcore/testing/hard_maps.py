"""Random maps, harmless and hard, for those who do whole iterations of a root solver.

Of ``PROBLEMS`` some contract at unlike rates, some expand, have no fixed point, overflow, are not
finite or tiny, or start at the root. Each of ``SOLVERS`` is to stop every sample of each where it
does with the torch backend: :func:`same_stops` compares.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor

from implicitcore.backends.base import Backend
from implicitcore.functional import find_root, fixed_point
from implicitcore.root_solvers.anderson import Anderson
from implicitcore.root_solvers.base import RootSolver
from implicitcore.root_solvers.broyden import Broyden
from implicitcore.root_solvers.picard import Picard
from implicitcore.solution import Solution

BATCH, N = 9, 17
NAN_ROW = 3


@dataclass(frozen=True)
class Problem:
    """f(z, x) = z.

    Attributes:
        f: the map, of any of its samples.
        x: the shift and the rate of each sample, side by side, ``[batch, n + 1]``: the state has
            as many entries, of which f keeps the last at zero.
    """

    f: Callable[[Any, Any], Any]
    x: Tensor

    def sample(self, row: int) -> Problem:
        """One sample alone."""
        return Problem(self.f, self.x[row : row + 1])

    @torch.no_grad()
    def solve(
        self,
        solver: RootSolver,
        backend: Backend | None,
        kind: Literal["fixed_point", "find_root"] = "fixed_point",
    ) -> Solution:
        """From zero, without a graph.

        As a root of f(z) - z the residual comes from the dynamics, and not as a difference.
        """
        f, call = self.f, fixed_point
        if kind == "find_root":
            f, call = (lambda z, x: self.f(z, x) - z), find_root
        start = torch.zeros_like(self.x)
        return call(f, start, self.x, solver=solver, backend=backend, on_failure="ignore")


def same_stops(found: Solution, expected: Solution, stable: bool) -> None:
    """Compare a solve in float64 with that of the torch backend.

    Arguments:
        found: with another backend.
        expected: with the torch backend.
        stable: the map does not make more of rounding, and has a root; else only the samples that
            converged are compared, less closely.

    Raises:
        AssertionError: a sample stopped elsewhere, or at another step.
    """
    assert found.status.tolist() == expected.status.tolist()
    assert found.failed == (not bool(found.converged.all()))  # what the result says of it unasked
    assert found.steps.tolist() == expected.steps.tolist()
    bound, rows = (1e-12, slice(None)) if stable else (1e-7, expected.converged)
    assert torch.equal(found.z.isfinite(), expected.z.isfinite())
    z, best = found.z[rows].nan_to_num(), expected.z[rows].nan_to_num()
    assert bool(((z - best).abs() <= bound * best.abs().clamp(min=1)).all())
    assert torch.allclose(
        found.residual[rows], expected.residual[rows], rtol=1e-3, atol=bound, equal_nan=True
    )


def _draw(dtype: torch.dtype, batch: int, n: int) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(1)
    weight = torch.randn(N, N, generator=generator, dtype=torch.float64)
    weight /= torch.linalg.matrix_norm(weight, 2)  # a map of more entries does without one
    shift = torch.randn(batch, n, generator=generator, dtype=torch.float64)
    rates = torch.linspace(0.1, 0.98, batch, dtype=torch.float64)[:, None]
    return weight.to(dtype), torch.cat((shift, rates), 1).to(dtype)


def _problem(
    function: Callable[[Tensor, Tensor, Tensor, Tensor], Tensor], batch: int = BATCH, n: int = N
) -> Callable[[torch.dtype], Problem]:
    """Of function(W, z, shift, rate); products are sums, so that a sample has its bits alone."""

    def of(dtype: torch.dtype) -> Problem:
        weight, x = _draw(dtype, batch, n)

        def f(z: Tensor, x: Tensor) -> Tensor:
            value = function(weight, z[:, :-1], x[:, :-1], x[:, -1:])
            return torch.nn.functional.pad(value, (0, 1))

        return Problem(f, x)

    return of


def _times(weight: Tensor, z: Tensor) -> Tensor:
    return (z[:, :, None] * weight).sum(1)


def _nan(weight: Tensor, z: Tensor, shift: Tensor, rate: Tensor) -> Tensor:
    bad = (torch.arange(len(z)) == NAN_ROW)[:, None]
    return torch.where(bad, torch.nan, torch.tanh(0.9 * _times(weight, z) + shift))


PROBLEMS = {
    "contraction": _problem(lambda w, z, b, c: torch.tanh(0.9 * _times(w, z) + b)),
    "rates": _problem(lambda w, z, b, c: torch.tanh(c * _times(w, z) + b)),
    "linear": _problem(lambda w, z, b, c: c * _times((w + w.T) / 2, z) + b),
    "expanding": _problem(lambda w, z, b, c: 1.5 * (1 + c) * _times(w, z) + b),
    "some expanding": _problem(lambda w, z, b, c: 2 * c * _times((w + w.T) / 2, z) + b),
    "no fixed point": _problem(lambda w, z, b, c: z + b),
    "runaway": _problem(lambda w, z, b, c: 1.2 * z + b),
    "nan": _problem(_nan),
    "overflow": _problem(lambda w, z, b, c: torch.exp(8 * c * z) + b),
    "rough": _problem(lambda w, z, b, c: torch.sin(6 * c * _times(w, z)) + b),
    "tiny": _problem(lambda w, z, b, c: 0.5 * z + 1e-200 * b),
    "at the root": _problem(lambda w, z, b, c: 0 * z),
    "wide": _problem(lambda w, z, b, c: torch.tanh(c * z.roll(1, 1) + b), 8, 9000),
}
UNSTABLE = ("expanding", "some expanding", "overflow", "rough", "no fixed point")

SOLVERS = [
    *(kind(tol=tol, max_steps=40) for kind in (Picard, Anderson) for tol in (1e-3, 1e-10)),
    Picard(tol=1e-6, damping=0.6),
    Picard(tol=1e-2, min_steps=6),
    Anderson(tol=1e-6, depth=2),
    Anderson(tol=1e-6, damping=0.4),
    Anderson(tol=1e-6, atol=1e-3, regularization=1e-6),
    Broyden(tol=1e-3, max_steps=40),
    Broyden(tol=1e-10, max_steps=40),
    Broyden(tol=1e-6, memory=4, min_steps=7, max_steps=40),
]
