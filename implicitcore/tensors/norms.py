"""Norms of a packed state, one value per sample.

Half-precision states are summed in float32: a 2-norm overflows float16 long before its entries do.
"""

from __future__ import annotations

from collections.abc import Iterable
from functools import cache

import torch
from torch import Tensor

from implicitcore.tensors import host

DOUBLE = (torch.float64, torch.complex128)
"""The dtypes whose norms and small solves are done in float64; those of all others in float32."""


HALF = (torch.float16, torch.bfloat16)
"""The dtypes whose squares are summed in float32."""


def coarsest(dtypes: Iterable[torch.dtype]) -> torch.dtype:
    """That of the largest rounding."""
    found, *others = dtypes
    for dtype in others:  # not by max: a compiler may refuse its key
        if torch.finfo(dtype).eps > torch.finfo(found).eps:
            found = dtype
    return found


def real_dtype(z: Tensor) -> torch.dtype:
    """The real dtype in which norms and small solves of ``z`` are done: float32 at least."""
    return torch.float64 if z.dtype in DOUBLE else torch.float32


def clock_dtype(times: Tensor, z: Tensor) -> torch.dtype:
    """The dtype in which t, dt and the ends of steps are kept: that of the times.

    No less than that of the norms of ``z``, and float64 for whole numbers, where the device has it.
    """
    if times.device.type == "mps" or z.device.type == "mps":
        return real_dtype(z)
    own = times.dtype if times.is_floating_point() else torch.float64
    return torch.promote_types(own, real_dtype(z))


def norm(z: Tensor) -> Tensor:
    """2-norm of each sample, ``[batch, n] -> [batch]``."""
    if z.dtype in HALF:
        return torch.linalg.vector_norm(z, dim=1, dtype=torch.float32)
    return torch.linalg.vector_norm(z, dim=1)


def rms_norm(z: Tensor) -> Tensor:
    """Root mean square of each sample, ``[batch, n] -> [batch]``: the 2-norm over sqrt(n)."""
    return norm(z) / max(z.shape[1], 1) ** 0.5


def all_finite(z: Tensor) -> Tensor:
    """The samples without a NaN or an infinity, ``[batch, n] -> [batch]``.

    A 2-norm overflows where no entry does.
    """
    total = z.sum(1, dtype=real_dtype(z)) if z.dtype in HALF else z.sum(1)
    return total - total == 0


def whole_finite(z: Tensor) -> bool:
    """Whether no entry is a NaN or an infinity, nor the sum of all: one look at the device."""
    narrow = z.dtype in HALF
    total = (z.sum(dtype=torch.float32) if narrow else z.sum()).item()
    return total - total == 0


def fits(size: Tensor, dtype: torch.dtype) -> bool:
    """Whether the 2-norms of a solve can be taken where states are about this size.

    A residual that is smaller by the precision still has a square, and one that is larger by what
    counts as divergence. A look at ``size`` ``[batch]`` on the host; zero and NaN do not fit.
    """
    least, most = bounds(dtype)
    if host.on_host(size):
        return torch.equal(size.clamp(least, most), size)
    low, high = size.aminmax()
    return low.item() >= least and high.item() <= most


def misfits(size: Tensor) -> Tensor:
    """The samples ``[batch]`` for which they can not; zeros and what is not finite are none."""
    return (size.clamp(*bounds(size.dtype)) != size) & (size > 0) & size.isfinite()


@cache
def bounds(dtype: torch.dtype) -> tuple[float, float]:
    """The least and the largest 2-norm of a state that a solve can take; see :func:`fits`."""
    info = torch.finfo(dtype)
    return info.tiny**0.5 / info.eps, info.max**0.5 * 1e-8


def power_of_two(size: Tensor) -> Tensor:
    """The power of two at or below each positive size, to scale by without rounding."""
    return torch.ldexp(torch.ones_like(size), torch.frexp(size).exponent - 1)


def scaled_norm(z: Tensor) -> Tensor:
    """The same as :func:`norm`, also where squares over- or underflow, for more passes over z."""
    size = z.abs().amax(1) if z.shape[1] else z.abs().sum(1)
    unit = torch.where((size > 0) & size.isfinite(), size, 1)
    return norm(z / column(unit).to(z.dtype)) * unit.to(real_dtype(z))


def column(mask: Tensor) -> Tensor:
    """``[batch] -> [batch, 1]``, to choose or scale whole samples of a packed state."""
    return mask.unsqueeze(1)
