"""What every backend promises."""

from __future__ import annotations

import pytest

from implicitcore.testing import parametrize_with_checks
from implicitcore_cpp import CppBackend


@pytest.mark.usefixtures("cpp")
@parametrize_with_checks([CppBackend()])
def test_the_contract(part, check):
    check(part)
