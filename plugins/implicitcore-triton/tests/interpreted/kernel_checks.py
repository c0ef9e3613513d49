"""Each kernel against the torch backend: entry by entry, relative to the sum of the magnitudes of what is added up."""

from __future__ import annotations

import torch
from torch import Tensor

import implicitcore as ic
from implicitcore_triton import Triton

REFERENCE = ic.TorchBackend()
DTYPES = {torch.float32: 2e-6, torch.float64: 4e-15, torch.bfloat16: 2**-6}
"""Rounding that is allowed: of the reference too, which rounds each intermediate bfloat16, and of the interpreter, which cuts it off."""
RTOL, ATOL = 1e-3, 1e-6
BACKEND = Triton(interpret=True)


def draw(*shape: int, dtype: torch.dtype, aligned: bool = True) -> Tensor:
    """Contiguous; unaligned, it begins one entry after a multiple of 16 bytes."""
    entries = torch.randn(torch.Size(shape).numel() + 1).to(dtype)
    return entries[:-1].view(shape) if aligned else entries[1:].view(shape)


def lines(batch: int, depth: int, n: int, dtype: torch.dtype) -> Tensor:
    """A history that is a part of a larger one, in every dimension."""
    return draw(batch, depth + 2, 2 * n + 3, dtype=dtype)[:, 1:-1, n + 1 : 2 * n + 1]


def agree(found: Tensor, expected: Tensor, size: Tensor, added: int = 1) -> None:
    """Both sum up so many numbers, whose roundings add up as a random walk."""
    assert found.dtype == expected.dtype
    assert found.shape == expected.shape
    rounding = DTYPES[found.dtype] * size.double() * max(1.0, (added / 1000) ** 0.5)
    assert bool(((found.double() - expected.double()).abs() <= rounding).all())


def check_residual(batch: int, n: int, dtype: torch.dtype, aligned: bool) -> None:
    fz, z, out = (draw(batch, n, dtype=dtype, aligned=aligned) for _ in range(3))
    found, expected = BACKEND.residual(fz, z, out), REFERENCE.residual(fz, z)
    assert found.value is out
    agree(out, expected.value, fz.abs() + z.abs())
    agree(found.norm, out.to(found.norm.dtype).norm(dim=1), expected.norm, n)
    agree(found.update_norm, expected.update_norm, expected.update_norm, n)


def check_gram_row(batch: int, n: int, dtype: torch.dtype, depth: int) -> None:
    history, row = lines(batch, depth, n, dtype), lines(batch, 1, n, dtype)
    size = REFERENCE.gram_row(history.abs(), row.abs())
    agree(BACKEND.gram_row(history, row), REFERENCE.gram_row(history, row), size, n)


def check_mix(batch: int, n: int, dtype: torch.dtype, depth: int) -> None:
    history, weights, row, scale = lines(batch, depth, n, dtype), draw(batch, 1, depth, dtype=dtype), lines(batch, 1, n, dtype), -0.3
    size = REFERENCE.mix(row.abs(), weights.abs(), history.abs(), -scale)
    expected = REFERENCE.mix(row, weights, history, scale)
    agree(BACKEND.mix(row, weights, history, scale), expected, size)
    agree(BACKEND.mix(None, weights, history, scale), REFERENCE.mix(None, weights, history, scale), size)
    found = BACKEND.mix(row, weights, history, scale, out=row)
    assert found is row
    agree(row, expected, size)


def check_combine(batch: int, n: int, dtype: torch.dtype, count: int, aligned: bool) -> None:
    z, *stages = (draw(batch, n, dtype=dtype, aligned=aligned) for _ in range(count + 1))
    dt = torch.rand(batch, dtype=torch.float64 if dtype == torch.float64 else torch.float32)
    weights = [(-1) ** i / (i + 3) for i in range(count)]
    magnitudes = [stage.abs() for stage in stages], [abs(weight) for weight in weights]
    for base in (z, None):
        size = REFERENCE.combine(None if base is None else base.abs(), dt, *magnitudes)
        agree(BACKEND.combine(base, dt, stages, weights), REFERENCE.combine(base, dt, stages, weights), size)


def check_error_norm(batch: int, n: int, dtype: torch.dtype, aligned: bool) -> None:
    z, z_next, error = (draw(batch, n, dtype=dtype, aligned=aligned) for _ in range(3))
    for atol in (ATOL, 0.0):  # without it, what lies beyond a sample is zero over zero
        expected = REFERENCE.error_norm(error, z, z_next, RTOL, atol)
        agree(BACKEND.error_norm(error, z, z_next, RTOL, atol), expected, expected, n)


def check_not_a_number(n: int) -> None:
    """It reaches its own sample, and no other."""
    for place in range(3):
        tensors = [draw(3, n, dtype=torch.float64) for _ in range(3)]
        tensors[place][1, -1] = torch.nan
        assert BACKEND.error_norm(*tensors, RTOL, ATOL).isnan().tolist() == [False, True, False]
    z = draw(3, n, dtype=torch.float64)
    fz = z.clone()
    fz[1, 0] = torch.nan
    assert BACKEND.residual(fz, z).norm.isnan().tolist() == [False, True, False]
