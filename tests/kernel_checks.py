"""The kernels of any backend, on any device, against the torch backend in float64.

Every tensor lies in a larger one full of NaNs: what a kernel reads beside it shows in the result,
what it writes beside it is found.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

import implicitcore as ic
from implicitcore.tensors.norms import real_dtype

REFERENCE = ic.TorchBackend()
SIZES = (0, 1, 127, 128, 129, 100_003)
BATCHES = (0, 1, 3, 33)
DTYPES = (torch.float32, torch.float64, torch.bfloat16)
RTOL, ATOL = 1e-3, 1e-6
EPS = torch.finfo(torch.float64).eps
LONG = 1000  # with more entries, fewer variants: they are there for the places where a loop ends


@dataclass(frozen=True)
class Problem:
    """What a kernel is tried on.

    Attributes:
        aligned: every sample begins at a multiple of 16 bytes, where n is one of the entries in
            them; else one entry behind.
        cuts: results are cut off, as an interpreter may do with bfloat16, and not rounded.
    """

    backend: ic.Backend
    device: torch.device | str
    dtype: torch.dtype
    batch: int
    n: int
    aligned: bool = True
    cuts: bool = False

    def state(self, dtype: torch.dtype | None = None) -> Tensor:
        """Contiguous, ``[batch, n]``."""
        margin, entries = 16, self.batch * self.n
        memory = torch.full(
            (entries + 2 * margin,), torch.nan, dtype=dtype or self.dtype, device=self.device
        )
        view = memory[margin + (not self.aligned) :][:entries].view(self.batch, self.n)
        return view.copy_(torch.randn(view.shape))

    def rows(self, depth: int) -> Tensor:
        """Part of a larger history in every dimension, ``[batch, depth, n]``."""
        width = (self.n // 16 + 3) * 16 if self.aligned else self.n + 34
        memory = torch.full(
            (self.batch, depth + 2, width), torch.nan, dtype=self.dtype, device=self.device
        )
        first = -width % 16  # the first row of all is aligned, whatever the others are
        return memory[:, 1 : depth + 1, first : first + self.n].copy_(
            torch.randn(self.batch, depth, self.n)
        )

    def depths(self) -> tuple[int, ...]:
        """Rows of a history: fewer where they would be large."""
        if self.n <= LONG:
            return 1, 5, 8, 9, 16, 17, 40
        return (17,) if self.batch <= 3 else (3,)

    def agree(self, found: Tensor, expected: Tensor, size: Tensor) -> None:
        """What was found is rounded once, and its sums, of terms of that size, in the dtype of
        norms; those expected are in float64."""
        assert found.shape == expected.shape
        assert found.device.type == torch.device(self.device).type
        eps = torch.finfo(found.dtype).eps, torch.finfo(real_dtype(found)).eps
        error, bound = (
            (found.double() - expected).abs(),
            eps[0] / (1 if self.cuts else 2) * expected.abs()
            + (8 * eps[1] + max(64, self.n**0.5) * EPS) * size,
        )
        assert bool((error <= bound).all()), (
            f"{self}: {(error / bound).max().item():.3g} times the bound"
        )


def untouched(view: Tensor) -> None:
    """Nothing was written beside it."""
    memory = view._base
    assert memory is not None
    assert int(memory.isnan().sum()) == memory.numel() - view.numel()


def check_residual(problem: Problem) -> None:
    fz, z, out = (problem.state() for _ in range(3))
    expected = REFERENCE.residual(fz.double(), z.double())
    for found in (problem.backend.residual(fz, z, out), problem.backend.residual(fz, z)):
        problem.agree(found.value, expected.value, fz.double().abs() + z.double().abs())
        assert found.norm.dtype == found.update_norm.dtype == real_dtype(z)
        problem.agree(found.norm, found.value.double().norm(dim=1), expected.norm)
        problem.agree(found.update_norm, expected.update_norm, expected.update_norm)
    assert problem.backend.residual(fz, z, out).value is out
    untouched(out)


def check_inner_products(problem: Problem) -> None:
    for depth in problem.depths():
        history, row = problem.rows(depth), problem.rows(1)
        found, exact = (
            problem.backend.inner_products(history, row),
            (history.double(), row.double()),
        )
        assert found.dtype == problem.dtype
        problem.agree(
            found,
            REFERENCE.inner_products(*exact),
            REFERENCE.inner_products(*(part.abs() for part in exact)),
        )


def check_axpy_history(problem: Problem) -> None:
    for depth in problem.depths():
        history, row = problem.rows(depth), problem.rows(1)
        weights = torch.randn(problem.batch, 1, depth, device=problem.device).to(problem.dtype)
        z, w, past = (part.double() for part in (row, weights, history))
        size = REFERENCE.axpy_history(z.abs(), w.abs(), past.abs(), 0.7)
        expected = REFERENCE.axpy_history(z, w, past, -0.7)
        problem.agree(problem.backend.axpy_history(row, weights, history, -0.7), expected, size)
        problem.agree(
            problem.backend.axpy_history(None, weights, history),
            REFERENCE.axpy_history(None, w, past),
            size / 0.7,
        )
        assert problem.backend.axpy_history(row, weights, history, -0.7, out=row) is row
        problem.agree(row, expected, size)
        untouched(row)


def check_stage_combination(problem: Problem) -> None:
    counts = (1, 2, 6, 13, 16, 17) if problem.n <= LONG else (6,)
    stages = [problem.state() for _ in range(max(counts))]
    z, exact = problem.state(), [stage.double() for stage in stages]
    weights = [(-1.0) ** i / (i + 3) for i in range(len(stages))]
    for dtype in (torch.float32, torch.float64):
        dt = torch.rand(problem.batch, device=problem.device, dtype=dtype)
        for count in counts:
            used, slopes = weights[:count], exact[:count]
            absolute = REFERENCE.stage_combination(
                None,
                dt.double(),
                [slope.abs() for slope in slopes],
                [abs(weight) for weight in used],
            )
            for base in (z, None):
                expected = REFERENCE.stage_combination(
                    None if base is None else base.double(), dt.double(), slopes, used
                )
                found = problem.backend.stage_combination(base, dt, stages[:count], used)
                assert found.dtype == problem.dtype
                rounded = (
                    1
                    if count <= 16
                    else torch.finfo(problem.dtype).eps / torch.finfo(real_dtype(z)).eps
                )
                problem.agree(found, expected, rounded * (absolute + z.double().abs()))


def check_error_norm(problem: Problem) -> None:
    error, z, z_next = (problem.state() for _ in range(3))
    for atol in (ATOL, 0.0):  # without it, what lies beyond a sample is zero over zero
        expected = REFERENCE.error_norm(error.double(), z.double(), z_next.double(), RTOL, atol)
        found = problem.backend.error_norm(error, z, z_next, RTOL, atol)
        assert found.dtype == real_dtype(z)
        problem.agree(found, expected, expected)


def check_not_a_number(problem: Problem) -> None:
    """It reaches its own sample, and no other."""
    if problem.batch != 3 or not problem.n:
        return
    own = torch.arange(problem.batch, device=problem.device) == 1
    for place in range(3):
        tensors = [problem.state() for _ in range(3)]
        tensors[place][1, -1] = torch.nan
        error, z, z_next = tensors
        found = problem.backend.error_norm(error, z, z_next, RTOL, ATOL)
        assert torch.equal(found.isnan(), own)
        assert torch.equal(
            problem.backend.residual(tensors[place], problem.state()).norm.isnan(), own
        )


CHECKS: dict[str, Callable[[Problem], None]] = {
    "residual": check_residual,
    "inner_products": check_inner_products,
    "axpy_history": check_axpy_history,
    "stage_combination": check_stage_combination,
    "error_norm": check_error_norm,
    "not_a_number": check_not_a_number,
}


def check_kernels(
    backend: ic.Backend, device: torch.device | str, names: tuple[str, ...] = tuple(CHECKS)
) -> None:
    """Every kernel, dtype and shape: all that a machine with the device has to run."""
    for name in names:
        for dtype in DTYPES:
            for problem in problems(backend, device, dtype):
                CHECKS[name](problem)


def problems(
    backend: ic.Backend,
    device: torch.device | str,
    dtype: torch.dtype,
    sizes: tuple[int, ...] = SIZES,
) -> list[Problem]:
    """Every batch, with each sample aligned and not; the largest only unaligned."""
    every = [
        Problem(backend, device, dtype, batch, n, aligned)
        for n in sizes
        for batch in BATCHES
        for aligned in (True, False)
    ]
    return [
        problem
        for problem in every
        if problem.n <= LONG or problem.batch <= 3 or not problem.aligned
    ]
