"""The option types that solvers share: tolerances and counts, with their bounds.

``tol`` is relative, per sample, in the 2-norm; ``atol`` beside it is absolute. What ``tol`` is
relative to is said by the system (:meth:`implicitcore.System.scale`): ``|f(z)|`` for a fixed point,
``max(1, |g(z0)|)`` for a root, ``|v|`` for the linear system of a backward pass.
"""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

Tolerance = Annotated[float, Field(ge=0)]
"""At least 0; 0 never stops."""

Positive = Annotated[float, Field(gt=0)]
"""More than 0."""

Fraction = Annotated[float, Field(gt=0, le=1)]
"""More than 0, at most 1."""

Count = Annotated[int, Field(ge=1)]
"""A whole number of at least 1."""

Whole = Annotated[int, Field(ge=0)]
"""A whole number, 0 included."""
