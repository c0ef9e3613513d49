"""Whole iterations of the root solvers, and the kernels of the inner loops, in C++ for CPUs.

The backend is imported when it is first used, and compiled when its first kernel runs.
"""

from __future__ import annotations

from implicitcore.extend import attach_stub

__getattr__, __dir__, __all__ = attach_stub(__name__, __file__)  # pyright: ignore[reportUnsupportedDunderAll]
