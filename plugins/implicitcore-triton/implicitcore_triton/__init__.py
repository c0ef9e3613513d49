"""The kernels of the solvers' inner loops in Triton.

The backend is imported when it is first used, and Triton when its first kernel runs.
"""

from __future__ import annotations

from implicitcore.extend import attach_stub

__getattr__, __dir__, __all__ = attach_stub(__name__, __file__)  # pyright: ignore[reportUnsupportedDunderAll]
