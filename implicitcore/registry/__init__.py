"""The parts by name, and the plugins that register them."""

from __future__ import annotations

from implicitcore.lazy import attach_stub

__getattr__, __dir__, __all__ = attach_stub(__name__, __file__)  # pyright: ignore[reportUnsupportedDunderAll]
