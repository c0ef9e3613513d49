"""The inner loops' fused CUDA kernels, compiled and launched by CuPy on torch's tensors and streams.

The backend is imported when it is first used: the plugin itself stays light, for it is loaded wherever a part is looked up.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from implicitcore_cupy.backend import CupyBackend as CupyBackend

__all__ = ["CupyBackend"]  # pyright: ignore[reportUnsupportedDunderAll]


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from implicitcore_cupy.backend import CupyBackend

    return CupyBackend
