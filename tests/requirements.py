"""What a test needs and may not find: a compiler, a package that make install-dev adds."""

from __future__ import annotations

import os
from importlib.util import find_spec
from typing import NoReturn

import pytest

STRICT = "IMPLICITCORE_TESTS_NEED_EXTRAS"
"""Set to 1 where all of it must be there, as in .ci/run: what is missing is a failure then."""


def missing(what: str) -> NoReturn:
    """Skip the test with the reason, or fail where nothing may be missing."""
    if os.environ.get(STRICT) == "1":
        pytest.fail(f"{what} is missing, and {STRICT}=1 says that it must be here", pytrace=False)
    pytest.skip(f"{what} is missing")


def needs(package: str) -> None:
    """Skip (or fail) where a package is not installed."""
    if find_spec(package) is None:
        missing(f"the package {package}")
