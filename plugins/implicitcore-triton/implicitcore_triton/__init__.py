"""The kernels of the solvers' inner loops in Triton.

The backend is imported when it is first used, and Triton when its first kernel runs.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from implicitcore_triton.backend import TritonBackend as TritonBackend

__all__ = ["TritonBackend"]  # pyright: ignore[reportUnsupportedDunderAll]


def __getattr__(name: str) -> Any:
    if name != "TritonBackend":
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from implicitcore_triton.backend import TritonBackend

    return TritonBackend
