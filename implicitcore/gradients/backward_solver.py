"""The solver of a backward pass that was given none: as exact as the forward solve deserves."""

from __future__ import annotations

from functools import lru_cache

import torch

from implicitcore.root_solvers.gmres import GMRES
from implicitcore.tensors.norms import HALF

# The forward solve leaves the gradient an error that no backward solve takes back. At this share of
# its tolerance the backward one adds little: over seven cells of the benchmarks and tolerances from
# 1e-2 to 1e-8 the error is within 5 % of what an exact backward solve leaves in 82 of 84
# solves, and 1.4 times that in two; at the forward's own tolerance it is up to 4.5 times. A fixed
# 1e-5 costs half as many products again at 1e-2, and is 100 to 2000 times too inexact at 1e-8.
SHARE = 0.1
# A forward solve that asks for less than a digit stops where it is, and u = 0 would meet the share
# of that: a gradient of zero.
MOST = 0.1
# Where the forward solver has no relative tolerance.
UNKNOWN = 1e-5
# The least tolerance, in units of rounding: the residual of u is rounded like u, which is longer
# than v. In float32 GMRES met 8 units for a J of radius 0.97 and failed for 0.99, and met 32 there.
# The half precisions are summed in float32: 8 units were met up to 0.99, and less error is left.
UNITS, HALF_UNITS = 32, 8


@lru_cache(maxsize=256)  # a solve at a root is as short as the checks of the options
def following(tol: float | None, dtype: torch.dtype) -> GMRES:
    """GMRES to a tenth of the forward solver's tolerance, and no further than rounding lets it.

    A tenth at most: a gradient is one, however early the forward solve may stop.

    Arguments:
        tol: of the forward solver; None where it has none.
        dtype: of the state.
    """
    wanted = UNKNOWN if tol is None else min(SHARE * tol, MOST)
    units = HALF_UNITS if dtype in HALF else UNITS
    return GMRES(tol=max(wanted, units * torch.finfo(dtype).eps))
