"""Published implicit layers for implicitcore, each a module around the user's cell.

A layer is imported when it is first used: the plugin itself stays light, for it is loaded wherever
a part is looked up.
"""

from __future__ import annotations

from implicitcore.extend import attach_stub

__getattr__, __dir__, __all__ = attach_stub(__name__, __file__)  # pyright: ignore[reportUnsupportedDunderAll]
