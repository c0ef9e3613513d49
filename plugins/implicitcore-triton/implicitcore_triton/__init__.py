"""The kernels of the solvers' inner loops in Triton.

The backend is imported when it is first used, and Triton when its first kernel runs.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from implicitcore.lazy import attributes

if TYPE_CHECKING:
    from implicitcore_triton.backend import TritonBackend as TritonBackend

__all__ = ["TritonBackend"]  # pyright: ignore[reportUnsupportedDunderAll]

__getattr__ = attributes(__name__, {"TritonBackend": "backend"})
