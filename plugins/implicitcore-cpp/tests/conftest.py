"""Where the kernels are not built and cannot be, the tests are skipped with the reason."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from implicitcore_cpp import CppBackend

sys.path.insert(0, str(Path(__file__).parent))  # for cpp_problems.py, which the tests share


@pytest.fixture
def cpp() -> CppBackend:
    """The backend, built."""
    backend = CppBackend()
    reason = backend.unavailable_reason()
    if reason is not None:
        pytest.skip(f"the C++ kernels cannot be built: {reason}")
    return backend
