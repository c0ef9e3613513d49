"""Train, compare and reproduce implicit layers on real images.

The commands ``train``, ``compare`` and ``evaluate``.

An author of data sets, models and tables imports from here; a name is imported when it is first
used, so that the commands stay light.
"""

from __future__ import annotations

from implicitcore.extend import attach_stub

__getattr__, __dir__, __all__ = attach_stub(__name__, __file__)  # pyright: ignore[reportUnsupportedDunderAll]
