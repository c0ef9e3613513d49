"""The option types that parts share: numbers with their bounds; every one is finite.

``tol`` is relative, per sample, in the 2-norm; ``atol`` beside it is absolute. What ``tol`` is
relative to is said by the system (:meth:`implicitcore.System.scale`): ``|f(z)|`` for a fixed point,
``max(1, |g(z0)|)`` for a root, ``|v|`` for the linear system of a backward pass.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Annotated, Any, Literal

from annotated_types import Len
from pydantic import BeforeValidator, Field
from pydantic_core import PydanticCustomError
from torch import Tensor

from implicitcore.options.annotations import OtherWords

Tolerance = Annotated[float, Field(ge=0)]
"""At least 0; 0 never stops."""

Positive = Annotated[float, Field(gt=0)]
"""More than 0."""

Fraction = Annotated[float, Field(gt=0, le=1)]
"""More than 0, at most 1."""

ProperFraction = Annotated[float, Field(gt=0, lt=1)]
"""More than 0, less than 1."""

Share = Annotated[float, Field(ge=0, lt=1)]
"""At least 0, less than 1."""

Count = Annotated[int, Field(ge=1)]
"""A whole number of at least 1."""

Whole = Annotated[int, Field(ge=0)]
"""A whole number, 0 included."""

HistoryDtype = Literal["bfloat16"]
"""What a history is kept in, where that is not the dtype of the state."""

Controller = Literal["i", "pi", "pid"] | Annotated[tuple[float, ...], Len(1, 3)]
"""The step-size controller: integral, proportional-integral, or with a derivative term; or the
exponents of the last one to three errors."""

ErrorNorm = Callable[[Tensor], Tensor]
"""Of the errors over what is allowed, ``[batch, n]``, at least 0: one number a sample, [batch]."""

SharedStep = OtherWords(
    ("step", "steps", "step_size", "step_control", "shared", "shared_step", "shared_steps"),
    "one step size for all samples: norm=implicitcore.shared_error",
)
"""What is said to who asks for one step size for the batch."""

OnFailure = Literal["raise", "warn", "mask", "ignore"]
"""What becomes of samples that do not converge: see :class:`implicitcore.ImplicitLayer`."""

Spec = str | Mapping[str, Any]
"""What stands for a part: the name of a registered one, or a mapping with ``name`` and options."""


def read_shape(value: Any) -> tuple[Any, ...] | dict[str, Any]:
    """The shape of one sample's state, with tuples for lists.

    Arguments:
        value: sizes, for a state that is one tensor; for another pytree a tuple or a dict of
            shapes.

    Raises:
        ValueError: it is neither.

    >>> read_shape([[24, 16, 16], [24, 8, 8]])
    ((24, 16, 16), (24, 8, 8))
    """
    if isinstance(value, Mapping):
        return {str(key): read_shape(item) for key, item in value.items()}
    if not isinstance(value, tuple | list):
        raise PydanticCustomError(
            "shape", "Input should be sizes, or a tuple or dict of shapes, as (64,)"
        )
    if any(isinstance(item, tuple | list | Mapping) for item in value):
        return tuple(map(read_shape, value))
    if any(isinstance(size, bool) or not isinstance(size, int) or size < 0 for size in value):
        raise PydanticCustomError("shape", "Input should be sizes, whole numbers of at least 0")
    return tuple(map(int, value))


Shape = Annotated[tuple[Any, ...] | dict[str, Any], BeforeValidator(read_shape)]
"""The shape of one sample's state, without the batch: sizes, or a tuple or dict of shapes."""
