"""What a test needs and may not find: a compiler, an optional package.

The test is skipped with the reason; where ``IMPLICITCORE_TESTS_NEED_EXTRAS=1``, as in continuous
integration, it fails.
"""

from __future__ import annotations

import os
import unittest
from importlib.util import find_spec
from typing import NoReturn

STRICT = "IMPLICITCORE_TESTS_NEED_EXTRAS"
"""The environment variable; 1 makes everything that is missing a failure."""


def missing(what: str) -> NoReturn:
    """Skip the test, or fail it where nothing may be missing.

    Raises:
        unittest.SkipTest: pytest and unittest count the test as skipped.
        AssertionError: nothing may be missing.
    """
    if os.environ.get(STRICT) == "1":
        raise AssertionError(f"{what} is missing, and {STRICT}=1 says that it must be here")
    raise unittest.SkipTest(f"{what} is missing")


def needs(package: str) -> None:
    """Skip the test, or fail it, where a package is not installed."""
    if find_spec(package) is None:
        missing(f"the package {package}")
