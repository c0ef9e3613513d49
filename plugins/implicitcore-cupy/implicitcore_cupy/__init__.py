"""The inner loops' fused CUDA kernels, which CuPy compiles and launches.

They run on torch's tensors and streams.

The backend is imported when it is first used: the plugin itself stays light, for it is loaded
wherever a part is looked up.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from implicitcore.lazy import attributes

if TYPE_CHECKING:
    from implicitcore_cupy.backend import CupyBackend as CupyBackend

__all__ = ["CupyBackend"]  # pyright: ignore[reportUnsupportedDunderAll]

__getattr__ = attributes(__name__, {"CupyBackend": "backend"})
