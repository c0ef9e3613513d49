"""The option types that parts share: numbers with their bounds; every one is finite.

``tol`` is relative, per sample, in the 2-norm; ``atol`` beside it is absolute. What ``tol`` is
relative to is said by the system (:meth:`implicitcore.System.scale`): ``|f(z)|`` for a fixed point,
``max(1, |g(z0)|)`` for a root, ``|v|`` for the linear system of a backward pass.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Literal

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

Controller = Literal["i", "pi", "pid"]
"""The step-size controller: integral, proportional-integral, or with a derivative term."""

OnFailure = Literal["raise", "warn", "mask", "ignore"]
"""What becomes of samples that do not converge: see :class:`implicitcore.ImplicitLayer`."""

Spec = str | Mapping[str, Any]
"""What stands for a part: the name of a registered one, or a mapping with ``name`` and options."""
