"""What an author of parts needs beside :mod:`implicitcore`: base classes, options, helpers.

The shipped plugins and what ``implicitcore new-plugin`` writes import from ``implicitcore``, from
here and from :mod:`implicitcore.testing`, and from nothing deeper. The names, each with the module
that defines and documents it, are in the stub beside this file. As those of ``implicitcore`` they
are imported when they are first used, so that a plugin's registration stays light.
"""

from __future__ import annotations

from implicitcore.lazy import attach_stub

__getattr__, __dir__, __all__ = attach_stub(__name__, __file__)  # pyright: ignore[reportUnsupportedDunderAll]
