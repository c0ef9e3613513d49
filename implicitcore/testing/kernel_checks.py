"""Strict checks of fused kernels, on any device, against the torch backend in float64.

The contract of a backend (``checks_for("backend")``) holds for every backend. These checks ask more
of kernels that are written by hand: a result is rounded once, at every size at which a loop over
blocks ends, at aligned and unaligned addresses, and no memory beside a tensor is read or written.
Each tensor is therefore a view into a larger one full of NaNs: a read beside it shows in the
result, and a write beside it is found.

.. code-block:: python

    @pytest.mark.parametrize("check", CHECKS)
    def test_kernel(check):
        CHECKS[check](KernelProblem(MyBackend(), "cuda", torch.float32, batch=3, n=129))
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from implicitcore.backends.base import Backend
from implicitcore.backends.torch import TorchBackend
from implicitcore.tensors.norms import real_dtype

REFERENCE = TorchBackend()
SIZES = (0, 1, 127, 128, 129, 100_003)
BATCHES = (0, 1, 3, 33)
DTYPES = (torch.float32, torch.float64, torch.bfloat16)
RTOL, ATOL = 1e-3, 1e-6
EPS = torch.finfo(torch.float64).eps
LONG = 1000  # above it fewer variants: those are for the ends of loops


@dataclass(frozen=True)
class KernelProblem:
    """The arguments of a kernel.

    Attributes:
        backend: whose kernel is checked.
        device: of the tensors.
        dtype: of the state.
        batch: samples.
        n: entries of a sample.
        aligned: the first entry lies at a multiple of 16 bytes; else one entry behind it.
        truncates: results are truncated to the dtype (as an interpreter may do in bfloat16) and not
            rounded.
    """

    backend: Backend
    device: torch.device | str
    dtype: torch.dtype
    batch: int
    n: int
    aligned: bool = True
    truncates: bool = False

    def state(self, dtype: torch.dtype | None = None) -> Tensor:
        """Contiguous, ``[batch, n]``."""
        margin, entries = 16, self.batch * self.n
        memory = torch.full(
            (entries + 2 * margin,), torch.nan, dtype=dtype or self.dtype, device=self.device
        )
        view = memory[margin + (not self.aligned) :][:entries].view(self.batch, self.n)
        return view.copy_(torch.randn(view.shape))

    def rows(self, depth: int) -> Tensor:
        """A view into a larger history in every dimension, ``[batch, depth, n]``."""
        width = (self.n // 16 + 3) * 16 if self.aligned else self.n + 34
        memory = torch.full(
            (self.batch, depth + 2, width), torch.nan, dtype=self.dtype, device=self.device
        )
        first = -width % 16  # aligns the first row
        return memory[:, 1 : depth + 1, first : first + self.n].copy_(
            torch.randn(self.batch, depth, self.n)
        )

    def depths(self) -> tuple[int, ...]:
        """The depths of histories, fewer for long states."""
        if self.n <= LONG:
            return 1, 5, 8, 9, 16, 17, 40
        return (17,) if self.batch <= 3 else (3,)

    def agree(self, found: Tensor, expected: Tensor, size: Tensor) -> None:
        """Compare a result with the float64 reference.

        Arguments:
            found: rounded once, from sums in the dtype of norms.
            expected: float64.
            size: the sum of the absolute values of its terms, float64.

        Raises:
            AssertionError: the error is larger than these roundings allow.
        """
        assert found.shape == expected.shape
        assert found.device.type == torch.device(self.device).type
        eps = torch.finfo(found.dtype).eps, torch.finfo(real_dtype(found)).eps
        error = (found.double() - expected).abs()
        result_rounding = eps[0] / (1 if self.truncates else 2) * expected.abs()
        bound = result_rounding + (8 * eps[1] + max(64, self.n**0.5) * EPS) * size
        assert bool((error <= bound).all()), (
            f"{self}: {(error / bound).max().item():.3g} times the bound"
        )


def check_margins(view: Tensor) -> None:
    """Nothing was written beside the view."""
    memory = view._base
    assert memory is not None
    assert int(memory.isnan().sum()) == memory.numel() - view.numel()


def check_residual(problem: KernelProblem) -> None:
    """``residual`` and both norms, with and without ``out``."""
    fz, z, out = (problem.state() for _ in range(3))
    expected = REFERENCE.residual(fz.double(), z.double())
    for found in (problem.backend.residual(fz, z, out), problem.backend.residual(fz, z)):
        problem.agree(found.value, expected.value, fz.double().abs() + z.double().abs())
        assert found.norm.dtype == found.update_norm.dtype == real_dtype(z)
        problem.agree(found.norm, found.value.double().norm(dim=1), expected.norm)
        problem.agree(found.update_norm, expected.update_norm, expected.update_norm)
    assert problem.backend.residual(fz, z, out).value is out
    check_margins(out)


def check_inner_products(problem: KernelProblem) -> None:
    """``inner_products`` at every depth."""
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


def check_axpy_history(problem: KernelProblem) -> None:
    """``axpy_history`` with a row, without one, and in place."""
    for depth in problem.depths():
        history, row = problem.rows(depth), problem.rows(1)
        weights = torch.randn(problem.batch, 1, depth, device=problem.device).to(problem.dtype)
        row64, weights64, history64 = row.double(), weights.double(), history.double()
        size = REFERENCE.axpy_history(row64.abs(), weights64.abs(), history64.abs(), 0.7)
        expected = REFERENCE.axpy_history(row64, weights64, history64, -0.7)
        problem.agree(problem.backend.axpy_history(row, weights, history, -0.7), expected, size)
        problem.agree(
            problem.backend.axpy_history(None, weights, history),
            REFERENCE.axpy_history(None, weights64, history64),
            size / 0.7,
        )
        assert problem.backend.axpy_history(row, weights, history, -0.7, out=row) is row
        problem.agree(row, expected, size)
        check_margins(row)


def check_stage_combination(problem: KernelProblem) -> None:
    """``stage_combination`` for up to 17 stages, with dt in both dtypes."""
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
            # With more than 16 stages a partial sum is rounded to the dtype too.
            partial = torch.finfo(problem.dtype).eps / torch.finfo(real_dtype(z)).eps
            size = (1 if count <= 16 else partial) * (absolute + z.double().abs())
            for base in (z, None):
                exact_base = None if base is None else base.double()
                expected = REFERENCE.stage_combination(exact_base, dt.double(), slopes, used)
                found = problem.backend.stage_combination(base, dt, stages[:count], used)
                assert found.dtype == problem.dtype
                problem.agree(found, expected, size)
        of_none = dt, stages[:1], [0.0]
        assert torch.equal(problem.backend.stage_combination(z, *of_none), z)
        assert not problem.backend.stage_combination(None, *of_none).any()


def check_error_norm(problem: KernelProblem) -> None:
    """``error_norm`` with and without atol."""
    error, z, z_next = (problem.state() for _ in range(3))
    for atol in (ATOL, 0.0):  # 0: entries beyond a sample would be 0 / 0
        expected = REFERENCE.error_norm(error.double(), z.double(), z_next.double(), RTOL, atol)
        found = problem.backend.error_norm(error, z, z_next, RTOL, atol)
        assert found.dtype == real_dtype(z)
        problem.agree(found, expected, expected)


def check_nan_isolation(problem: KernelProblem) -> None:
    """A NaN in one sample leaves the others as they are."""
    if problem.batch != 3 or not problem.n:
        return
    own = torch.arange(problem.batch, device=problem.device) == 1
    for place in range(3):
        error, z, z_next = tensors = [problem.state() for _ in range(3)]
        tensors[place][1, -1] = torch.nan
        assert torch.equal(problem.backend.error_norm(error, z, z_next, RTOL, ATOL).isnan(), own)
        assert torch.equal(
            problem.backend.residual(tensors[place], problem.state()).norm.isnan(), own
        )


CHECKS: dict[str, Callable[[KernelProblem], None]] = {
    "residual": check_residual,
    "inner_products": check_inner_products,
    "axpy_history": check_axpy_history,
    "stage_combination": check_stage_combination,
    "error_norm": check_error_norm,
    "nan_isolation": check_nan_isolation,
}


def check_kernels(
    backend: Backend, device: torch.device | str, names: tuple[str, ...] = tuple(CHECKS)
) -> None:
    """Every kernel in every dtype and shape."""
    for name in names:
        for dtype in DTYPES:
            for problem in kernel_problems(backend, device, dtype):
                CHECKS[name](problem)


def kernel_problems(
    backend: Backend,
    device: torch.device | str,
    dtype: torch.dtype,
    sizes: tuple[int, ...] = SIZES,
) -> list[KernelProblem]:
    """Every size and batch, aligned and not; the largest only unaligned."""
    every = [
        KernelProblem(backend, device, dtype, batch, n, aligned)
        for n in sizes
        for batch in BATCHES
        for aligned in (True, False)
    ]
    return [
        problem
        for problem in every
        if problem.n <= LONG or problem.batch <= 3 or not problem.aligned
    ]
