"""What every backend promises, in Triton's interpreter."""

from __future__ import annotations

from implicitcore.testing import parametrize_with_checks
from implicitcore_triton import TritonBackend


@parametrize_with_checks([TritonBackend(interpret=True)])
def test_the_contract(part, check):
    check(part)
